"""From files to passages that can be found by meaning.

Documents are loaded (`load`), split (`split`), embedded (`embed`, `minilm`), kept in a folder (`store`, `library`) and
searched, in the way of the index's kind (`kinds`). `service` is the only file with threads; start reading there.
"""

if __name__ != "flowserve.retrieval":  # a bare import would make a second copy of every class
    raise ImportError(
        f"import flowserve.retrieval, not {__name__}: the folder retrieval/ is the package flowserve.retrieval"
    )

from flowserve.retrieval.documents import Document, Passage
from flowserve.retrieval.load import Loaded, Skipped, load
from flowserve.retrieval.progress import progress_bars
from flowserve.retrieval.protocols import Embedder, IndexInfo, Progress, RetrievalService, Vectors
from flowserve.retrieval.registry import embedder_named
from flowserve.retrieval.service import Retrieval
from flowserve.retrieval.split import Splitting, split

__all__ = [
    "Document",
    "Embedder",
    "IndexInfo",
    "Loaded",
    "Passage",
    "Progress",
    "Retrieval",
    "RetrievalService",
    "Skipped",
    "Splitting",
    "Vectors",
    "embedder_named",
    "load",
    "progress_bars",
    "split",
]
