"""Explaining a recorded run: the critical path sums to the latency, slack is what a task could have lost, changes are simulated."""

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import Callable
from statistics import fmean, median
from typing import Any

import pytest

import flowserve as fs
from flowserve.core.commands import Status
from flowserve.engines.base import Call
from flowserve.engines.fake import FakeEngine
from flowserve.errors import ConfigError, EngineError, RunError, UnknownName
from flowserve.ids import RunId
from flowserve.runtime.runner import Runtime
from flowserve.sim.explain import Explanation
from flowserve.sim.gantt import gantt
from flowserve.sim.simulate import simulate
from flowserve.sim.timeline import runs_of, timeline
from flowserve.sim.whatif import CHANGES, what_if
from flowserve.sim.workload import parse_workload

WORK: dict[str, Any] = {
    "duration_s": 20,
    "tell_s": 0.05,
    "engine": {"count": 2, "costs": "cpu-66m", "kv_tokens": 14944},
    "mix": [{"workflow": name, "rate": 0.4} for name in ("rag", "map-reduce", "agent", "triage")],
}


def recorded(value: dict[str, Any], seed: int = 1) -> list[str]:
    from pathlib import Path

    lines: list[str] = []
    load = parse_workload(value, "test", Path(), lambda target: pytest.fail(target))
    simulate(load, seed=seed, log_line=lines.append)
    return lines


@pytest.fixture(scope="module")
def log() -> list[str]:
    return recorded(WORK)


def checked(found: Explanation) -> Explanation:
    """What holds for every run that ended well."""
    line = found.timeline
    assert found.path[0].begin == 0.0 and found.path[-1].end == pytest.approx(line.ended)
    for before, after in zip(found.path, found.path[1:], strict=False):
        assert after.begin == pytest.approx(before.end) and after.seconds > 0
    assert sum(found.shares.values()) == pytest.approx(line.ended)
    assert all(slack >= -1e-9 for slack in found.slack.values())
    for piece in found.path:
        assert found.slack.get(piece.span.task, 0.0) == pytest.approx(0.0, abs=1e-6), piece.span.label
    for span in found.work:
        if span.status is Status.COMPLETED:
            assert span.ended is not None and span.ended + found.slack[span.task] <= line.ended + 1e-6
    return found


def test_of_every_run_the_critical_path_sums_to_the_latency_and_has_no_slack(log: list[str]) -> None:
    latencies = runs_of(log)
    assert len(latencies) > 20
    shapes = set()
    for run, seconds in latencies.items():
        found = checked(Explanation(timeline(log, run)))
        assert found.timeline.ended == pytest.approx(seconds)
        shapes.add(found.timeline.plan.name)
    assert len(shapes) == 4


def test_siblings_of_a_join_have_the_time_until_the_last_of_them_as_slack(log: list[str]) -> None:
    found = next(e for run in runs_of(log) if (e := Explanation(timeline(log, run))).timeline.plan.name == "map-reduce")
    mapped = [span for span in found.work if span.label.startswith("summarise[")]
    last = max(span.ended or 0.0 for span in mapped)
    assert len(mapped) > 1
    for span in mapped:
        assert span.ended is not None
        assert found.slack[span.task] == pytest.approx(last - span.ended)


def test_what_was_is_simulated_closely_in_the_middle_of_all_runs(log: list[str]) -> None:
    """Single runs of a burst differ: a call that goes to the other engine than it did makes one run longer and another shorter."""
    ratios = []
    for run, seconds in list(runs_of(log).items())[::4]:
        line = timeline(log, run)
        ratios.append(next(what_if(log, run, line.at + line.ended)).seconds / seconds)
    assert median(ratios) == pytest.approx(1.0, abs=0.1)
    assert fmean(ratios) == pytest.approx(1.0, abs=0.1)


def test_changes_help_the_longest_run(log: list[str]) -> None:
    latencies = runs_of(log)
    run = max(latencies, key=lambda id: latencies[id])
    line = timeline(log, run)
    first, *rest = what_if(log, run, line.at + line.ended)
    assert first.seconds == pytest.approx(latencies[run], rel=0.25)
    by_name = {outcome.change: outcome for outcome in rest}
    assert list(by_name) == list(CHANGES)
    assert by_name["engines twice as fast"].speedup > 1.5
    assert by_name["no other runs"].speedup > 1.2
    assert by_name["all prompts in cache"].speedup > 1.0
    assert all(outcome.speedup == pytest.approx(first.seconds / outcome.seconds) for outcome in rest)


def test_a_run_that_is_not_there_is_named_with_those_that_are(log: list[str]) -> None:
    with pytest.raises(UnknownName, match="run-1"):
        timeline(log, RunId("nobody"))


def test_the_picture_has_a_bar_for_every_piece_and_escapes_names(log: list[str]) -> None:
    found = Explanation(timeline(log, next(iter(runs_of(log)))))
    picture = ET.fromstring(gantt(found))
    titles = [e.text for e in picture.iter() if e.tag.endswith("title")][1:]
    assert len(titles) >= len(found.work) and all(titles)


# --- live logs --------------------------------------------------------------------------------------------------------


@fs.llm(max_tokens=32, retry=fs.Retry(attempts=3, backoff_s=0.01))
def say(text: str) -> str:
    fs.prompt("Say {{ text }}")


@fs.llm(max_tokens=32)
def parts(text: str) -> list[str]:
    fs.prompt("Parts of {{ text }}")


@fs.tool
async def look(text: str) -> str:
    """Look something up."""
    await asyncio.sleep(0.02)
    return text


@fs.dynamic(calls=[say], max_calls=5)
async def debate(text: str) -> str:
    first, second = await asyncio.gather(say.acall(text), say.acall("slow"))
    await asyncio.sleep(0.03)
    return str(await say.acall(first + second))


helper = fs.agent(tools=[look], instructions="Look.", max_steps=3, name="helper")


def serial(text: str) -> str:
    return say(look(text))


def fan(text: str) -> list[str]:
    return say.map(parts(text), concurrency=2)


def rounds(text: str) -> str:
    return fs.loop(lambda s: say(look(s)), text, until=lambda s: s == "never", max_iters=3)


def votes(text: str) -> str:
    return say.sample(6, vote="", stop=fs.decided(), concurrency=2)(text)


def either(text: str) -> str:
    return fs.when(look(text) == "a", then=lambda: say(text), otherwise=lambda: look(text))


def talk(text: str) -> str:
    return debate(text)


def agent(text: str) -> str:
    return helper(text)


WORKFLOWS: list[Callable[[str], Any]] = [serial, fan, rounds, votes, either, talk, agent]


async def live(workflow: fs.Workflow[..., Any], replies: Any) -> tuple[list[str], RunId]:
    lines: list[str] = []

    def delay(call: Call) -> float:
        return float("inf") if call.meta["node"] == "hang" else 0.01 + 0.01 * (len(engine.calls) % 3)

    engine = FakeEngine(replies, delays=delay, token_delay_s=0.001)
    runtime = Runtime([engine], log_line=lines.append)
    await runtime.start()
    try:
        run = await runtime.submit(workflow.program, {"text": "a"})
        await run.result()
    finally:
        await runtime.aclose()
    return lines, run.id


@pytest.mark.parametrize("fn", WORKFLOWS, ids=lambda fn: fn.__name__)
async def test_every_kind_of_node_of_a_live_log_is_explained(fn: Callable[[str], Any]) -> None:
    calls = iter(range(10))

    def reply(call: Any) -> Any:
        number = next(calls)
        if call.meta["node"] == "helper":
            return [{"tool": "look", "arguments": {"text": "a"}}] if number == 0 else {"answer": "done"}
        if call.meta["node"] == "parts":
            return ["a", "b", "c", "d", "e"]
        if fn is serial and number == 0:
            return EngineError("once")
        return f"answer {number // 2}"

    lines, run = await live(fs.workflow()(fn), reply)
    found = checked(Explanation(timeline(lines, run)))
    whats = set(found.shares)
    assert "to the first token" in whats
    if fn in (serial, rounds):
        assert "tool" in whats
    if fn is serial:
        assert "attempts before the last" in whats
    if fn is talk:
        assert found.shares["expressions and code"] > 0.02


async def test_a_log_of_one_short_call_is_too_little_to_simulate_changes() -> None:
    lines, run = await live(fs.workflow()(serial), lambda call: "x")
    with pytest.raises(ConfigError, match="enough calls"):
        list(what_if(lines, run, 1e9))


async def test_a_cancelled_run_is_explained_up_to_its_end() -> None:
    lines: list[str] = []
    runtime = Runtime([FakeEngine(delays=float("inf"))], log_line=lines.append)
    await runtime.start()
    run = await runtime.submit(fs.workflow()(serial).program, {"text": "a"})
    await asyncio.sleep(0.1)
    run.cancel()
    with pytest.raises(RunError):
        await run.result()
    await runtime.aclose()
    found = Explanation(timeline(lines, run.id))
    assert found.timeline.status == "cancelled"
    assert list(dict.fromkeys(piece.span.label for piece in found.path)) == ["look", "say"]
    assert found.path[-1].what == "to the first token"
    assert sum(found.shares.values()) == pytest.approx(found.timeline.ended)


def test_work_that_takes_no_time_at_all_is_walked_through() -> None:
    """Rounds of expressions begin and end at one time of the log."""
    from random import Random

    from flowserve.core.config import Config
    from flowserve.sim.chance import mix
    from flowserve.sim.dist import Dist
    from flowserve.sim.drive import Arrival, Drive
    from flowserve.sim.engine import EngineSpec
    from flowserve.sim.plans import random_plan
    from flowserve.sim.programs import Modelled
    from flowserve.sim.services import Services

    explained = 0
    for seed in range(60):
        plan = random_plan(Random(seed), [])
        lines: list[str] = []
        arrival = Arrival(0.0, Modelled(plan, seed=seed), plan, mix(seed))
        free = Services(tool=Dist(0.0), search=Dist(0.0))
        Drive(
            Config(measure=True), [(EngineSpec(), ("",))], iter([arrival]), services=free, log_line=lines.append
        ).run()
        for run, seconds in runs_of(lines).items():
            found = Explanation(timeline(lines, run))
            assert sum(found.shares.values()) == pytest.approx(seconds)
            assert all(-1e-9 <= slack <= seconds + 1e-9 for slack in found.slack.values())
            explained += 1
    assert explained > 30


@fs.llm(max_tokens=32)
def hang(text: str) -> str:
    fs.prompt("Think for ever about this: {{ text }}")


def hasty(text: str) -> str:
    return fs.race(lambda: say(text), lambda: hang(text))


async def test_a_call_that_was_cancelled_comes_back_with_the_prompt_that_it_had() -> None:
    from flowserve.sim.recorded import FromLog, recorded_runs

    lines, run = await live(fs.workflow()(hasty), lambda call: "x")
    found = checked(Explanation(timeline(lines, run)))
    (lost,) = [span for span in found.work if span.status is Status.CANCELLED]
    ((_, arrival),) = recorded_runs(lines)
    assert isinstance(arrival.program, FromLog)
    answers = arrival.program.answers
    ((key, node, role, index),) = set(answers.begun) - set(answers.sizes)
    size = arrival.program.size(arrival.plan.nodes[node], key, role, index, 0)
    assert arrival.plan.nodes[node].name == "hang" and size.prompt == lost.tokens_in > 5
