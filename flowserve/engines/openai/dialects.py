"""Kinds of servers: which hints of ours each takes, under which name and in which direction.

A hint that a server does not know is left out, never renamed by guess. Priorities: FlowServe's lower goes first, as
vLLM's; SGLang's, Dynamo's and the FlowServe server's higher goes first. Read in vLLM 0.32
(entrypoints/openai/completion/protocol.py), SGLang (srt/entrypoints/openai/protocol.py, srt/managers/io_struct.py,
server_args.py), Dynamo 1.5 (docs/agents/priority-scheduling.md, session-ids.md, components/frontend/nvext.md) and the
llm-d router (pkg/epp/metadata/consts.go, plugin session-id-producer).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flowserve.engines.base import Call
from flowserve.engines.openai.metrics import SGLANG, VLLM, Names
from flowserve.graphs.caller import Caller
from flowserve.ids import Tokens


@dataclass(frozen=True, slots=True)
class Hints:
    """What FlowServe knows of a call beside what shall be generated. Names are our own (`salts`), never a client's."""

    request: str = ""
    """Unique among the requests to the server; empty: the server may name it."""
    priority: int = 0
    """Lower goes first."""
    session: str | None = None
    salt: str | None = None
    """Of the tenant."""
    expected_tokens: Tokens | None = None
    """How long the answer will probably be; None: not known."""
    caller: Caller | None = None
    """Where the call stands in a program of its client."""


@dataclass(frozen=True, slots=True)
class Extra:
    """What hints become."""

    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One kind of server."""

    name: str
    hint: Callable[[Hints], Extra] = lambda hints: Extra()
    orders: bool | None = False
    """It orders what waits by priority; None: if it was started so. Priorities are sent only to servers that order
    by them."""
    constrain: Callable[[Call], Mapping[str, Any]] | None = None
    """Its fields for the constraint of a call; None: `response_format`, for a schema alone."""
    constraints: frozenset[str] = frozenset({"schema"})
    """Of schema, regex and grammar."""
    neutral: Mapping[str, Any] = field(default_factory=dict)
    """Sampling settings that FlowServe does not have, at the value that changes nothing: a server's own defaults
    would."""
    all_tokens: int | None = None
    """Its `top_k` for all tokens; None: it has no `top_k`."""
    ignores_eos: bool = False
    """It takes `ignore_eos`."""
    logprobs: bool = False
    """With token ids: it can tell them in logprobs."""
    intervals: bool = False
    """It takes `stream_interval`: tokens per event."""
    thinking: str = ""
    """Its field for a budget of thinking tokens."""
    prefix_reuse: bool = False
    """It has a prefix cache of its own, on by default."""
    metrics: Names | None = None


def _vllm(hints: Hints) -> Extra:
    body: dict[str, Any] = {"request_id": hints.request} if hints.request else {}
    if hints.priority:
        body["priority"] = hints.priority
    if hints.session is not None:
        body["session_id"] = hints.session
    if hints.salt is not None:
        body["cache_salt"] = hints.salt
    return Extra(body)


def _sglang(hints: Hints) -> Extra:
    extra = _sglang_inverted(hints)
    return Extra({**extra.body, "priority": -hints.priority}) if hints.priority else extra


def _sglang_inverted(hints: Hints) -> Extra:
    """Of a server started with `--schedule-low-priority-values-first`."""
    body = dict(_vllm(hints).body)
    if "request_id" in body:
        body["rid"] = body.pop("request_id")
    return Extra(body)


def _dynamo(hints: Hints) -> Extra:
    agent: dict[str, int] = {}
    if hints.priority:
        agent["priority"] = _clamped(-hints.priority, 1 << 31)
    if hints.expected_tokens is not None:
        agent["osl"] = hints.expected_tokens
    nvext: dict[str, Any] = {"agent_hints": agent} if agent else {}
    if hints.salt is not None:
        nvext["cache_salt"] = hints.salt
    headers = {} if hints.session is None else {"X-Dynamo-Session-ID": hints.session}
    if hints.caller is not None and hints.caller.parent is not None:
        headers["X-Dynamo-Parent-Session-ID"] = hints.caller.parent
    return Extra({"nvext": nvext} if nvext else {}, headers)


def _llm_d(hints: Hints) -> Extra:
    """A router before vLLM servers: headers are its own, the body is theirs. It reads the old name where the new is
    missing."""
    headers: dict[str, str] = {}
    if hints.session is not None:
        headers["x-session-id"] = hints.session
    if hints.salt is not None:
        headers["x-llm-d-inference-fairness-id"] = hints.salt
        headers["x-gateway-inference-fairness-id"] = hints.salt
    return Extra(_vllm(hints).body, headers)


def _flowserve(hints: Hints) -> Extra:
    body: dict[str, Any] = {}
    if hints.session is not None:
        body["session_id"] = hints.session
    ours: dict[str, Any] = {"priority": _clamped(-hints.priority, 1001)} if hints.priority else {}
    if hints.caller is not None:
        ours["caller"] = hints.caller.data()
    return Extra(body | {"flowserve": ours} if ours else body)


def _clamped(value: int, bound: int) -> int:
    return max(1 - bound, min(bound - 1, value))


def _vllm_constraint(call: Call) -> Mapping[str, Any]:
    given = {"json": call.schema, "regex": call.regex, "grammar": call.grammar}
    return {"structured_outputs": {name: value for name, value in given.items() if value is not None}}


def _sglang_constraint(call: Call) -> Mapping[str, Any]:
    return {"json_schema": json.dumps(call.schema)} if call.schema is not None else {"regex": call.regex}


_ALL = frozenset({"schema", "regex", "grammar"})
_NO_PENALTIES = {"min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}

VLLM_DIALECT = Dialect(
    name="vllm",
    hint=_vllm,
    orders=None,
    constrain=_vllm_constraint,
    constraints=_ALL,
    neutral=_NO_PENALTIES,
    all_tokens=0,
    ignores_eos=True,
    logprobs=True,
    intervals=True,
    thinking="thinking_token_budget",
    prefix_reuse=True,
    metrics=VLLM,
)
SGLANG_DIALECT = Dialect(
    name="sglang",
    hint=_sglang,
    orders=None,
    constrain=_sglang_constraint,
    constraints=frozenset({"schema", "regex"}),
    neutral=_NO_PENALTIES,
    all_tokens=-1,
    ignores_eos=True,
    prefix_reuse=True,
    metrics=SGLANG,
)
DIALECTS = {
    dialect.name: dialect
    for dialect in (
        VLLM_DIALECT,
        SGLANG_DIALECT,
        Dialect(name="dynamo", hint=_dynamo, orders=None, prefix_reuse=True),
        replace(VLLM_DIALECT, name="llm-d", hint=_llm_d, metrics=None),
        Dialect(name="flowserve", hint=_flowserve, orders=True, all_tokens=0),
        Dialect(name="openai"),
    )
}


def of_low_first(dialect: Dialect) -> Dialect:
    """SGLang's, for a server that was told to schedule low priorities first."""
    return replace(dialect, hint=_sglang_inverted) if dialect.hint is _sglang else dialect
