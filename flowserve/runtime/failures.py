"""From an exception to the code that the scheduler decides by. The text stays here, for people."""

from flowserve import errors
from flowserve.core.events import Code

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


TEXTS: dict[Code, str] = {
    Code.TIMEOUT: "the node's own time was up",
    Code.LIMIT: "a declared bound was passed",
    Code.ENGINE_LOST: "the engine went away",
    Code.REQUEST: "no engine serves the model that the node asks for",
}
"""For failures that the scheduler finds itself, where no exception tells more."""


def error_for(code: Code, message: str) -> errors.FlowServeError:
    """An exception for a failure that the scheduler found itself, or that crosses a `Return` into a dynamic node."""
    by_code: dict[Code, type[errors.FlowServeError]] = {
        Code.TOOL: errors.ToolError,
        Code.RETRIEVAL: errors.RetrievalError,
        Code.OUTPUT_INVALID: errors.OutputInvalid,
        Code.ENGINE_LOST: errors.EngineLost,
        Code.REQUEST: errors.RequestError,
        Code.LIMIT: errors.RequestError,
        Code.TIMEOUT: errors.RunTimedOut,
        Code.INTERNAL: errors.InternalError,
    }
    return by_code.get(code, errors.EngineError)(message)
