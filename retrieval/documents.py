"""The nouns of retrieval: a document comes in, passages are indexed. Hits are `flowserve.graphs.types.Doc`."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Document:
    """Something a user gave us, as text."""

    id: str
    """Stable name: the relative path of a file, or what the client says. Ingesting it again replaces it."""
    text: str
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document that is embedded and found as a whole."""

    id: str
    """`<document id>#<ordinal>`."""
    document: str
    text: str
    start: int
    """Character offset in the document's text."""
    end: int
    metadata: dict[str, str] = field(default_factory=dict)
