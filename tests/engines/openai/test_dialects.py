"""Each kind of server gets our hints under its own names and in its own direction."""

from typing import Any

import pytest

from flowserve.engines.base import Call, Origin, Sampling, Segment
from flowserve.engines.openai.bodies import token_body
from flowserve.engines.openai.dialects import DIALECTS, Hints, of_low_first
from flowserve.errors import Unsupported

SALT, SESSION = "T" * 44, "S" * 44
FULL = Hints("r-1", priority=5, session=SESSION, salt=SALT, expected_tokens=120)

TABLE: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "vllm": ({"request_id": "r-1", "priority": 5, "session_id": SESSION, "cache_salt": SALT}, {}),
    "sglang": ({"rid": "r-1", "priority": -5, "session_id": SESSION, "cache_salt": SALT}, {}),
    "dynamo": (
        {"nvext": {"agent_hints": {"priority": -5, "osl": 120}, "cache_salt": SALT}},
        {"X-Dynamo-Session-ID": SESSION},
    ),
    "llm-d": (
        {"request_id": "r-1", "priority": 5, "session_id": SESSION, "cache_salt": SALT},
        {
            "x-session-id": SESSION,
            "x-llm-d-inference-fairness-id": SALT,
            "x-gateway-inference-fairness-id": SALT,
        },
    ),
    "flowserve": ({"session_id": SESSION, "flowserve": {"priority": -5}}, {}),
    "openai": ({}, {}),
}


def test_the_table_is_complete() -> None:
    assert set(TABLE) == set(DIALECTS)


@pytest.mark.parametrize("name", TABLE)
def test_hints(name: str) -> None:
    extra = DIALECTS[name].hint(FULL)
    assert (dict(extra.body), dict(extra.headers)) == TABLE[name]


@pytest.mark.parametrize("name", TABLE)
def test_no_hints_add_nothing_but_a_name(name: str) -> None:
    extra = DIALECTS[name].hint(Hints("r-1"))
    assert set(extra.body) <= {"request_id", "rid"}
    assert not extra.headers


@pytest.mark.parametrize("name", [name for name in TABLE if name != "openai"])
def test_what_is_more_urgent_for_us_is_more_urgent_for_them(name: str) -> None:
    """Lower goes first here; there it depends."""
    lower_first = name in ("vllm", "llm-d")
    sent = [_priority(name, Hints("r", priority=p)) for p in (-7, -1, 3, 900)]
    assert sent == sorted(sent, reverse=not lower_first)


def _priority(name: str, hints: Hints) -> int:
    body: Any = DIALECTS[name].hint(hints).body
    if name == "dynamo":
        body = body["nvext"]["agent_hints"]
    if name == "flowserve":
        body = body["flowserve"]
    priority: int = body["priority"]
    return priority


def test_sglang_may_be_told_to_schedule_low_values_first() -> None:
    low = of_low_first(DIALECTS["sglang"])
    assert low.hint(Hints("r", priority=-7)).body["priority"] == -7
    assert of_low_first(DIALECTS["vllm"]) is DIALECTS["vllm"]


def test_priorities_stay_inside_what_the_field_holds() -> None:
    for priority in (1 << 62, -(1 << 62)):
        hints = Hints("r", priority=priority)
        assert abs(_priority("dynamo", hints)) < 1 << 31
        assert abs(_priority("flowserve", hints)) <= 1_000
        assert abs(_priority("vllm", hints)) < 1 << 63


# --- what is generated -----------------------------------------------------------------------------------------------


def body_of(name: str, **fields: Any) -> dict[str, Any]:
    sampling = Sampling(**{key: fields.pop(key) for key in list(fields) if key in Sampling.__dataclass_fields__})
    call = Call("c", (Segment((5, 6), Origin.VALUE, "x"),), sampling, **fields)
    return token_body(call, DIALECTS[name], "tiny", sampling.n)


def test_constraints_in_vllms_words() -> None:
    for field, name in (("schema", "json"), ("regex", "regex"), ("grammar", "grammar")):
        value: Any = {"type": "object"} if field == "schema" else "a"
        assert body_of("vllm", **{field: value})["structured_outputs"] == {name: value}


def test_constraints_in_sglangs_words() -> None:
    assert body_of("sglang", schema={"type": "object"})["json_schema"] == '{"type": "object"}'
    assert body_of("sglang", regex="a+")["regex"] == "a+"
    assert DIALECTS["sglang"].constraints == {"schema", "regex"}, "its grammars are EBNF, ours are Lark's"


def test_schemas_in_everybodys_words() -> None:
    form = body_of("openai", schema={"type": "object"})["response_format"]
    assert form == {
        "type": "json_schema",
        "json_schema": {"name": "output", "schema": {"type": "object"}, "strict": True},
    }


def test_a_servers_own_defaults_never_choose() -> None:
    """vLLM and SGLang take defaults from generation_config.json for whatever is left out."""
    for name in ("vllm", "sglang", "llm-d"):
        body = body_of(name, temperature=0.5, top_p=0.9, seed=3)
        assert body["repetition_penalty"] == 1.0
        assert body["min_p"] == body["presence_penalty"] == body["frequency_penalty"] == 0.0
        assert body["top_k"] == {"vllm": 0, "sglang": -1, "llm-d": 0}[name]
        assert (body["temperature"], body["top_p"], body["seed"]) == (0.5, 0.9, 3)


def test_greedy_draws_nothing() -> None:
    body = body_of("vllm", temperature=0.0, top_p=0.3, top_k=7, seed=3)
    assert (body["top_p"], body["top_k"]) == (1.0, 0)
    assert "seed" not in body


def test_a_top_k_that_a_server_lacks_is_not_dropped_silently() -> None:
    with pytest.raises(Unsupported, match="top_k"):
        body_of("openai", temperature=1.0, top_k=7)
    assert "top_k" not in body_of("openai", temperature=0.0, top_k=7)
