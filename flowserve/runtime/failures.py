"""From an exception to the code that the scheduler decides by. The text stays here, for people."""

import asyncio

from flowserve import errors
from flowserve.core.events import Code
from flowserve.graphs.plan import Kind, Node

_CODES: tuple[tuple[type[BaseException], Code], ...] = (  # first match wins: subclasses before their parents
    (errors.Overloaded, Code.OVERLOADED),
    (errors.RequestError, Code.REQUEST),
    (errors.Unsupported, Code.REQUEST),
    (errors.ValueInvalid, Code.REQUEST),
    (errors.EngineLost, Code.ENGINE_LOST),
    (errors.OutputInvalid, Code.OUTPUT_INVALID),
    (errors.EngineError, Code.ENGINE),
    (errors.ToolError, Code.TOOL),
    (errors.RetrievalError, Code.RETRIEVAL),
    (errors.StoreError, Code.RETRIEVAL),
    (errors.RunError, Code.TOOL),
)


def code_of(error: BaseException) -> Code:
    """What kind of failure `error` is; anything not ours is our own mistake."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return Code.INTERNAL


def retry_after(error: BaseException) -> float | None:
    """When the failing part said it may be tried again, in seconds from now."""
    return error.retry_after_s if isinstance(error, errors.Overloaded) else None


_TEXTS: dict[Code, str] = {
    Code.LIMIT: "a declared bound was passed",
    Code.ENGINE_LOST: "the engine went away",
    Code.STALLED: "the engine stood still",
    Code.OVERLOADED: "the engine had no room",
    Code.MOVED: "it goes on at another engine",
    Code.OUTPUT_INVALID: "no result was what valid= asks for",
    Code.UNPRICED: "the run has a budget of money, and the engine that would take the call has no price",
    Code.REQUEST: "no engine serves the model that the node asks for",
}
_BOUNDS = {
    Kind.MAP: "it got more than {} items; raise max_width=",
    Kind.DYNAMIC: "it made more than {} calls; raise max_calls=",
    Kind.AGENT: "it asked for tools in step {}, which had to answer; raise max_steps=",
}


def reason(code: Code, node: Node, inside: str | None) -> str:
    """A failure that no exception of the task explains. `inside`: the last failure of something that worked for it."""
    if code is Code.TIMEOUT:
        return f"its time was up (timeout={node.timeout_s:g} s)" if node.timeout_s else "its time was up"
    if code is Code.LIMIT and node.kind in _BOUNDS:
        return _BOUNDS[node.kind].format(node.limit)
    return inside or _TEXTS.get(code, code.value)


def error_for(code: Code, message: str) -> errors.FlowServeError:
    """An exception for a failure that the scheduler found itself, or that crosses a `Return` into a dynamic node."""
    by_code: dict[Code, type[errors.FlowServeError]] = {
        Code.TOOL: errors.ToolError,
        Code.RETRIEVAL: errors.RetrievalError,
        Code.OUTPUT_INVALID: errors.OutputInvalid,
        Code.ENGINE_LOST: errors.EngineLost,
        Code.STALLED: errors.EngineLost,
        Code.REQUEST: errors.RequestError,
        Code.UNPRICED: errors.RequestError,
        Code.LIMIT: errors.RequestError,
        Code.TIMEOUT: errors.RunTimedOut,
        Code.INTERNAL: errors.InternalError,
    }
    return by_code.get(code, errors.EngineError)(message)


class told_of:  # used as a function; a generator's context manager takes four times as long
    """The one doorway for what a user's function raises: a ToolError that names it. Enter it in the job's own task.

    Only a cancellation of ours passes, and it passes even where the function swallowed it. `sys.exit()` in a tool would
    end the event loop, and an awaited task that somebody else cancelled would look as if we had stopped the job.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            if _is_cancelled():
                raise asyncio.CancelledError
        elif isinstance(error, asyncio.CancelledError):
            if not _is_cancelled():
                told = f"{self._what} raised CancelledError: something that it awaited was cancelled"
                raise errors.ToolError(told) from error
        elif isinstance(error, Exception | SystemExit) and not isinstance(error, errors.FlowServeError):
            raise raised(self._what, error) from error


def raised(what: str, error: BaseException) -> errors.ToolError:
    """`what` is a function of a user; `error` came out of it."""
    return errors.ToolError(f"{what} raised {type(error).__name__}: {error}")


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
