"""Values with a fixed shape that workflows, engines and doors share."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Doc:
    """A retrieved passage: what a search node returns a list of."""

    text: str
    id: str = ""
    """`<document id>#<ordinal>`."""
    document: str = ""
    score: float = 0.0
    """Higher is better; cosine similarity for the default index, in [-1, 1]."""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str
    tool_calls: tuple["ToolCall", ...] = ()
    """Assistant only: the calls that this turn asked for."""
    tool_call_id: str = ""
    """Tool only: which call this answers."""
    name: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's wish to call a tool."""

    id: str
    name: str
    arguments: dict[str, Any]
