"""Where a call comes from in a program that its client runs itself, such as a LangGraph."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Caller:
    """A call's place in its client's program. None: not said. Kept with the run and told; a hint never changes an answer."""

    program: str | None = None
    """Name of the program."""
    run: str | None = None
    """The program's run, by the client's own id."""
    parent: str | None = None
    """Session of the program that this one is a part of."""
    node: str | None = None
    step: int | None = None
    index: int | None = None
    """Which of a fan-out's siblings, from 0."""
    triggers: tuple[str, ...] = ()
    """What made the node run."""

    def data(self) -> dict[str, Any]:
        """JSON-ready, without what was not said; as the field `caller` of a request and of a run."""
        told = {item.name: getattr(self, item.name) for item in fields(self)}
        told["triggers"] = list(self.triggers)
        return {name: value for name, value in told.items() if value not in (None, [])}
