"""Items of a list that a model is still writing: the scanner, and maps that begin with them."""

import json
from dataclasses import dataclass
from random import Random
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field

import flowserve as fs
from flowserve.config import RuntimeConfig
from flowserve.core.log import replay
from flowserve.core.step import step
from flowserve.engines.base import Call
from flowserve.engines.fake import FailAfter, FakeEngine
from flowserve.errors import EngineError, EngineLost
from flowserve.graphs.codec import from_spec, to_spec
from flowserve.graphs.shapes import SchemaShape, TypedShape
from flowserve.runtime import driver
from flowserve.runtime.items import ItemScanner, same
from flowserve.runtime.records import RunEvent
from flowserve.runtime.runner import Runtime
from flowserve.sim.explain import Explanation
from flowserve.sim.timeline import timeline

# --- where items end --------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('ab"\\[]{},: é\n'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('ab"\\,:', max_size=3), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.lists(st.text('ab"\\é', max_size=3), max_size=2)
BESIDE = st.dictionaries(st.text("xyz", min_size=1, max_size=2), VALUES, max_size=2)


def wrapped(items: list[Any], path: list[str], beside: list[dict[str, Any]]) -> Any:
    """A value in which `items` stand under the names of `path`, with other things around them."""
    value: Any = items
    for name, others in zip(reversed(path), beside, strict=False):
        keys = [*others, name]
        Random(len(keys)).shuffle(keys)
        value = {key: value if key == name else others[key] for key in keys}
    return value


def written(text: str, path: list[str], pieces: list[str]) -> list[Any]:
    assert "".join(pieces) == text
    scanner = ItemScanner(path)
    return [json.loads(item) for piece in pieces for item in scanner.push(piece)]


@settings(max_examples=300)
@given(
    items=st.lists(VALUES, max_size=5),
    path=NAMES,
    beside=st.lists(BESIDE, min_size=2, max_size=2),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    data=st.data(),
)
def test_the_scanner_finds_the_items_that_the_json_has_however_the_text_is_cut(
    items: list[Any],
    path: list[str],
    beside: list[dict[str, Any]],
    indent: int | None,
    ascii_only: bool,
    data: st.DataObject,
) -> None:
    text = json.dumps(wrapped(items, path, beside), indent=indent, ensure_ascii=ascii_only)
    assert written(text, path, [text]) == items
    assert written(text, path, list(text)) == items
    for place in range(0, len(text), max(1, len(text) // 16)):
        assert written(text, path, [text[:place], text[place:]]) == items
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert written(text, path, pieces) == items


@given(text=st.text('[]{}",:\\ ab1', max_size=40), path=st.sampled_from([[], ["a"], ["a", "b"]]))
def test_text_that_is_no_json_is_scanned_alike_however_it_is_cut(text: str, path: list[str]) -> None:
    scanner, whole = ItemScanner(path), ItemScanner(path).push(text)
    assert [item for char in text for item in scanner.push(char)] == whole


def test_an_item_is_told_with_the_character_that_ends_it() -> None:
    scanner = ItemScanner(["steps"])
    text = '{"n": 1, "steps": ["a", {"b": [2]}, 34 , [], "\\"]"], "more": ["no"]}'
    told = [(at, item) for at, char in enumerate(text) for item in scanner.push(char)]
    assert [item for _, item in told] == ['"a"', '{"b": [2]}', "34", "[]", '"\\"]"']
    assert [text[at] for at, _ in told] == ['"', "}", ",", "]", '"']


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("null", []),
        ('{"a": [1]}', []),
        ("[[1], [2]]", ["a"]),
        ('{"b": [1]}', ["a"]),
        ('{"b": {"a": [1]}}', ["a"]),
        ('{"a": {"a": [1]}}', ["a"]),
        ('{"a": "[1]"}', ["a"]),
        ('["a", [1]]', ["a"]),
        ('{"b": "a", "c": [1]}', ["a"]),
    ],
)
def test_what_stands_elsewhere_is_no_item(text: str, path: list[str]) -> None:
    assert ItemScanner(path).push(text) == []


# --- what they are ----------------------------------------------------------------------------------------------------


class Step(BaseModel):
    title: str
    weight: int = 1


class Outline(BaseModel):
    topic: str
    steps: list[Step] = Field(min_length=2)


@pytest.mark.parametrize(
    ("type_", "path", "text", "item"),
    [
        (list[Step], [], '{"title": "a"}', Step(title="a")),
        (tuple[int, ...], [], "3", 3),
        (Annotated[list[str], Field(min_length=2)], [], '"a"', "a"),
        (Outline, ["steps"], '{"title": "a", "weight": 2}', Step(title="a", weight=2)),
        (dict[str, list[int]], ["any"], "3", 3),
    ],
)
def test_items_have_the_type_that_they_have_in_the_list(type_: Any, path: list[str], text: str, item: Any) -> None:
    shape = TypedShape(type_).items(path)
    assert shape is not None and shape.loads(text) == item


@pytest.mark.parametrize(
    ("type_", "path"), [(str, []), (tuple[int, str], []), (set[int], []), (list[str] | None, []), (Outline, ["nope"])]
)
def test_what_is_no_list_of_items_that_are_alike_has_none(type_: Any, path: list[str]) -> None:
    assert TypedShape(type_).items(path) is None


def test_items_of_a_schema_follow_the_references_of_the_whole() -> None:
    whole = SchemaShape(
        {
            "type": "object",
            "properties": {"steps": {"$ref": "#/$defs/Steps"}},
            "$defs": {
                "Steps": {"type": "array", "items": {"$ref": "#/$defs/Step"}},
                "Step": {"type": "object", "properties": {"weight": {"type": "integer", "default": 7}}},
            },
        }
    )
    shape = whole.items(["steps"])
    assert shape is not None and shape.loads("{}") == {"weight": 7}
    with pytest.raises(ValueError, match="/weight"):
        shape.loads('{"weight": "much"}')
    assert whole.items([]) is None and whole.items(["others"]) is None


def test_values_are_the_same_only_where_nobody_could_tell_them_apart() -> None:
    assert same(Step(title="a"), Step(title="a")) and same([1, "a"], [1, "a"])
    for a, b in [(1, True), (1, 1.0), ([1], [True]), ({"a": 0}, {"a": False}), (Step(title="a"), {"title": "a"})]:
        assert not same(a, b)


# --- maps -------------------------------------------------------------------------------------------------------------


@fs.llm(max_tokens=256)
def list_steps(text: str) -> list[Step]:
    fs.prompt("Steps of {{ text }}")


@fs.llm(max_tokens=256, retry=2)
def outline(text: str) -> Outline:
    fs.prompt("Outline of {{ text }}")


@fs.llm(max_tokens=256)
def sorted_words(text: str) -> Annotated[list[str], AfterValidator(lambda words: sorted(words))]:
    fs.prompt("Words of {{ text }}")


class Report(BaseModel):
    risks: list[str]
    words: list[str]


@fs.llm(max_tokens=256, cache=True)
def report(text: str) -> Report:
    fs.prompt("Report on {{ text }}")


@fs.llm(max_tokens=32)
def expand(step: Step) -> str:
    fs.prompt("Expand {{ step.title }}")


@fs.llm(max_tokens=32)
def echo(word: str) -> str:
    fs.prompt("Echo {{ word }}")


@fs.workflow()
def of_list(text: str) -> list[str]:
    return expand.map(list_steps(text), concurrency=2)


@fs.workflow()
def of_field(text: str) -> list[str]:
    return expand.map(outline(text).steps)


@fs.workflow()
def of_sorted(text: str) -> list[str]:
    return echo.map(sorted_words(text))


@fs.workflow()
def of_two_fields(text: str) -> list[list[str]]:
    found = report(text)
    return [echo.map(found.risks), echo.map(found.words, concurrency=1), echo.map(found.words, max_width=9)]


STEPS = [{"title": f"part{n}", "weight": n} for n in range(6)]
BROKEN = json.dumps({"steps": [{"title": "wrong"}, {"title": "bad"}], "topic": 5})
"""Items that fit, in an outline that does not."""


def last_word(call: Call) -> str:
    return call.prompt_text.split()[-1].removesuffix("<|end|><|assistant|>")


def expanded(call: Call) -> str:
    """Fails for what a model calls bad."""
    word = last_word(call)
    if word == "bad":
        raise EngineError("no such part")
    return f"about {word}"


@dataclass
class Seen:
    """What became of one run."""

    result: Any
    events: list[RunEvent]
    calls: int

    def place(self, type: str, node: str) -> int:
        """Of the first such event."""
        return next(event.seq for event in self.events if event.type == type and event.node == node)

    def count(self, type: str) -> int:
        return sum(event.type == type for event in self.events)


def seen(workflow: Any, replies: dict[str, Any], passes: bool = True) -> Seen:
    with fs.testing.engine(replies, config=RuntimeConfig(passes=passes)) as session:
        events = list(workflow.stream("x"))
        return Seen(events[-1].data.get("result", events[-1].data.get("error")), events, len(session.calls))


@pytest.mark.parametrize(
    ("workflow", "writer", "reply"),
    [(of_list, "list_steps", STEPS), (of_field, "outline", {"topic": "t", "steps": STEPS})],
)
def test_items_are_worked_on_while_the_list_is_written_and_the_results_are_the_same(
    workflow: Any, writer: str, reply: Any
) -> None:
    replies = {writer: json.dumps(reply), "expand": expanded}
    early, late = seen(workflow, replies), seen(workflow, replies, passes=False)
    assert early.result == late.result == [f"about part{n}" for n in range(6)]
    assert early.place("node.completed", "expand[0]") < early.place("node.completed", writer)
    assert late.place("node.started", "expand[0]") > late.place("node.completed", writer)
    assert early.calls == late.calls == 7


def test_a_map_loaded_from_a_spec_streams_too() -> None:
    loaded = from_spec(to_spec(of_field.program))
    assert [str(change) for change in loaded.rewriting.changes] == [
        "stream: expand.map takes items of outline while they are written"
    ]
    replies = {"outline": json.dumps({"topic": "t", "steps": [{"title": "a"}, {"title": "b"}]}), "expand": expanded}
    with fs.testing.engine(replies) as session:
        events = list(session.runner.stream(loaded, {"text": "x"}))
    assert events[-1].data["result"] == ["about a", "about b"]
    order = [(event.type, event.node) for event in events]
    assert order.index(("node.started", "expand[0]")) < order.index(("node.completed", "outline"))


async def test_several_maps_take_items_of_one_call_and_a_run_that_shares_its_answer_gets_the_same() -> None:
    engine = FakeEngine({"report": json.dumps({"risks": ["a", "b"], "words": ["c", "d", "e"]}), "echo": last_word})
    runtime = Runtime([engine])
    await runtime.start()
    runs = [await runtime.submit(of_two_fields.program, {"text": "x"}) for _ in range(2)]
    for run in runs:
        assert await run.result() == [["a", "b"], ["c", "d", "e"], ["c", "d", "e"]]
    assert len([call for call in engine.calls if call.meta["node"] == "report"]) == 1
    assert runtime.early_frames()[0] > 3 and runtime.early_frames()[1] == 0
    await runtime.aclose()


def test_what_was_begun_with_a_list_that_was_void_is_dropped_and_leaves_no_trace_in_the_result() -> None:
    good = json.dumps({"topic": "t", "steps": STEPS[:2]})
    found = seen(of_field, {"outline": [BROKEN, good], "expand": expanded})
    assert found.result == ["about part0", "about part1"]
    assert found.count("node.retrying") == 1
    assert found.place("node.started", "expand[0]") < found.place("node.retrying", "outline")


def test_a_call_that_breaks_off_in_its_list_is_made_again_with_all_its_items() -> None:
    half = json.dumps({"topic": "t", "steps": STEPS})[:90]
    good = json.dumps({"topic": "t", "steps": STEPS[3:]})
    replies = {"outline": [FailAfter(half, EngineLost("gone")), good], "expand": expanded}
    found = seen(of_field, replies)
    assert found.result == ["about part3", "about part4", "about part5"]
    assert found.place("node.started", "expand[0]") < found.place("node.retrying", "outline")


def test_a_list_that_its_type_changes_is_mapped_as_it_is_in_the_end() -> None:
    found = seen(of_sorted, {"sorted_words": '["b", "c", "a"]', "echo": last_word})
    assert found.result == ["a", "b", "c"]
    assert found.place("node.started", "echo[0]") < found.place("node.completed", "sorted_words")


def test_a_name_that_is_written_twice_means_the_second_as_in_json() -> None:
    text = '{"topic": "t", "steps": [{"title": "a"}, {"title": "b"}], "steps": [{"title": "c"}, {"title": "d"}]}'
    assert seen(of_field, {"outline": text, "expand": expanded}).result == ["about c", "about d"]


@pytest.mark.parametrize("passes", [True, False])
def test_a_failing_item_fails_the_run_as_without_streaming(passes: bool) -> None:
    reply = json.dumps([{"title": "good"}, {"title": "bad"}, *STEPS])
    found = seen(of_list, {"list_steps": reply, "expand": expanded}, passes)
    assert found.events[-1].type == "run.failed"
    assert found.result["type"] == "EngineError" and "no such part" in found.result["message"]


def test_a_list_that_never_gets_well_fails_the_run_by_the_call_that_wrote_it() -> None:
    found = seen(of_field, {"outline": BROKEN, "expand": expanded})
    assert found.events[-1].type == "run.failed" and found.result["type"] == "OutputInvalid"


async def test_the_log_of_a_run_that_streams_replays_to_the_same_commands_and_is_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live: list[Any] = []

    def watched(state: Any, event: Any, now: float) -> Any:
        live.append(step(state, event, now))
        return list(live[-1])

    monkeypatch.setattr(driver, "step", watched)
    lines: list[str] = []
    good = json.dumps({"topic": "t", "steps": STEPS})
    runtime = Runtime([FakeEngine({"outline": [BROKEN, good], "expand": expanded})], log_line=lines.append)
    await runtime.start()
    run = await runtime.submit(of_field.program, {"text": "x"})
    assert await run.result() == [f"about part{n}" for n in range(6)]
    streamed, dropped = runtime.early_frames()
    await runtime.aclose()
    assert list(replay(lines)) == live
    assert any('"is":"Items"' in line for line in lines)
    assert streamed > dropped > 0
    told = Explanation(timeline(lines, run.id))
    assert sum(told.shares.values()) == pytest.approx(told.timeline.ended)
    assert "outline" in {piece.span.label for piece in told.path}
    assert all(slack >= 0 for slack in told.slack.values())
