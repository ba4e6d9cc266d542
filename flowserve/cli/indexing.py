"""`flowserve ingest` and `flowserve search`."""

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from flowserve.assemble import Settings, make_retrieval
from flowserve.cli.targets import say
from flowserve.graphs.types import Doc
from flowserve.retrieval.documents import Document
from flowserve.retrieval.load import load
from flowserve.retrieval.progress import progress_bars
from flowserve.retrieval.protocols import IndexInfo


def ingest(path: Path, index: str, settings: Settings) -> None:
    """Load, split, embed and commit; says what was left out and why."""
    with progress_bars() as progress:
        loaded = load(path, progress=progress)
    for skipped in loaded.skipped:
        say(f"left out {skipped.path}: {skipped.reason}")
    info = asyncio.run(add(loaded.documents, index, settings))
    print(f"{info.name}: {info.documents} documents, {info.passages} passages, embedder {info.embedder}")


async def add(documents: Sequence[Document], index: str, settings: Settings) -> IndexInfo:
    """Ingest with progress bars."""
    service = make_retrieval(settings)
    try:
        with progress_bars() as progress:
            return await service.ingest(index, documents, progress)
    finally:
        await service.close()


def search(index: str, query: str, k: int, settings: Settings, json_lines: bool) -> None:
    """Print the hits, best first."""
    for hit in asyncio.run(_search(index, query, k, settings)):
        if json_lines:
            print(json.dumps(dataclasses.asdict(hit), ensure_ascii=False))
        else:
            print(f"{hit.score:.3f}  {hit.id}\n       {' '.join(hit.text.split())[:300]}")


async def _search(index: str, query: str, k: int, settings: Settings) -> list[Doc]:
    service = make_retrieval(settings)
    try:
        return await service.search(index, query, k)
    finally:
        await service.close()
