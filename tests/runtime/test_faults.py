"""What the runtime does when something else does not do its part."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import flowserve as fs
from flowserve import errors
from flowserve.config import RuntimeConfig
from flowserve.engines.base import Call, EngineStatus, Output
from flowserve.engines.fake import FakeEngine
from flowserve.runtime import driver
from flowserve.runtime.records import SubmitOptions
from flowserve.runtime.runner import Runtime


@fs.llm()
def say(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.workflow()
def flow(text: str) -> str:
    return say(text)


@fs.llm(on_loss="restart")
def say_anew(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.workflow()
def flow_anew(text: str) -> str:
    return say_anew(text)


@fs.tool
async def forever(text: str) -> str:
    """Waits until it is cancelled."""
    await asyncio.Event().wait()
    return text


@fs.workflow()
def stuck(text: str) -> str:
    return forever(text)


class Dying(FakeEngine):
    """Sends one token of every call, then is gone for good."""

    dead = False

    async def generate(self, call: Call) -> AsyncIterator[Output]:
        yield Output(token_ids=(1,), text="half", prompt_tokens=1)
        self.dead = True
        raise errors.EngineLost("the process is gone")

    def status(self) -> EngineStatus:
        return EngineStatus(up=not self.dead, window=64, reason="the process is gone")


class Truncating(FakeEngine):
    """Ends a call without saying how it finished."""

    async def generate(self, call: Call) -> AsyncIterator[Output]:
        yield Output(token_ids=(1,), text="half", prompt_tokens=1)


async def started(*engines: Any, **options: Any) -> Runtime:
    runtime = Runtime(engines, **options)
    await runtime.start()
    return runtime


async def test_a_call_on_an_engine_that_dies_is_done_again_on_another() -> None:
    dying, other = Dying(id="a"), FakeEngine({"say_anew": "whole"}, id="b")
    runtime = await started(dying, other)
    runs = [await runtime.submit(flow_anew.program, {"text": "x"}) for _ in range(4)]
    assert [await run.result() for run in runs] == ["whole"] * 4
    assert runtime.ready() == (True, "")
    rows = {row["id"]: row["up"] for row in runtime.engines()}
    assert rows == {"a": False, "b": True}
    await runtime.aclose()


async def test_with_no_engine_left_runs_wait_for_their_deadline_and_the_runtime_is_not_ready() -> None:
    runtime = await started(Dying(id="a"))
    run = await runtime.submit(flow.program, {"text": "x"}, SubmitOptions(timeout_s=0.2))
    with pytest.raises(errors.RunTimedOut):
        await run.result()
    assert runtime.ready() == (False, "engine a: the process is gone")
    await runtime.aclose()


async def test_an_engine_that_ends_without_finishing_never_makes_a_result() -> None:
    runtime = await started(Truncating())
    run = await runtime.submit(flow.program, {"text": "x"})
    with pytest.raises(errors.RunFailed, match="without finishing"):
        await run.result()
    await runtime.aclose()


async def test_more_runs_than_allowed_are_refused_with_a_time_to_come_back() -> None:
    runtime = await started(FakeEngine(), config=RuntimeConfig(max_live_runs=2))
    runs = [await runtime.submit(stuck.program, {"text": "x"}) for _ in range(2)]
    with pytest.raises(errors.Overloaded) as refused:
        await runtime.submit(stuck.program, {"text": "x"})
    assert refused.value.retry_after_s > 0
    runs[0].cancel()
    await runs[0].wait()
    assert (await runtime.submit(flow.program, {"text": "x"})).id
    await runtime.aclose()


async def test_closing_cancels_what_runs() -> None:
    runtime = await started(FakeEngine())
    run = await runtime.submit(stuck.program, {"text": "x"})
    await runtime.aclose()
    assert run.status == "cancelled"
    with pytest.raises(errors.Overloaded):
        await runtime.submit(flow.program, {"text": "x"})


async def test_a_run_past_its_deadline_is_timed_out_and_its_tool_cancelled() -> None:
    runtime = await started(FakeEngine())
    run = await runtime.submit(stuck.program, {"text": "x"}, SubmitOptions(timeout_s=0.05))
    with pytest.raises(errors.RunTimedOut, match="deadline"):
        await run.result()
    types = [event.type async for event in run.events()]
    assert types[-1] == "run.timed_out"
    assert "node.cancelled" in types
    await runtime.aclose()


async def test_a_defect_of_ours_ends_one_run_with_its_story_and_not_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(run: Any, task: Any) -> Any:
        raise KeyError("a defect")

    @fs.workflow()
    def longer(text: str) -> str:
        return say(say(text))

    runtime = await started(FakeEngine({"say": "fine"}))
    waiting = await runtime.submit(stuck.program, {"text": "x"})
    monkeypatch.setattr(driver.local, "completed_data", defect)
    run = await runtime.submit(longer.program, {"text": "x"})
    with pytest.raises(errors.InternalError, match=r"a defect[\s\S]*story of"):
        await run.result()
    last = await runtime.submit(flow.program, {"text": "x"})
    with pytest.raises(errors.InternalError, match="a defect"):
        await last.result()
    monkeypatch.undo()
    assert await (await runtime.submit(flow.program, {"text": "x"})).result() == "fine"
    assert not waiting.done
    await runtime.aclose()


async def test_inputs_and_overrides_are_checked_before_anything_starts() -> None:
    runtime = await started(FakeEngine())
    runtime.register(flow.program)
    with pytest.raises(errors.UnknownName, match="no workflow 'other'; known: flow"):
        await runtime.submit("other", {})
    with pytest.raises(errors.InputError, match="/text: is required"):
        await runtime.submit("flow", {})
    with pytest.raises(errors.InputError) as wrong:
        await runtime.submit("flow", {"text": "x"}, SubmitOptions(overrides={"no": {"seed": 1}, "say": {"size": 2}}))
    assert [pointer for pointer, _ in wrong.value.problems] == ["/overrides/no", "/overrides/say/size"]
    assert runtime.runs() == []
    await runtime.aclose()


async def test_overrides_and_seeds_reach_the_engine_and_siblings_draw_differently() -> None:
    @fs.workflow()
    def vote(text: str) -> list[str]:
        return say.sample(3)(text)

    engine = FakeEngine()
    runtime = await started(engine)
    options = SubmitOptions(seed=7, overrides={"*": {"temperature": 0.5}, "say": {"max_tokens": 9, "stop": "END"}})
    for _ in range(2):
        await (await runtime.submit(vote.program, {"text": "x"}, options)).result()
    samplings = [call.sampling for call in engine.calls]
    assert {(s.temperature, s.max_tokens, s.stop) for s in samplings} == {(0.5, 9, ("END",))}
    seeds = [s.seed for s in samplings]
    assert len(set(seeds[:3])) == 3
    assert sorted(seeds[:3], key=str) == sorted(seeds[3:], key=str)
    await runtime.aclose()


async def test_what_has_ended_is_remembered_within_bounds_and_can_be_forgotten() -> None:
    runtime = await started(FakeEngine({"say": "x"}), config=RuntimeConfig(kept_runs=3))
    runs = []
    for _ in range(5):
        run = await runtime.submit(flow.program, {"text": "x"})
        await run.result()
        runs.append(run)
    assert [run.id for run in runtime.runs()] == [run.id for run in reversed(runs[2:])]
    with pytest.raises(errors.UnknownName):
        runtime.run(runs[0].id)
    runtime.forget(runs[4].id)
    with pytest.raises(errors.UnknownName):
        runtime.run(runs[4].id)
    page = runtime.runs(after=runs[3].id)
    assert [run.id for run in page] == [runs[2].id]
    await runtime.aclose()


async def test_a_slow_follower_gets_every_event_once_from_where_it_left() -> None:
    runtime = await started(FakeEngine({"say": " ".join(["word"] * 200)}))
    run = await runtime.submit(flow.program, {"text": "x"}, SubmitOptions(overrides={"say": {"max_tokens": 4000}}))
    seen = []
    async for event in run.events():
        seen.append(event.seq)
        if len(seen) == 50:
            break
    await run.wait()
    seen += [event.seq async for event in run.events(after=seen[-1])]
    assert seen == list(range(1, run.log.last_seq + 1))
    await runtime.aclose()


async def test_a_finished_choice_is_counted() -> None:
    runtime = await started(FakeEngine({"say": "a b c"}))
    run = await runtime.submit(flow.program, {"text": "x"})
    await run.result()
    snapshot = run.snapshot()
    (node,) = snapshot.nodes
    assert node.tokens_out == snapshot.tokens_out > 0
    assert node.ready_s is not None and node.started_s is not None and node.ended_s is not None
    assert node.ready_s <= node.started_s <= node.ended_s
    await runtime.aclose()
