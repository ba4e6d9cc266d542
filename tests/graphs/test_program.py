"""Values at the borders of a program, and values of expressions inside it."""

import math
from dataclasses import dataclass
from datetime import date
from enum import Enum
from types import ModuleType
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

import flowserve.graphs as fs
from flowserve.errors import InputError, OutputInvalid, ToolError, UnknownName, ValueInvalid
from flowserve.graphs import evaluate, shapes
from flowserve.graphs.plan import Arg, Const, Get, Kind, Node, Op, Output, Param, Source
from flowserve.ids import BlockId, NodeId


class Colour(Enum):
    RED = "red"


class Draft(BaseModel):
    text: str
    score: float = 0.0


@dataclass
class Point:
    x: int
    y: int = 0


@fs.tool
def place(point: Point, names: list[str], scale: float = 1.0) -> Point:
    return point


@fs.tool
async def later(day: date) -> dict[str, int]:
    return {}


@fs.llm
def judge(draft: Draft) -> Literal["good", "bad"]:
    fs.prompt("{{ draft.text }}")


@fs.workflow
def everything(draft: Draft, point: Point, pair: tuple[int, str], day: date, words: list[str], limit: int = 3) -> str:
    place(point, words)
    later(day)
    return judge(draft)


PROGRAM = everything.program
GOOD: dict[str, Any] = {
    "draft": {"text": "t", "score": 1},
    "point": {"x": 1},
    "pair": [1, "a"],
    "day": "2026-11-20",
    "words": ["w"],
}


def test_json_input_becomes_typed_values_in_the_order_of_the_parameters() -> None:
    values = PROGRAM.bind_input(GOOD)
    assert values == (Draft(text="t", score=1.0), Point(1), (1, "a"), date(2026, 11, 20), ["w"], 3)


def test_python_values_are_taken_as_they_are() -> None:
    draft = Draft(text="t")
    values = PROGRAM.bind_input({**GOOD, "draft": draft, "point": Point(2), "pair": (1, "a"), "limit": 4})
    assert values[0] is draft and values[1] == Point(2) and values[5] == 4


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"draft": {"score": 1}}, "/draft/text"),
        ({"draft": {"text": 5}}, "/draft/text"),
        ({"draft": "text"}, "/draft"),
        ({"point": {"x": "1"}}, "/point/x"),
        ({"pair": [1]}, "/pair/1"),
        ({"words": "w"}, "/words"),
        ({"words": ["a", 1]}, "/words/1"),
        ({"limit": "3"}, "/limit"),
        ({"limit": True}, "/limit"),
        ({"limit": 3.5}, "/limit"),
        ({"draft": {"text": "t", "score": math.nan}}, "/draft"),
        ({"a/b~": 1}, "/a~1b~0"),
        ({"limit": object()}, "/limit"),
    ],
)
def test_input_that_does_not_fit_is_refused_with_a_pointer(change: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InputError) as caught:
        PROGRAM.bind_input({**GOOD, **change})
    assert any(where.startswith(pointer) for where, _ in caught.value.problems), caught.value.problems


def test_all_problems_of_an_input_come_together() -> None:
    with pytest.raises(InputError) as caught:
        PROGRAM.bind_input({"limit": "x", "other": 1})
    found = [where for where, _ in caught.value.problems]
    assert found == ["/draft", "/point", "/pair", "/day", "/words", "/limit", "/other"]
    with pytest.raises(InputError, match="expected an object"):
        PROGRAM.bind_input([1])  # type: ignore[arg-type]  # pyright: ignore


def test_the_text_of_a_model_becomes_its_declared_type(snippets: ModuleType) -> None:
    assert PROGRAM.parse_output("judge", '"good"') == "good"
    rag = snippets.rag.program
    assert rag.parse_output("answer", ' {"text": "x", "citations": [1]} ') == snippets.Answer(text="x", citations=[1])
    assert snippets.summary.program.parse_output("combine", '{"not": parsed') == '{"not": parsed'
    with pytest.raises(OutputInvalid, match="/citations"):
        rag.parse_output("answer", '{"text": "x", "citations": ["1"]}')
    for text in ("", "good", '"neither"', "[" * 100_000, '{"a": Infinity}'):
        with pytest.raises(OutputInvalid, match="^judge: the model's text does not fit"):
            PROGRAM.parse_output("judge", text)
    with pytest.raises(UnknownName, match="known: judge"):
        PROGRAM.parse_output("nosuch", "")


def test_arguments_of_tools_are_converted_and_completed() -> None:
    assert PROGRAM.arguments("place", {"point": {"x": 1}, "names": []}) == {
        "point": Point(1),
        "names": [],
        "scale": 1.0,
    }
    assert PROGRAM.arguments("later", {"day": "2026-01-02"}) == {"day": date(2026, 1, 2)}
    with pytest.raises(ToolError, match="/names: is required") as caught:
        PROGRAM.arguments("place", {"point": {"x": "a"}, "more": 1})
    assert "/point/x" in str(caught.value) and "/more: there is no such parameter" in str(caught.value)


def test_results_of_tools_are_checked() -> None:
    assert PROGRAM.checked("place", {"x": 3}) == Point(3)
    with pytest.raises(ToolError, match="returned something else than it declares"):
        PROGRAM.checked("place", "here")
    assert PROGRAM.is_async("later") and not PROGRAM.is_async("place")


def test_results_are_written_as_json() -> None:
    value = {
        "d": Draft(text="t"),
        "p": Point(1),
        "c": Colour.RED,
        "day": date(2026, 1, 2),
        "t": (1, None),
        "doc": fs.Doc("x"),
    }
    assert PROGRAM.dump(value) == {
        "d": {"text": "t", "score": 0.0},
        "p": {"x": 1, "y": 0},
        "c": "red",
        "day": "2026-01-02",
        "t": [1, None],
        "doc": {"text": "x", "id": "", "document": "", "score": 0.0, "metadata": {}},
    }
    for bad in (math.inf, [math.nan], {"a": Draft(text="", score=-math.inf)}, object(), len):
        with pytest.raises(ValueInvalid):
            PROGRAM.dump(bad)


def test_a_tools_schema_comes_from_its_signature() -> None:
    spec = place.spec
    assert spec.params["required"] == ["point", "names"]
    assert spec.params["properties"]["scale"] == {"type": "number", "default": 1.0}
    assert spec.params["properties"]["point"] == {"$ref": "#/$defs/Point"}
    assert spec.params["$defs"]["Point"]["properties"]["x"] == {"title": "X", "type": "integer"}
    assert spec.params["additionalProperties"] is False


class Frame:
    """A frame with given values."""

    def __init__(self, params: list[Any], outputs: list[Any]) -> None:
        self.params, self.outputs = params, outputs

    def param(self, block: BlockId, index: int) -> Any:
        return self.params[index]

    def output(self, node: NodeId) -> Any:
        return self.outputs[node]


FRAME = Frame(["p", 3], [Draft(text="t", score=8), {"k": [1, 2]}, Colour.RED, None, [fs.Doc("x")]])
CONSTS: tuple[Any, ...] = (8, "red", True, "k", [8])


def out(i: int) -> Output:
    return Output(NodeId(i))


@pytest.mark.parametrize(
    ("source", "value"),
    [
        (Const(0), 8),
        (Param(BlockId(0), 1), 3),
        (Get(out(0), "text"), "t"),
        (Get(Get(out(1), "k"), -1), 2),
        (Get(Get(out(4), 0), "text"), "x"),
        (Op("ge", (Get(out(0), "score"), Const(0))), True),
        (Op("eq", (out(2), Const(1))), True),
        (Op("ne", (out(2), Const(1))), False),
        (Op("in", (Const(0), Const(4))), True),
        (Op("len", (Get(out(1), "k"),)), 2),
        (Op("not", (Const(2),)), False),
        (Op("and", (Const(2), Op("not", (Const(2),)), Get(out(3), "never read"))), False),
        (Op("or", (Const(2), Get(out(3), "never read"))), True),
        (Op("list", (Const(0), Const(1))), [8, "red"]),
        (Op("tuple", (Const(0),)), (8,)),
        (Op("dict", (Const(3), Const(0))), {"k": 8}),
    ],
)
def test_expressions_have_values(source: Source, value: Any) -> None:
    assert evaluate.evaluate(source, CONSTS, FRAME) == value


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Get(out(0), "txt"), "expected the field 'txt'; Draft has: text, score"),
        (Get(out(3), "text"), "expected a value with the field 'text'; got None"),
        (Get(out(1), "x"), "expected the key 'x'; the object has: k"),
        (Get(Get(out(1), "k"), 5), "expected an item 5; the list has 2"),
        (Get(out(0), 0), "expected a list to take item 0 of; got Draft"),
        (Op("lt", (Const(0), Const(1))), "expected values that 'lt' can be asked of; got int and str"),
        (Op("len", (Const(0),)), "'len'"),
        (Op("and", (Const(0),)), "expected true or false; got int"),
    ],
)
def test_expressions_that_have_none_say_what_is_missing(source: Source, said: str) -> None:
    with pytest.raises(ValueInvalid) as caught:
        evaluate.evaluate(source, CONSTS, FRAME)
    assert said in str(caught.value)


def make(kind: Kind, args: tuple[Arg, ...], bodies: int = 0) -> Node:
    return Node(NodeId(0), "n", kind, BlockId(0), args, (), bodies=tuple(BlockId(i + 1) for i in range(bodies)))


def test_the_width_of_a_map_is_the_length_of_its_lists() -> None:
    node = make(Kind.MAP, ())
    assert evaluate.width(node, {"a": [1, 2], "b": (3, 4)}) == 2
    with pytest.raises(ValueInvalid, match="a has 1, b has 2"):
        evaluate.width(node, {"a": [1], "b": [1, 2]})
    with pytest.raises(ValueInvalid, match="expected a list to map over; got str"):
        evaluate.width(node, {"a": "text"})


def test_the_arm_of_a_switch_is_chosen_by_value() -> None:
    when, match = make(Kind.SWITCH, (), 2), make(Kind.SWITCH, (), 3)
    assert [evaluate.choose(when, {"value": v}) for v in (True, False)] == [0, 1]
    with pytest.raises(ValueInvalid, match="expected true or false; got int"):
        evaluate.choose(when, {"value": 1})
    cases = {"cases": ["red", 1]}
    assert [evaluate.choose(match, {"value": v, **cases}) for v in (Colour.RED, "red", 1, "x", True)] == [0, 0, 1, 2, 2]
    with pytest.raises(ValueInvalid, match="expected one of 'red', 1; got 'x'"):
        evaluate.choose(when, {"value": "x", **cases})


def test_a_loop_is_done_when_its_condition_holds(snippets: ModuleType) -> None:
    plan = snippets.essay.program.plan
    loop = next(n for n in plan.nodes if n.kind is Kind.LOOP)
    for score, done in [(7, False), (8, True)]:
        assert evaluate.done(plan, loop, Frame([snippets.Draft(text="", score=score)], [])) is done
    with pytest.raises(ValueInvalid, match="^loop: until: "):
        evaluate.done(plan, loop, Frame([None], []))


def test_an_argument_that_has_no_value_names_node_and_argument(snippets: ModuleType) -> None:
    plan = snippets.essay.program.plan
    node = Node(NodeId(0), "write", Kind.LLM, BlockId(0), (Arg("topic", Get(Param(BlockId(0), 0), "x")),), ())
    with pytest.raises(ValueInvalid, match="^write: argument 'topic': expected"):
        evaluate.arguments(plan, node, Frame([None], []))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_plain_json_is_written_as_it_is(value: Any) -> None:
    assert shapes.jsonable(value) == value
