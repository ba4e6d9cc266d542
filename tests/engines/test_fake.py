"""The scripted engine."""

import asyncio
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from flowserve.engines.base import Call, Finish, Origin, Output, Sampling, Segment
from flowserve.engines.chat import ChatFormat, Piece, PromptMessage
from flowserve.engines.fake import FailAfter, FakeEngine
from flowserve.engines.fill import fill
from flowserve.engines.manual_time import ManualTime
from flowserve.engines.tools import Tool, ToolFormat, calls_message, result_message
from flowserve.errors import EngineError


class Answer(BaseModel):
    text: str
    citations: list[int] = []


@dataclass
class Vote:
    choice: str


def call(engine: FakeEngine, node: str = "", text: str = "the prompt", **settings: Any) -> Call:
    fields = {name: settings.pop(name) for name in ("schema", "id") if name in settings}
    segment = Segment(tuple(engine.tokenizer.encode(text)), Origin.VALUE, text)
    fields.setdefault("id", f"{node}-{len(engine.calls)}")
    return Call(segments=(segment,), sampling=Sampling(**settings), meta={"node": node} if node else {}, **fields)


async def run(engine: FakeEngine, wanted: Call) -> list[Output]:
    return [output async for output in engine.generate(wanted)]


async def said(engine: FakeEngine, node: str = "", **settings: Any) -> str:
    return "".join(output.text for output in await run(engine, call(engine, node, **settings)))


async def test_replies_are_found_by_node_name() -> None:
    engine = FakeEngine(
        {"plan": "the plan", "answer": Answer(text="42", citations=[1]), "vote": Vote("a"), "*": {"x": 1}}
    )
    assert await said(engine, "plan") == "the plan"
    assert json.loads(await said(engine, "answer")) == {"text": "42", "citations": [1]}
    assert json.loads(await said(engine, "outer/vote_2")) == {"choice": "a"}
    assert json.loads(await said(engine, "other")) == {"x": 1}
    assert [c.meta["node"] for c in engine.calls] == ["plan", "answer", "outer/vote_2", "other"]


async def test_a_list_gives_one_reply_per_call_and_says_when_it_is_used_up() -> None:
    engine = FakeEngine({"a": ["first", ValueError("boom"), "third"]})
    assert await said(engine, "a") == "first"
    with pytest.raises(ValueError, match="boom"):
        await said(engine, "a")
    assert await said(engine, "a") == "third"
    with pytest.raises(EngineError, match="has 3 replies; this is call 4"):
        await said(engine, "a")


async def test_a_function_sees_the_call() -> None:
    engine = FakeEngine(lambda wanted: f"{wanted.prompt_text}!")
    assert await said(engine, text="hey") == "hey!"


async def test_one_list_serves_all_calls_in_turn() -> None:
    engine = FakeEngine(["one", "two"])
    assert [await said(engine, "x"), await said(engine, "y")] == ["one", "two"]


async def test_an_engine_can_die_in_mid_stream() -> None:
    engine = FakeEngine({"a": FailAfter("some words came", EngineError("gone"))})
    shown = ""
    with pytest.raises(EngineError, match="gone"):
        async for output in engine.generate(call(engine, "a")):
            shown += output.text
    assert shown == "some words came"
    assert engine.status().running == 0
    assert engine.aborted == []


async def test_delays_pass_on_the_manual_clock_alone() -> None:
    clock = ManualTime()
    engine = FakeEngine({"a": "x y", "b": "z"}, delays={"a": 5.0, "b": 2.0}, clock=clock, token_delay_s=1.0)
    ends: list[tuple[str, float]] = []

    async def one(node: str) -> None:
        await said(engine, node)
        ends.append((node, clock.now()))

    async with asyncio.TaskGroup() as group:
        group.create_task(one("a"))
        group.create_task(one("b"))
        while clock.sleeping < 2:
            await asyncio.sleep(0)
        assert clock.next_due == 2.0
        for _ in range(8):
            clock.advance(1.0)
            for _ in range(10):
                await asyncio.sleep(0)
    assert ends == [("b", 2.0), ("a", 6.0)]


async def test_abort_wakes_a_call_that_hangs() -> None:
    engine = FakeEngine("never", delays=math.inf)
    wanted = call(engine, id="stuck")
    task = asyncio.create_task(run(engine, wanted))
    while not engine.status().running:
        await asyncio.sleep(0)
    await engine.abort("stuck")
    assert (await task)[-1].finish is Finish.ABORT
    assert engine.aborted == ["stuck"]


async def test_what_is_not_scripted_is_made_up_the_same_each_time() -> None:
    engine = FakeEngine()
    assert await said(engine, text="Tell a joke") == await said(engine, text="Tell a joke") == "ok: Tell a joke"
    value = json.loads(await said(engine, text='About "Krekol".', schema=Answer.model_json_schema()))
    assert value == {"text": "Krekol"}


async def test_it_plays_an_agent_tool_then_answer() -> None:
    engine = FakeEngine()
    tools = ToolFormat(
        [
            Tool(
                "add",
                "Adds.",
                {
                    "type": "object",
                    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                    "required": ["a", "b"],
                },
            )
        ]
    )
    form = ChatFormat(engine.tokenizer)
    system = PromptMessage("system", (Piece(tools.instructions, Origin.TEMPLATE),))
    user = PromptMessage("user", (Piece("Use add on 3 and 4."),))

    async def turn(*messages: PromptMessage) -> Any:
        wanted = Call(f"t{len(engine.calls)}", form.segments([system, *messages]), schema=tools.schema)
        return tools.parse("".join(output.text for output in await run(engine, wanted)))

    first = await turn(user)
    assert [(c.name, c.arguments) for c in first.calls] == [("add", {"a": 3, "b": 4})]
    last = await turn(user, calls_message(first.calls), result_message("add", "7"))
    assert not last.calls
    assert isinstance(last.answer, str)


# --- filling -----------------------------------------------------------------------------------------


class Inner(BaseModel):
    level: int = Field(ge=3, le=9)
    share: float = Field(gt=0, lt=1)


class Outer(BaseModel):
    kind: str = Field(pattern="^(?:[a-z]+)$", min_length=2, max_length=5)
    inner: list[Inner] = Field(min_length=2)
    choice: Inner | None
    pair: tuple[int, str]
    even: int = Field(multiple_of=4, ge=5)
    flag: bool


def test_nested_models_with_bounds_are_filled() -> None:
    value = fill(Outer.model_json_schema(), 'of the "long kind" or "abc", with 7, 0.5, 1 and 12')
    filled = Outer.model_validate(value)
    assert filled.kind == "abc"
    assert len(filled.inner) == 2
    assert filled.inner[0].level == 7
    assert filled.inner[0].share == 0.5
    assert filled.even == 12


def test_a_schema_that_requires_itself_is_refused() -> None:
    with pytest.raises(EngineError, match="requires itself"):
        fill(
            {
                "$ref": "#/$defs/a",
                "$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}},
            }
        )


def test_what_cannot_be_made_up_is_an_error_and_not_a_wrong_value() -> None:
    with pytest.raises(EngineError, match="Give the node a reply"):
        fill({"type": "string", "pattern": "^[0-9]{4}-[A-Z]{3}$"})


SCHEMAS = st.recursive(
    st.one_of(
        st.builds(
            lambda lo, n: {"type": "integer", "minimum": lo, "maximum": lo + n}, st.integers(-50, 50), st.integers(0, 9)
        ),
        st.builds(
            lambda lo: {"type": "number", "exclusiveMinimum": lo, "exclusiveMaximum": lo + 0.5}, st.floats(-9, 9)
        ),
        st.builds(
            lambda lo, n: {"type": "string", "minLength": lo, "maxLength": lo + n}, st.integers(0, 9), st.integers(0, 9)
        ),
        st.sampled_from(
            [
                {"type": "boolean"},
                {"type": "null"},
                {"enum": [3, "x"]},
                {"const": {"a": 1}},
                {"type": ["null", "string"]},
            ]
        ),
    ),
    lambda inner: st.one_of(
        st.builds(lambda item, n: {"type": "array", "items": item, "minItems": n}, inner, st.integers(0, 3)),
        st.builds(
            lambda parts: {"type": "object", "properties": parts, "required": sorted(parts)},
            st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda options: {"allOf": options}, st.lists(inner, min_size=1, max_size=1)),
    ),
    max_leaves=8,
)


@given(SCHEMAS, st.sampled_from(["", 'the "word" 7', '"a" "bb" "ccc" -3 4.25 12']))
def test_filled_values_satisfy_random_schemas(schema: dict[str, Any], prompt: str) -> None:
    value = fill(schema, prompt)
    Draft202012Validator(schema).validate(value)
    assert fill(schema, prompt) == value
