"""`flowserve ingest` and `flowserve search`."""

import asyncio
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowserve.assemble import Settings, make_retrieval
from flowserve.cli.targets import say
from flowserve.errors import InputError
from flowserve.graphs.types import Doc
from flowserve.retrieval.documents import Document
from flowserve.retrieval.load import load
from flowserve.retrieval.progress import progress_bars
from flowserve.retrieval.protocols import IndexInfo


def ingest(path: Path, index: str, settings: Settings, kind: str | None) -> None:
    """Load, split, embed and commit; says what was left out and why."""
    with progress_bars() as progress:
        loaded = load(path, progress=progress)
    for skipped in loaded.skipped:
        say(f"left out {skipped.path}: {skipped.reason}")
    info = asyncio.run(add(loaded.documents, index, settings, kind))
    counts = f"{info.documents} documents, {info.passages} passages"
    print(f"{info.name}: {counts}, embedder {info.embedder}, {info.kind}")


async def add(documents: Sequence[Document], index: str, settings: Settings, kind: str | None = None) -> IndexInfo:
    """Ingest with progress bars."""
    service = make_retrieval(settings)
    try:
        with progress_bars() as progress:
            return await service.ingest(index, documents, progress, kind)
    finally:
        await service.close()


def search(index: str, query: str, k: int, settings: Settings, json_lines: bool, where: Sequence[str]) -> None:
    """Print the hits, best first."""
    for hit in asyncio.run(_search(index, query, k, settings, _filter(where))):
        if json_lines:
            print(json.dumps(dataclasses.asdict(hit), ensure_ascii=False))
        else:
            print(f"{hit.score:.3f}  {hit.id}\n       {' '.join(hit.text.split())[:300]}")


def _filter(where: Sequence[str]) -> dict[str, str]:
    for pair in where:
        if "=" not in pair:
            raise InputError(f"--where: expected name=value, got '{pair}'")
    return dict(pair.split("=", 1) for pair in where)


async def _search(index: str, query: str, k: int, settings: Settings, where: Mapping[str, str]) -> list[Doc]:
    service = make_retrieval(settings)
    try:
        return await service.search(index, query, k, where)
    finally:
        await service.close()
