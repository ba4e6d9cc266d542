"""Candidates in another order: a ranking is cheap and wide, what looks at each candidate is dear and sees more.

Two rerankers: by the vectors that the index holds anyway (for rankings that did not go by them, such as `bm25`), and a
cross-encoder, which reads query and passage together.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowserve.errors import ConfigError, RetrievalError
from flowserve.retrieval.documents import Passage
from flowserve.retrieval.exact import SCORE_DECIMALS, best, rounded_scores
from flowserve.retrieval.protocols import Query, Ranking, Vectors

MAX_LENGTH = 512
"""Tokens of query and passage together that a cross-encoder reads; what is longer is cut."""


class Reranker(Protocol):
    """Says how well passages answer a query. Deterministic; called from one thread at a time."""

    @property
    def wants_vector(self) -> bool:
        """Whether queries have to be embedded."""
        ...

    def score(self, query: Query, passages: Sequence[Passage], vectors: Vectors) -> NDArray[np.float64]:
        """(passages,), higher is better. vectors: (passages, dimension), those of the index; the query has its own.

        Raises ConfigError for a model that cannot be loaded.
        """
        ...


class EmbeddingReranker:
    """The cosine of query and passage: no model beside the embedder, nothing embedded but the query."""

    wants_vector = True

    def __repr__(self) -> str:
        return "EmbeddingReranker()"

    def score(self, query: Query, passages: Sequence[Passage], vectors: Vectors) -> NDArray[np.float64]:
        cosines: NDArray[np.float64] = rounded_scores(query.unit[None], vectors)[0]
        return cosines


class CrossEncoderReranker:
    """A sentence-transformers cross-encoder in a folder. Loaded by its first use; nothing is downloaded."""

    wants_vector = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model: Any = None
        self._loading = threading.Lock()

    def __repr__(self) -> str:
        return f"CrossEncoderReranker({str(self._folder)!r})"

    def score(self, query: Query, passages: Sequence[Passage], vectors: Vectors) -> NDArray[np.float64]:
        pairs = [(query.text, passage.text) for passage in passages]
        scores = np.asarray(self._loaded().predict(pairs, show_progress_bar=False), np.float64)
        if scores.shape != (len(passages),):
            raise RetrievalError(
                f"cross-encoder '{self._folder}' gave scores of shape {scores.shape}, expected ({len(passages)},): "
                "it is to say one number for each pair"
            )
        return scores

    def _loaded(self) -> Any:
        with self._loading:
            if self._model is None:
                try:
                    from sentence_transformers import CrossEncoder

                    self._model = CrossEncoder(str(self._folder), max_length=MAX_LENGTH, local_files_only=True)
                except (ImportError, OSError, ValueError) as error:
                    raise ConfigError(
                        f"cannot load the cross-encoder '{self._folder}' ({error}); expected a folder with such a model "
                        "and the packages of pip install 'flowserve[embed]'"
                    ) from error
        return self._model


def reranked(
    reranker: Reranker, query: Query, ranking: Ranking, passages: Sequence[Passage], vectors: Vectors, k: int
) -> Ranking:
    """The k best of `ranking` in the order of `reranker`, ties by row. `passages` and `vectors` are the whole index's."""
    rows = ranking[1]
    if len(rows) == 0:
        return ranking
    scores = reranker.score(query, [passages[row] for row in rows.tolist()], vectors[rows])
    if not np.isfinite(scores).all():
        raise RetrievalError(f"{reranker!r} gave scores that are not numbers")
    found, order = best(np.round(scores, SCORE_DECIMALS)[None] + 0.0, rows[None], k)
    return found[0], order[0]
