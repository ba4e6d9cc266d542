"""Embedders by name, as settings and command lines give them."""

from collections.abc import Callable
from pathlib import Path

from flowserve.errors import UnknownName
from flowserve.retrieval.embed import HashEmbedder
from flowserve.retrieval.minilm import SentenceEmbedder, minilm
from flowserve.retrieval.protocols import Embedder

EMBEDDERS: dict[str, Callable[[int | None], Embedder]] = {
    "hash": lambda threads: HashEmbedder(),
    "minilm": lambda threads: minilm(threads),
}
"""Name to maker; the argument is the number of threads, None for the library's own choice."""


def embedder_named(name: str, threads: int | None = None) -> Embedder:
    """`hash`, `minilm`, a folder with a sentence-transformers model, or a hub name `owner/model`.

    Models load when first used, and then say what is missing (ConfigError). Raises UnknownName.
    """
    if name in EMBEDDERS:
        return EMBEDDERS[name](threads)
    if Path(name).is_dir():
        return SentenceEmbedder(Path(name), threads=threads)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return SentenceEmbedder(name, threads=threads)
    raise UnknownName("embedder", name, [*EMBEDDERS, "a model folder", "owner/model"])
