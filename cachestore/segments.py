"""What a prompt is made of, as far as the reuse of KV is concerned: stretches of token ids with known borders.

The application hands over retrieved passages as objects, so nothing here searches for separators. Each segment was tokenised
alone; the prompt is the concatenation of their ids.
"""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a segment is; it decides how its KV may be reused."""

    STATIC = "static"
    """Constant text of the application, the same in all its prompts: reused exactly, as a prefix."""
    CHUNK = "chunk"
    """A passage that may stand anywhere: reused exactly as part of a prefix, or approximately from its canonical record."""
    HISTORY = "history"
    """Earlier turns: reused exactly, within their session."""
    QUERY = "query"
    """What is new: always computed."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a prompt."""

    kind: Kind
    ids: tuple[int, ...]
    document: str = ""
    """Chunks: id of the document that it was cut from; "" where nobody said."""
    version: str = ""
    """Chunks: version of that document; KV of other versions is stale."""
    free: bool = False
    """Its place among its free neighbours means nothing to the author (`any_order=`), so a planner may move it."""


class Quality(StrEnum):
    """How much of the same answer must be kept. A node's class bounds what may be done for it."""

    EXACT = "exact"
    """Only what gives the same answer: prefixes."""
    BALANCED = "balanced"
    """Chunks may be pasted where selective recompute has passed the gate of this model."""
    FAST = "fast"
    """As balanced, and chunks may be pasted without recompute, or dropped, where that has passed the gate."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the KV of a prompt's tokens came from. The three add up to the prompt's length, less dropped chunks."""

    exact: int = 0
    """Reused as computed for the same text before them."""
    pasted: int = 0
    """Taken from canonical records and not recomputed: approximate."""
    recomputed: int = 0
    """Computed for this prompt."""
    policy: str = ""
    """Which policy chose what to recompute; "" when nothing was pasted."""
