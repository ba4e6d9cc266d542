"""What a server or the way to it does wrong, as our errors: the one place that knows statuses and aiohttp's
exceptions.

By whose doing: a 4xx is the call's, a 429 or 503 is load, everything else the engine's. A broken connection is
EngineLost: the call may go elsewhere. Servers like to repeat what they were sent, so their messages are quoted only as
far as they do not quote the prompt.
"""

import errno
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from flowserve.engines.base import Call
from flowserve.errors import (
    ContextTooLong,
    EngineError,
    EngineLost,
    FlowServeError,
    InputError,
    Overloaded,
    UnknownName,
)
from flowserve.ids import Seconds

RETRY_AFTER_S: Seconds = 1.0
"""For servers that have no room and do not say for how long."""
NOBODY = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH)
MAX_QUOTE = 300
QUOTED = 12
"""So many characters in a row that also stand in the prompt are a quotation of it."""

_TOO_LONG = re.compile(
    r"context.?length|context window|max(imum)?[ _]?model[ _]?len|maximum length|longer than the model|too many tokens",
    re.IGNORECASE,
)
_DEAD = re.compile(r"EngineCore|EngineDead|engine (process )?(is )?dead", re.IGNORECASE)
"""In vLLM's 500s: its server lives on for a moment when its engine has died."""
_NUMBERS = re.compile(r"\[[\d,\s]{8,}\]?|(\d+,\s*){3,}\d*")


class Unreachable(EngineLost):
    """Nobody listens there."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a server says of an error."""

    status: int
    message: str = ""
    kind: str = ""
    """`type` or `code`, where it is a word."""


def told(status: int, body: Any) -> Told:
    """Out of an error's JSON, in OpenAI's form ({"error": {...}}), SGLang's (flat) or FastAPI's ({"detail": ...})."""
    said = body.get("error", body) if isinstance(body, Mapping) else body
    if not isinstance(said, Mapping):
        return Told(status, said if isinstance(said, str) else "")
    message = said.get("message", said.get("detail", ""))
    words = [said.get(key) for key in ("code", "type")]
    kind = next((word for word in words if isinstance(word, str) and word), "")
    code = said.get("code")
    if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600:
        status = code
    return Told(status, message if isinstance(message, str) else "", kind)


def read_told(status: int, body: bytes) -> Told:
    """The same from bytes, whatever they are."""
    try:
        return told(status, json.loads(body))
    except (ValueError, RecursionError):
        return Told(status)


def refused(
    said: Told, where: str, call: Call, known: Sequence[str] = (), retry_after: str | None = None
) -> FlowServeError:
    """The error for an answer to `call` that is not a success. known: the server's models. retry_after: the header."""
    status = said.status
    kind = f" ({said.kind})" if said.kind.isidentifier() else ""
    what = f"call '{call.id}': {where} answered {status}{kind}{_quote(said, call)}"
    if status in (401, 403):
        # Nothing of the answer: some servers repeat the key in it.
        return EngineError(f"{where} answered {status}: check `api_key`")
    if status in (400, 413, 422):
        long = said.kind == "context_length_exceeded" or _TOO_LONG.search(said.message)
        return ContextTooLong(what) if long else InputError(what)
    if status == 404 and "model" in said.message.lower():
        return UnknownName("model", call.model or (known[0] if known else ""), known)
    if status in (429, 503):
        return Overloaded(f"{what}; it has no room now", _seconds(retry_after))
    if status in (502, 504) or (status >= 500 and _DEAD.search(said.message)):
        return EngineLost(what)
    if 300 <= status < 400:
        return EngineError(f"{where} answered {status}: redirects are not followed; check `url`")
    return EngineError(what)


def lost(error: Exception, where: str, connect_s: Seconds) -> EngineError:
    """The error for what aiohttp raises."""
    if isinstance(error, TimeoutError):
        return EngineLost(f"{where}: no connection after {connect_s:g} s")
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = getattr(error, "os_error", None)
        number = getattr(cause, "errno", None)
        problem = f"{where}: cannot connect ({os.strerror(number) if number else type(error).__name__})"
        return Unreachable(problem) if number in NOBODY else EngineLost(problem)
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientResponseError):
        return EngineLost(f"{where}: protocol: the answer was cut off or is not HTTP ({type(error).__name__})")
    return EngineLost(f"{where}: the connection broke ({type(error).__name__})")


def protocol(where: str, problem: str) -> EngineError:
    """The server does not speak as agreed, so nothing of this answer can be trusted."""
    return EngineError(f"{where}: protocol: {problem}")


def _seconds(header: str | None) -> Seconds:
    """A date is not worth a clock here: the default."""
    try:
        seconds = float(header or "")
    except ValueError:
        return RETRY_AFTER_S
    return min(max(seconds, 0.0), 3600.0) if math.isfinite(seconds) else RETRY_AFTER_S


def _quote(said: Told, call: Call) -> str:
    """The server's words, or nothing where they may be the client's."""
    text = _NUMBERS.sub("[...]", " ".join(said.message.split()))[:MAX_QUOTE]
    return f": {text}" if text and not _repeats(text, call) else ""


def _repeats(text: str, call: Call) -> bool:
    """It has a stretch of the prompt in it, as it is or as JSON writes it."""
    plain = " ".join(call.prompt_text.split())
    sources = (plain, json.dumps(plain))
    if any(text[at : at + QUOTED] in source for at in range(len(text) - QUOTED + 1) for source in sources):
        return True
    return any(len(word) >= 4 and word in text for segment in call.segments if (word := segment.text.strip()))
