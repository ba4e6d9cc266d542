"""What callers may ask of the service: names, queries, documents, filters. Each refusal says what was expected."""

import re
from collections.abc import Sequence

from flowserve.errors import InputError, TooLarge
from flowserve.retrieval.documents import Document
from flowserve.retrieval.opened import Filter
from flowserve.retrieval.protocols import Where

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
"""No separators, no leading dot: a name is one folder, never a path."""
MAX_K = 1000
MAX_TEXT_CHARS = 100_000
"""Of one query or one text to embed; a passage is far shorter."""
MAX_ID_CHARS = 512
MAX_FILTER = 16
"""Pairs of one filter."""


def check_name(index: str) -> None:
    """Raises InputError."""
    if not isinstance(index, str) or NAME.fullmatch(index) is None:
        raise InputError(
            f"not a name for an index: {index!r:.80}; expected 1 to 64 of A-Z a-z 0-9 . _ - without a leading dot"
        )


def check_query(query: str, k: int) -> None:
    """Raises InputError, TooLarge."""
    check_text("query", query)
    if not query.strip():
        raise InputError("the query is empty; expected some words to look for")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise InputError(f"k must be a whole number between 1 and {MAX_K}, got {k!r}")


def check_rerank(candidates: int) -> None:
    """Raises InputError."""
    if isinstance(candidates, bool) or not isinstance(candidates, int) or not 0 <= candidates <= MAX_K:
        raise InputError(f"rerank must be a whole number of candidates from 0 (none) to {MAX_K}, got {candidates!r}")


def checked_filter(where: Where | None) -> Filter:
    """The pairs in order. Raises InputError."""
    pairs = tuple(sorted((where or {}).items()))
    if len(pairs) > MAX_FILTER or not all(isinstance(part, str) for pair in pairs for part in pair):
        raise InputError(f"a filter has up to {MAX_FILTER} pairs of text, name and value; got {dict(pairs)!r:.200}")
    return pairs


def check_documents(documents: Sequence[Document]) -> None:
    """Raises InputError."""
    seen: set[str] = set()
    for document in documents:
        if not document.id or len(document.id) > MAX_ID_CHARS or not document.id.isprintable():
            raise InputError(f"not an id for a document: {document.id!r:.80}; expected 1 to {MAX_ID_CHARS} characters")
        if document.id in seen:
            raise InputError(f"document '{document.id}' is given twice; expected each id once")
        seen.add(document.id)
        _check_unicode(f"document '{document.id}'", document.text)


def check_text(what: str, text: str) -> None:
    """Raises InputError, TooLarge."""
    if len(text) > MAX_TEXT_CHARS:
        raise TooLarge(f"the {what} has {len(text):,} characters; the limit is {MAX_TEXT_CHARS:,}")
    _check_unicode(what, text)


def _check_unicode(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds half a surrogate pair at character {error.start}; expected Unicode text"
        ) from None
