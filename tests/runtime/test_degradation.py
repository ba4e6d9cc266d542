"""Degraded runs on the scripted engine: the value is right, and what was taken is named. Every model call takes ten seconds."""

from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

import flowserve as fs
from flowserve.cli.running import node_table
from flowserve.clock import ManualClock
from flowserve.engines.base import Call, Origin
from flowserve.engines.fake import FakeEngine
from flowserve.runtime.records import SubmitOptions
from flowserve.runtime.runner import Runtime
from flowserve.sim.explain import Explanation
from flowserve.sim.timeline import timeline

LEARNING = 8
"""Runs after which the scheduler believes what it has seen."""
NOTES = {"notes": ["the tide follows the moon", "the moon is far", "bread needs yeast", "the moon has no air"]}


@fs.llm(max_tokens=32)
def draft(topic: str) -> str:
    fs.prompt("Write about {{ topic }}")


@fs.llm(max_tokens=32)
def critic(text: str) -> str:
    fs.prompt("Improve {{ text }}")


@fs.llm(max_tokens=32, temperature=0.8)
def guess(question: str) -> str:
    fs.prompt("{{ question }}?")


@fs.llm(max_tokens=32)
def answer(question: str, passages: list[fs.Doc]) -> str:
    fs.prompt("{% for p in passages %}{{ p.text }}\n{% endfor %}Question: {{ question }}")


@fs.workflow()
def essay(topic: str) -> str:
    return fs.optional(critic, draft(topic), harm=0.5)


@fs.workflow()
def polished(topic: str) -> str:
    return fs.loop(critic, draft(topic), max_iters=3, least=1, harm=0.5)


@fs.workflow()
def vote(question: str) -> str:
    return guess.sample(4, vote="", least=2, harm=0.2)(question)


@fs.workflow()
def rag(question: str) -> str:
    return answer(question, fs.Index("notes", cache=True).search(question, k=3, least=1, harm=0.1))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def session(clock: ManualClock) -> Iterator[fs.testing.Session]:
    """One call at a time, of ten seconds each."""

    def slow(reply: str) -> Callable[[Call], str]:
        def answered(call: Call) -> str:
            clock.advance(10.0)
            return reply

        return answered

    texts = {"draft": "rough", "critic": "better", "guess": "maybe", "answer": "moon"}
    replies = {name: slow(reply) for name, reply in texts.items()}
    with fs.testing.engine(replies, indexes=NOTES, clock=clock, window=1) as made:
        yield made


def learn(workflow: Any, runs: int = LEARNING) -> None:
    for number in range(runs):
        workflow.run(f"moon {number}")


def names(session: fs.testing.Session, since: int) -> list[str]:
    return [call.meta["node"] for call in session.calls[since:]]


def test_an_optional_step_is_left_out_and_the_draft_is_the_result(session: fs.testing.Session) -> None:
    learn(essay)
    before = len(session.calls)
    run = essay.options(timeout_s=15).submit("tides")
    assert run.result() == "rough"
    assert names(session, before) == ["draft"]
    taken = {"node": "critic.optional", "what": "rounds", "from": 1, "to": 0, "harm": 0.5}
    assert run.snapshot().degraded == (taken,)
    events = list(run.events())
    [told] = [event for event in events if event.type == "node.degraded"]
    assert {"node": told.node, **told.data} == taken
    assert events[-1].data["degraded"] == [taken]


def test_a_run_in_time_is_whole_and_says_so(session: fs.testing.Session) -> None:
    learn(essay)
    run = essay.options(timeout_s=25).submit("tides")
    assert run.result() == "better"
    assert run.snapshot().degraded == () and list(run.events())[-1].data["degraded"] == []


def test_a_client_that_wants_all_of_it_gets_all_of_it(session: fs.testing.Session) -> None:
    learn(essay)
    run = essay.options(timeout_s=15, allow_degraded=False).submit("tides")
    assert run.result() == "better"
    assert run.snapshot().degraded == ()


def test_a_loop_makes_as_many_rounds_as_there_is_time_for(session: fs.testing.Session, clock: ManualClock) -> None:
    learn(polished)
    before = len(session.calls)
    run = polished.options(timeout_s=35).submit("tides")
    assert run.result() == "better"
    assert names(session, before) == ["draft", "critic"]
    assert [(taken["from"], taken["to"]) for taken in run.snapshot().degraded] == [(3, 1)]


def test_fewer_samples_are_drawn_and_the_vote_is_over_those(session: fs.testing.Session) -> None:
    learn(vote)
    before = len(session.calls)
    run = vote.options(timeout_s=35).submit("who")
    assert run.result() == "maybe"
    assert names(session, before) == ["guess", "guess"]
    assert run.snapshot().degraded == ({"node": "guess.sample", "what": "samples", "from": 4, "to": 2, "harm": 0.2},)


def test_a_search_gives_fewer_passages_which_nobody_who_has_time_is_given(session: fs.testing.Session) -> None:
    learn(rag)

    def passages() -> int:
        return sum(segment.origin is Origin.CHUNK for segment in session.calls[-1].segments)

    hurried = rag.options(timeout_s=9).submit("moon")
    assert hurried.result() == "moon" and passages() == 1
    assert [taken["what"] for taken in hurried.snapshot().degraded] == ["passages"]
    assert rag.run("moon") == "moon" and passages() == 3, "the search is cached by how much was asked for"
    again = rag.options(timeout_s=9).submit("moon")
    assert again.result() == "moon" and passages() == 1


async def test_tables_and_explanations_of_a_run_say_what_was_degraded(clock: ManualClock) -> None:
    def slow(call: Call) -> str:
        clock.advance(10.0)
        return "text"

    lines: list[str] = []
    runtime = Runtime([FakeEngine(slow)], clock=clock, log_line=lines.append)
    await runtime.start()
    try:
        for _ in range(LEARNING):
            await (await runtime.submit(essay.program, {"topic": "tides"})).result()
        run = await runtime.submit(essay.program, {"topic": "tides"}, SubmitOptions(timeout_s=15))
        await run.result()
    finally:
        await runtime.aclose()
    found = Explanation(timeline(lines, run.id))
    assert found.degraded == list(run.snapshot().degraded) != []
    assert found.as_json()["degraded"] == found.degraded
    table = Console(width=200, file=StringIO(), record=True)
    table.print(node_table(run))
    assert "completed, 0 of 1 rounds" in table.export_text()
