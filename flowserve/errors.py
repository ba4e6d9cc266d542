"""Every exception of FlowServe, by whose doing it is and when.

    FlowServeError
    ├── GraphError            a workflow is declared wrong; carries every problem found
    ├── RequestError          a run, a call or a file was asked for wrongly
    │   ├── InputError            the input does not fit the workflow's parameters
    │   ├── UnknownName           no workflow, run, index, model or tool of that name
    │   ├── ContextTooLong        prompt and answer do not fit the model
    │   ├── TooLarge              a body, a document or a result over its limit
    │   └── Overloaded            try again later; says when
    │       ├── Unavailable           no engine is up that could serve it
    │       ├── DeadlineHopeless      it would end long after its deadline; says when
    │       └── TenantLimited         its tenant has what it may have; says of what, and when
    ├── RunError              an accepted run did not complete
    │   ├── RunFailed             a node failed for good
    │   ├── RunCancelled          somebody cancelled it
    │   ├── RunTimedOut           its deadline passed
    │   └── BudgetExhausted       it has spent what it may
    ├── EngineError           an engine failed
    │   ├── EngineLost            the engine died or was closed
    │   ├── Unsupported           the engine lacks a capability; names it and the remedy
    │   └── OutputInvalid         the model's text does not fit the declared output
    ├── ToolError             a tool raised or returned something else than declared
    ├── ValueInvalid          a value inside a run lacks a field, or cannot be compared, rendered or written as JSON
    ├── RetrievalError        ingestion, an index or a search failed
    ├── StoreError            a file or a record could not be written or trusted
    │   └── StoreAway             a remote store does not answer, or refuses to
    ├── ConfigError           a setting is wrong or a needed package is missing; names it
    └── InternalError         we are wrong; carries the story of the run

A message says what was expected, what came, where, and what to do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class FlowServeError(Exception):
    """Root of all errors that FlowServe raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a declaration."""

    where: str
    """The node or template, by name; the workflow's name when it concerns the whole."""
    expected: str
    came: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}; got {self.came}. {self.remedy}"


class GraphError(FlowServeError):
    """A workflow is declared wrong. All problems are reported at once."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.name = name
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = [f"workflow '{name}' has {count} problem{'s' if count != 1 else ''}"]
        lines += [f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1)]
        super().__init__("\n".join(lines))


class RequestError(FlowServeError):
    """Something was asked for wrongly; asking again in the same way will not help."""


class InputError(RequestError):
    """The input does not fit. `problems` are (JSON pointer, message) pairs."""

    def __init__(self, message: str, problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class UnknownName(RequestError):
    """There is nothing of that name; the message lists what there is, where that is `known`."""

    def __init__(self, kind: str, name: str, known: Sequence[str] | None = None) -> None:
        listed = "" if known is None else f"; known: {', '.join(sorted(known)[:20]) or 'none'}"
        super().__init__(f"there is no {kind} '{name}'{listed}")
        self.kind = kind
        self.name = name


class ContextTooLong(RequestError):
    """Prompt and answer together exceed what the model can hold."""


class TooLarge(RequestError):
    """A body, document or result is over its limit."""


class Overloaded(RequestError):
    """No room now. Nothing was started; the same request may work after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(Overloaded):
    """No engine is up that could serve the request, and none has been for a while. Nothing was started."""


class DeadlineHopeless(Overloaded):
    """The run is expected to end long after its deadline. Nothing was started, nothing was computed."""

    def __init__(self, message: str, retry_after_s: float, expected_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.expected_s = expected_s


class TenantLimited(Overloaded):
    """Who asks has what it may have at a time. Nothing was started."""

    def __init__(self, message: str, retry_after_s: float, code: str, limit: float, needed: float, left: float) -> None:
        super().__init__(message, retry_after_s)
        self.code = code
        """Of what: `core.commands.Bound`."""
        self.limit = limit
        self.needed = needed
        self.left = left
        """What there is of it; below 0: more was taken than came in."""


class RunError(FlowServeError):
    """An accepted run did not complete."""

    def __init__(self, message: str, run: str = "", node: str | None = None) -> None:
        super().__init__(message)
        self.run = run
        self.node = node


class RunFailed(RunError):
    """A node failed for good; `node` names it, the cause is chained."""


class RunCancelled(RunError):
    """The run was cancelled."""


class RunTimedOut(RunError):
    """The run's deadline passed."""


class BudgetExhausted(RunError):
    """The run has spent what it may, or its next call would have gone beyond that; its calls were cancelled."""

    def __init__(
        self,
        message: str,
        run: str,
        node: str,
        budget: str,
        limit: float,
        spent: float,
        nodes: Mapping[str, Mapping[str, float | None]],
    ) -> None:
        super().__init__(message, run, node)
        self.budget = budget
        """Which: `tokens`, `seconds` or `money`."""
        self.limit = limit
        self.spent = spent
        self.nodes = nodes
        """What each node has spent, by name."""


class EngineError(FlowServeError):
    """An engine failed while it worked on a call."""


class EngineLost(EngineError):
    """The engine died or was closed; the call may be tried elsewhere."""


class Unsupported(EngineError):
    """The engine lacks a capability that the call needs."""


class OutputInvalid(EngineError):
    """The model's text does not fit the declared output type."""


class ToolError(FlowServeError):
    """A tool raised, or returned something else than it declares."""


class ValueInvalid(FlowServeError):
    """A value inside a run lacks a field or item, or cannot be compared, rendered or written as JSON."""


class RetrievalError(FlowServeError):
    """Ingestion, an index or a search failed."""


class StoreError(FlowServeError):
    """A file or record could not be written, read or trusted."""


class StoreAway(StoreError):
    """A remote store does not answer, or refuses to serve; what it holds may be there again later."""


class ConfigError(FlowServeError):
    """A setting is wrong or a needed package is missing."""


class InternalError(FlowServeError):
    """FlowServe itself is wrong. Please report it with the story."""

    def __init__(self, message: str, story: str = "") -> None:
        super().__init__(f"{message}\n{story}" if story else message)
        self.story = story
