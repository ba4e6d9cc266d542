"""What running code of a user may reach: calls of nodes from a dynamic, and progress.

The runtime sets both variables around the execution of a tool or dynamic; outside a run there is nobody to
call, and progress goes nowhere.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from flowserve.errors import FlowServeError
from flowserve.ids import Tokens

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Answer(Generic[R_co]):
    """How one call of a running @fs.dynamic function ended."""

    value: R_co | None
    """The typed result; None when it failed."""
    error: FlowServeError | None
    """Why it failed; None when it ended well."""
    tokens: Tokens
    """Prompts, cached or not, and outputs of the model calls that were answered for it; one whose answer was refused and that
    was made again counts twice."""


class Caller(Protocol):
    """Who carries out the calls of a running @fs.dynamic function."""

    def call(self, callee_name: str, kwargs: Mapping[str, Any]) -> Awaitable[Any]:
        """The typed result of one call of `callee_name` (one of `DynamicSpec.callees`), with all arguments by name."""
        ...

    def ask(self, callee_name: str, kwargs: Mapping[str, Any]) -> Awaitable[Answer[Any]]:
        """As `call`; a failure is told and not raised."""
        ...


_caller: ContextVar[Caller | None] = ContextVar("flowserve_caller", default=None)
_listener: ContextVar[Callable[[Any], None] | None] = ContextVar("flowserve_listener", default=None)


def caller() -> Caller | None:
    """The Caller of the dynamic function that is running, or None."""
    return _caller.get()


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """Route `node.acall(...)` to `caller`; the runtime enters it in the task of the dynamic."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def emit(value: Any) -> None:
    """Report progress from a tool or dynamic: anything that can be written as JSON. Does nothing outside a run."""
    listener = _listener.get()
    if listener is not None:
        listener(value)


class listening:  # used as a function; a generator's context manager takes four times as long
    """Send what `emit` gets to `listener`; the runtime enters it around a tool or dynamic."""

    __slots__ = ("_listener", "_token")

    def __init__(self, listener: Callable[[Any], None]) -> None:
        self._listener = listener

    def __enter__(self) -> None:
        self._token = _listener.set(self._listener)

    def __exit__(self, *_: object) -> None:
        _listener.reset(self._token)
