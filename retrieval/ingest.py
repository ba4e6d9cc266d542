"""What ingesting or deleting documents makes of a snapshot. Pure; who embeds and who stores is elsewhere.

A document whose digest is unchanged is left alone. Of a changed one, only passages whose exact text is not in the
index yet are embedded.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flowserve.retrieval.documents import Document, Passage
from flowserve.retrieval.protocols import Progress, Vectors
from flowserve.retrieval.snapshot import Snapshot
from flowserve.retrieval.split import CountTokens, Splitting, split


@dataclass(frozen=True, slots=True)
class Change:
    """Documents that are new or different, and the texts that have to be embedded for them."""

    digests: dict[str, str]
    """Document id -> new digest. Empty: nothing to do."""
    passages: tuple[Passage, ...]
    texts: tuple[str, ...]
    """Distinct; those of `passages` that the snapshot has no vector for."""


def plan(
    snapshot: Snapshot,
    documents: Sequence[Document],
    splitting: Splitting,
    count: CountTokens,
    progress: Progress | None = None,
) -> Change:
    """Compare `documents` (distinct ids) with the snapshot and split those that differ."""
    digests: dict[str, str] = {}
    passages: list[Passage] = []
    for done, document in enumerate(documents, 1):
        digest = _digest(document, splitting)
        if snapshot.documents.get(document.id) != digest:
            digests[document.id] = digest
            passages += split(document, splitting, count)
        if progress is not None:
            progress("split", done, len(documents))
    known = {passage.text for passage in snapshot.passages}
    texts = dict.fromkeys(passage.text for passage in passages if passage.text not in known)
    return Change(digests, tuple(passages), tuple(texts))


def apply(snapshot: Snapshot, change: Change, vectors: Vectors) -> Snapshot:
    """The next generation. `vectors` are those of `change.texts`, in order."""
    row_of = {passage.text: row for row, passage in enumerate(snapshot.passages)}
    offset = len(snapshot.passages)
    row_of.update((text, offset + row) for row, text in enumerate(change.texts))
    pool = np.concatenate([snapshot.vectors, vectors]) if len(vectors) else snapshot.vectors
    kept = [(p, row) for row, p in enumerate(snapshot.passages) if p.document not in change.digests]
    new = [(passage, row_of[passage.text]) for passage in change.passages]
    return _next(snapshot, kept + new, pool, {**snapshot.documents, **change.digests})


def delete(snapshot: Snapshot, documents: Iterable[str]) -> Snapshot:
    """The next generation, without these documents."""
    gone = set(documents)
    kept = [(passage, row) for row, passage in enumerate(snapshot.passages) if passage.document not in gone]
    left = {name: digest for name, digest in snapshot.documents.items() if name not in gone}
    return _next(snapshot, kept, snapshot.vectors, left)


def _next(old: Snapshot, rows: list[tuple[Passage, int]], pool: Vectors, documents: dict[str, str]) -> Snapshot:
    rows.sort(key=lambda item: item[0].id)
    return replace(
        old,
        generation=old.generation + 1,
        passages=tuple(passage for passage, _ in rows),
        vectors=pool[np.array([row for _, row in rows], np.int64)],
        documents=documents,
    )


def _digest(document: Document, splitting: Splitting) -> str:
    parts = [document.text, document.metadata, splitting.limit_tokens, splitting.overlap_tokens]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
