"""The only door to FAISS, for the kinds whose structures it builds (`hnsw`, `pq`).

FAISS's own file format is used nowhere: it trusts the sizes it reads. What it has built is taken out of it as arrays.
"""

from typing import Any

from flowserve.errors import ConfigError


def faiss_module() -> Any:
    """The package. Raises ConfigError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("this kind of index needs faiss: pip install 'flowserve[faiss]'") from error
    return faiss
