"""What an author allows of reuse, and what was done of it: from the node to the engine, and back to the reader."""

from contextlib import aclosing
from typing import Any

import pytest

import flowserve as fs
from flowserve.cachestore.segments import Provenance, Quality
from flowserve.core.events import EngineChanged, Measured
from flowserve.core.log import read
from flowserve.engines.base import Call, Origin, Segment
from flowserve.engines.fake import FakeEngine
from flowserve.errors import InputError
from flowserve.graphs.codec import from_spec, to_spec
from flowserve.runtime.pool import PASTED
from flowserve.runtime.records import RunEvent, SubmitOptions, summed
from flowserve.runtime.residency import PrefixNumbers
from flowserve.runtime.runner import Runtime

PASSAGES = [fs.Doc("one two", document="a.md", metadata={"version": "7"}), fs.Doc("three", document="b.md")]


def asking(**options: Any) -> Any:
    @fs.llm(max_tokens=8, **options)
    def answer(question: str, passages: list[fs.Doc]) -> str:
        fs.prompt("{% for p in passages %}{{ p.text }}\n{% endfor %}Question: {{ question }}", system="Be brief.")

    @fs.workflow()
    def ask(question: str, passages: list[fs.Doc]) -> str:
        return answer(question, passages)

    return ask


async def events_of(
    workflow: Any, engine: FakeEngine, lines: list[str] | None = None, **options: Any
) -> list[RunEvent]:
    runtime = Runtime([engine], log_line=None if lines is None else lines.append)
    await runtime.start()
    async with aclosing(runtime):
        inputs = {"question": "why", "passages": PASSAGES}
        run = await runtime.submit(workflow.program, inputs, SubmitOptions(**options))
        await run.result()
        return list(run.log.events)


async def call_of(workflow: Any, **options: Any) -> Call:
    engine = FakeEngine("ok")
    await events_of(workflow, engine, **options)
    (call,) = engine.calls
    return call


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({}, Quality.EXACT),
        ({"quality": "fast"}, Quality.FAST),
        ({"reuse": "balanced"}, Quality.BALANCED),
        ({"quality": "fast", "reuse": "exact"}, Quality.EXACT),
    ],
)
async def test_a_node_that_does_not_speak_of_reuse_allows_what_its_quality_does(
    declared: dict[str, str], expected: Quality
) -> None:
    assert (await call_of(asking(**declared))).reuse is expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("exact", Quality.EXACT), ("balanced", Quality.BALANCED), ("fast", Quality.BALANCED)],
)
async def test_a_run_may_ask_for_less_than_its_author_allows_and_never_gets_more(asked: str, expected: Quality) -> None:
    workflow = asking(reuse="balanced")
    assert (await call_of(workflow, overrides={"answer": {"reuse": asked}})).reuse is expected


async def test_a_run_that_asks_for_an_unknown_class_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        await call_of(asking(), overrides={"*": {"reuse": "always"}})
    assert caught.value.problems == (("/overrides/*/reuse", "expected one of exact, balanced, fast; got 'always'"),)


async def test_a_passage_is_one_segment_that_says_which_document_it_is_of_and_whether_it_may_move() -> None:
    call = await call_of(asking(any_order="passages"))
    found = [s for s in call.segments if s.origin is Origin.CHUNK]
    assert [(s.text, s.document, s.version, s.free) for s in found] == [
        ("one two\n", "a.md", "7", True),
        ("three\n", "b.md", "", True),
    ]
    assert not any(s.free for s in (await call_of(asking())).segments)


def test_reuse_survives_the_round_trip_and_a_node_without_it_has_the_spec_that_it_had() -> None:
    spec = to_spec(asking(reuse="fast").program)
    assert from_spec(spec).plan.llms[0].reuse == "fast"
    assert "'reuse'" not in repr(to_spec(asking().program))


def test_advice_says_that_a_prompt_without_a_loop_has_nothing_to_reuse() -> None:
    @fs.llm(max_tokens=8, reuse="balanced")
    def answer(question: str) -> str:
        fs.prompt("Question: {{ question }}")

    @fs.workflow()
    def ask(question: str) -> str:
        return answer(question)

    assert "a loop over passages in the prompt" in {problem.expected for problem in ask.check()}
    assert "a loop over passages in the prompt" not in {problem.expected for problem in asking(reuse="fast").check()}


async def test_the_events_of_a_run_tell_what_was_exact_pasted_and_recomputed() -> None:
    told = Provenance(exact=3, pasted=2, recomputed=9, policy="first_k")
    events = await events_of(asking(reuse="balanced"), FakeEngine("ok", provenance=told))
    (node,) = [event for event in events if event.type == "node.completed"]
    assert node.data["usage"]["reuse"] == {"exact": 3, "pasted": 2, "recomputed": 9, "policy": "first_k"}
    assert node.data["usage"]["cached_tokens"] == 3, "only what is the same answer"
    assert events[-1].data["usage"]["reuse"] == node.data["usage"]["reuse"]


async def test_nothing_is_said_where_no_engine_tells() -> None:
    events = await events_of(asking(reuse="balanced"), FakeEngine("ok"))
    assert "reuse" not in events[-1].data["usage"]


def test_what_several_calls_reused_is_added_up_and_their_policies_are_named() -> None:
    calls = [Provenance(1, 2, 3, "hkvd"), None, Provenance(10, 20, 30, "first_k"), Provenance(5, 0, 5)]
    assert summed(calls) == Provenance(16, 22, 38, "first_k, hkvd")
    assert summed([None]) is None


async def test_the_scheduler_hears_of_passages_that_may_be_pasted_and_of_engines_that_paste() -> None:
    seen = {}
    for name, engine in (("balanced", FakeEngine("ok", chunk_reuse=["first_k"])), ("exact", FakeEngine("ok"))):
        lines: list[str] = []
        await events_of(asking(reuse=name), engine, lines)
        (call,) = engine.calls
        events = [event for _, event in read(lines)[1]]
        [measured] = [event for event in events if isinstance(event, Measured)]
        [changed] = [event for event in events if isinstance(event, EngineChanged) and event.up]
        seen[name] = measured.passages, changed.pasted
    starts = [
        sum(len(s.ids) for s in call.segments[:n]) for n, s in enumerate(call.segments) if s.origin is Origin.CHUNK
    ]
    passages, pasted = seen["balanced"]
    assert [passage.start for passage in passages] == starts
    assert [passage.tokens for passage in passages] == [len(s.ids) for s in call.segments if s.origin is Origin.CHUNK]
    assert pasted == PASTED and seen["exact"] == ((), 0.0)


def test_a_passage_has_one_number_wherever_it_stands_and_another_for_another_tenant() -> None:
    numbers = PrefixNumbers(64)
    first, second = Segment((1, 2), Origin.CHUNK), Segment((3,), Origin.CHUNK)
    mine, yours = numbers.root("me"), numbers.root("you")
    there = numbers.passages(mine, [Segment((7,) * 9, Origin.TEMPLATE), first, second])
    here = numbers.passages(mine, [second, first])
    assert [(p.start, p.tokens) for p in there] == [(9, 2), (11, 1)]
    assert [p.number for p in there] == [p.number for p in reversed(here)]
    assert not {p.number for p in there} & {p.number for p in numbers.passages(yours, [first, second])}
