"""Which program a call belongs to, in whose words ever it is said: one context from body fields, headers and W3C baggage.

| | in this order; the first that says something counts |
|---|---|
| session | body `flowserve.session_id`, `session_id`, `vllm_xargs.session_id`; headers `SESSIONS`; baggage |
| priority | body `flowserve.priority`; header `X-Vllm-Priority`, body `priority`, body `nvext.agent_hints.priority` |
| caller | body `flowserve.caller`; baggage; of both, what the first leaves open; parent also from headers `PARENTS` |

Priorities differ in direction: here and at Dynamo higher goes first, at vLLM lower. What others defined is taken as it is meant and
never refused: a hint that is malformed or too long says nothing. Names read in vLLM 0.32 and Dynamo 1.5.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from flowserve.graphs.caller import Caller
from flowserve.server import openai_schemas as s

SESSIONS = ("x-session-id", "x-dynamo-session-id", "x-claude-code-session-id", "thread-id")
PARENTS = ("x-parent-session-id", "x-dynamo-parent-session-id", "x-codex-parent-thread-id")
BAGGAGE_SESSIONS = ("flowserve.session", "session.id")
MOST_CHARS = 256
"""Of one value, as in the body."""
MOST_PRIORITY = 1_000

Headers = Mapping[str, str]
"""By name in lower case; those of other names do not matter."""
_NAMES = {name.encode(): name for name in (*SESSIONS, *PARENTS, "x-vllm-priority", "baggage")}


def heard(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Of a request's raw headers those that carry something, in one pass; of equal names the last."""
    return {_NAMES[name]: value.decode("latin-1") for name, value in headers if name in _NAMES}


def session_of(body: s.Generating, headers: Headers) -> str | None:
    """Whose calls belong together; at most 256 characters."""
    extra = body.flowserve.session_id if body.flowserve is not None else None
    xargs = body.vllm_xargs.get("session_id") if body.vllm_xargs else None
    told = extra or body.session_id or _text(xargs)
    return told if told or not headers else _first(headers, SESSIONS) or _carried(headers, BAGGAGE_SESSIONS)


def priority_of(body: s.Generating, headers: Headers) -> int:
    """Higher goes first, within +-1000; 0 where nobody says anything."""
    ours = body.flowserve.priority if body.flowserve is not None else 0
    header = headers.get("x-vllm-priority")
    vllm = (_number(header) if header else None) or body.priority or 0
    hints = body.nvext.agent_hints if body.nvext is not None else None
    dynamo = hints.priority if hints is not None else None
    return max(-MOST_PRIORITY, min(MOST_PRIORITY, ours or -vllm or dynamo or 0))


def caller_of(body: s.Generating, headers: Headers) -> Caller | None:
    """The call's place in its client's program; None where nothing is said."""
    told = body.flowserve.caller if body.flowserve is not None else None
    if told is None and not headers:
        return None
    caller = Caller(**{**told.model_dump(), "triggers": tuple(told.triggers)}) if told is not None else Caller()
    carried = baggage(headers.get("baggage", ""))
    told_by_headers: dict[str, Any] = {
        "program": carried.get("flowserve.program"),
        "run": carried.get("flowserve.run"),
        "parent": _first(headers, PARENTS) or carried.get("flowserve.parent"),
        "node": carried.get("flowserve.node"),
        "step": _number(carried.get("flowserve.step")),
        "index": _number(carried.get("flowserve.index")),
    }
    caller = replace(
        caller, **{name: value for name, value in told_by_headers.items() if getattr(caller, name) is None}
    )
    return caller if caller != Caller() else None


def baggage(header: str) -> dict[str, str]:
    """Values by key of a W3C baggage header; properties behind `;` are dropped, and so is what is no member."""
    return dict(_members(header))


def _members(header: str) -> Iterator[tuple[str, str]]:
    for member in header.split(","):
        key, equals, value = member.partition(";")[0].partition("=")
        text = _text(unquote(value.strip()))
        if equals and key.strip() and text is not None:
            yield key.strip(), text


def _first(headers: Headers, names: tuple[str, ...]) -> str | None:
    return next((text for name in names if (text := _text(headers.get(name))) is not None), None)


def _carried(headers: Headers, keys: tuple[str, ...]) -> str | None:
    carried = baggage(headers.get("baggage", ""))
    return next((carried[key] for key in keys if key in carried), None)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= MOST_CHARS else None


def _number(text: str | None) -> int | None:
    digits = (text or "").strip().removeprefix("-")
    return int(text or "") if digits.isascii() and digits.isdigit() and len(digits) <= 9 else None
