"""Tool calls as constrained JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from flowserve.engines.fill import fill
from flowserve.engines.tools import AnswerStream, Named, Tool, ToolCall, ToolFormat, calls_message
from flowserve.errors import InputError, OutputInvalid, UnknownName


class Place(BaseModel):
    city: str
    near: list["Place"] = []


class Arguments(BaseModel):
    place: Place
    days: int = 1


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("weather", "Weather of a city.", CITY)
TRAVEL = Tool("travel", "Plans a journey.", Arguments.model_json_schema())
TOOLS = (WEATHER, TRAVEL)
CALL = {"tool": "weather", "arguments": {"city": "Paris"}}


def accepts(schema: dict[str, Any] | None, value: Any) -> bool:
    assert schema is not None
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema).is_valid(value)


def test_auto_allows_any_tool_or_an_answer() -> None:
    schema = ToolFormat(TOOLS).schema
    assert accepts(schema, CALL)
    assert accepts(schema, {"answer": "7 degrees"})
    assert not accepts(schema, {"tool": "unknown", "arguments": {}})
    assert not accepts(schema, {"tool": "weather", "arguments": {"town": "Paris"}})


def test_required_and_named_choices_leave_no_way_to_answer() -> None:
    assert not accepts(ToolFormat(TOOLS, "required").schema, {"answer": "x"})
    named = ToolFormat(TOOLS, Named("travel")).schema
    assert not accepts(named, CALL)
    assert accepts(named, {"tool": "travel", "arguments": {"place": {"city": "Oslo"}}})


def test_no_choice_of_tools_is_free_text_or_the_output_schema() -> None:
    assert ToolFormat(TOOLS, "none").schema is None
    assert ToolFormat(TOOLS, "none").instructions == ""
    assert ToolFormat(TOOLS, "none").parse("{free").answer == "{free"
    assert ToolFormat((), "auto", output=CITY).parse('{"city": "Oslo"}').answer == {"city": "Oslo"}


def test_references_inside_a_tools_schema_still_resolve() -> None:
    schema = ToolFormat(TOOLS).schema
    deep = {"place": {"city": "Oslo", "near": [{"city": "Moss", "near": []}]}}
    assert accepts(schema, {"tool": "travel", "arguments": deep})
    deep["place"]["near"] = [{"town": "Moss"}]
    assert not accepts(schema, {"tool": "travel", "arguments": deep})


def test_a_typed_answer_must_fit_its_schema() -> None:
    form = ToolFormat(TOOLS, output=Place.model_json_schema())
    assert accepts(form.schema, {"answer": {"city": "Oslo"}})
    assert not accepts(form.schema, {"answer": "Oslo"})
    assert form.parse('{"answer": {"city": "Oslo"}}').answer == {"city": "Oslo"}
    with pytest.raises(OutputInvalid, match="answer"):
        form.parse('{"answer": {"town": "Oslo"}}')


def test_parallel_calls_come_as_a_list_with_a_bound() -> None:
    form = ToolFormat(TOOLS, parallel=True, max_parallel=2)
    assert form.parse(json.dumps([CALL, CALL])).calls == (ToolCall("weather", {"city": "Paris"}),) * 2
    assert accepts(form.schema, [CALL])
    assert not accepts(form.schema, [CALL] * 3)
    with pytest.raises(OutputInvalid, match="1 to 2"):
        form.parse(json.dumps([CALL] * 3))


@pytest.mark.parametrize(
    "text",
    ['{"tool": "weather"', '{"tool": "nothing", "arguments": {}}', '{"tool": "weather", "arguments": {}}', "[]", "7"],
)
def test_output_that_is_no_turn_says_what_is_wrong(text: str) -> None:
    with pytest.raises(OutputInvalid):
        ToolFormat(TOOLS).parse(text)


def test_words_from_an_unconstrained_engine_are_an_answer_and_fences_are_removed() -> None:
    assert ToolFormat(TOOLS).parse("It is cold.").answer == "It is cold."
    assert ToolFormat(TOOLS).parse(f"```json\n{json.dumps(CALL)}\n```").calls[0].name == "weather"
    with pytest.raises(OutputInvalid):
        ToolFormat(TOOLS, "required").parse("It is cold.")


def test_wrong_choices_are_refused() -> None:
    with pytest.raises(UnknownName, match="weather"):
        ToolFormat(TOOLS, Named("nothing"))
    with pytest.raises(InputError):
        ToolFormat((), "required")
    with pytest.raises(InputError, match="same name"):
        ToolFormat((WEATHER, WEATHER))


def test_instructions_name_each_tool_and_the_form() -> None:
    text = ToolFormat(TOOLS).instructions
    assert all(word in text for word in ("weather", "travel", "Plans a journey.", '"arguments"', '{"answer": <text>}'))


def test_earlier_calls_are_shown_in_the_form_the_model_writes() -> None:
    assert ToolFormat(TOOLS).parse(calls_message([ToolCall("weather", {"city": "Paris"})]).text).calls


def test_the_filler_makes_valid_turns() -> None:
    form = ToolFormat(TOOLS)
    assert fill(form.schema or {}, 'Use weather for "Paris"') == CALL
    assert fill(form.schema or {}, 'Use weather for "Paris"', prefer_answer=True) == {"answer": "Paris"}
    assert form.parse(json.dumps(fill(form.schema or {}, 'travel to "Oslo"'))).calls[0].name == "travel"


@given(st.text(), st.lists(st.integers(1, 5)), st.booleans())
def test_an_answer_is_shown_as_it_is_written(answer: str, cuts: list[int], ascii_only: bool) -> None:
    whole = json.dumps({"answer": answer}, ensure_ascii=ascii_only)
    stream = AnswerStream()
    shown = ""
    at = 0
    for cut in [*cuts, len(whole)]:
        shown += stream.push(whole[at : at + cut])
        at += cut
        assert answer.startswith(shown)
    assert shown == answer


def test_a_tool_call_shows_nothing() -> None:
    assert AnswerStream().push(json.dumps(CALL)) == ""
