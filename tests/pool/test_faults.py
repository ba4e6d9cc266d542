"""Real vLLM engines that die, freeze, slow down and run out of memory under load: every run ends once, in time, with
the answer that an engine alone gives."""

import asyncio
import contextlib
import importlib.util
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

import flowserve as fs
from flowserve import errors
from flowserve.config import PoolConfig, RuntimeConfig
from flowserve.engines.base import Call, Origin, Sampling
from flowserve.engines.chat import ChatFormat, Piece, PromptMessage
from flowserve.runtime.records import SubmitOptions
from flowserve.runtime.run import Run
from flowserve.runtime.runner import Runtime

if TYPE_CHECKING:
    import psutil

    from flowserve.engines.vllm import VLLMEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
    pytest.mark.asyncio(loop_scope="module"),
]

Make = Callable[..., "VLLMEngine"]
Say = Callable[[str], None]
Serve = Callable[..., Awaitable[Runtime]]

TOKENS = 400
DEADLINE_S = 60.0
WORDS = ["bace", "dihe", "fomu", "nape", "rizi", "gula", "kive", "tuwe"]
TEXTS = [" ".join(WORDS[(i + j * (i + 3)) % len(WORDS)] + str(i) for j in range(24)) for i in range(32)]
"""Different from the first word on."""
LONG = " ".join(WORDS * 400)


@fs.llm(max_tokens=TOKENS)
def say(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.workflow()
def flow(text: str) -> str:
    return say(text)


@pytest_asyncio.fixture(loop_scope="module")
async def serve() -> AsyncIterator[Serve]:
    """Starts a runtime on engines, with fields of PoolConfig as keywords. Both end with the test."""
    made: list[Runtime] = []

    async def begin(*engines: Any, **pool: Any) -> Runtime:
        runtime = Runtime(engines, config=RuntimeConfig(pool=PoolConfig(**pool)))
        made.append(runtime)
        await runtime.start()
        return runtime

    yield begin
    for runtime in made:
        await runtime.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expected(make_engine: Make) -> list[str]:
    """What vLLM writes for TEXTS without a pool: one engine, asked by itself."""
    engine = make_engine(1)
    await engine.start()

    async def ask(text: str) -> str:
        message = PromptMessage("user", (Piece(text, Origin.VALUE),))
        segments = ChatFormat(engine.tokenizer).segments([message])
        call = Call(id=text, segments=segments, sampling=Sampling(max_tokens=TOKENS, temperature=0.0))
        outputs = [output async for output in engine.generate(call)]
        assert sum(output.count for output in outputs) == TOKENS
        return "".join(output.text for output in outputs)

    answers = await asyncio.gather(*map(ask, TEXTS))
    await engine.close()
    assert len(set(answers)) == len(TEXTS)
    return answers


async def submit(runtime: Runtime, texts: Sequence[str] = TEXTS, **options: Any) -> list[Run]:
    given = SubmitOptions(**{"timeout_s": DEADLINE_S, **options})
    return [await runtime.submit(flow.program, {"text": text}, given) for text in texts]


def check_whole(runs: Sequence[Run], answers: Sequence[str], expected: Sequence[str]) -> None:
    """Each ended once, with the text that an engine alone writes, and its reader has read just that."""
    assert list(answers) == list(expected)
    for run, answer in zip(runs, answers, strict=True):
        assert shown(run) == answer
        assert [event.type for event in run.log.events if event.terminal] == ["run.completed"]
        [node] = run.snapshot().nodes
        assert node.tokens_out == TOKENS


def shown(run: Run) -> str:
    """What a reader who obeys `node.retrying` has read."""
    text = ""
    for event in run.log.events:
        if event.type == "node.retrying":
            text = ""
        elif event.type == "node.delta":
            text += event.data["text"]
    return text


async def results(runs: Sequence[Run]) -> list[str]:
    return list(await asyncio.gather(*(run.result() for run in runs)))


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def writing(engines: "Sequence[VLLMEngine]", tokens: int = 64) -> None:
    """Until each of them is in the middle of its answers."""
    before = [engine.status().tokens_out_total for engine in engines]
    await until(lambda: all(e.status().tokens_out_total >= b + tokens for e, b in zip(engines, before, strict=True)))


def happened(runs: Sequence[Run], type: str) -> int:
    return sum(event.type == type for run in runs for event in run.log.events)


def row(runtime: Runtime, engine: "VLLMEngine") -> dict[str, Any]:
    return next(row for row in runtime.engines() if row["id"] == engine.id)


def family(engine: "VLLMEngine") -> "list[psutil.Process]":
    """The replica process and all that it began."""
    import psutil

    assert engine.pid is not None
    top = psutil.Process(engine.pid)
    return [top, *top.children(recursive=True)]


def send(processes: "Sequence[psutil.Process]", what: signal.Signals) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(what)


def report(say: Say, runs: Sequence[Run], runtime: Runtime, expected: Sequence[str], answers: Sequence[str]) -> None:
    same = sum(a == b for a, b in zip(answers, expected, strict=True))
    went_on, anew = happened(runs, "node.continued"), happened(runs, "node.retrying")
    say(f"{same} of {len(runs)} runs ended with the right answer; {went_on} calls went on elsewhere, {anew} began anew")
    slowest = max(run.snapshot().nodes[0].ended_s or 0.0 for run in runs)
    say(f"the slowest took {slowest:.2f} s of {DEADLINE_S:g}; engines: {states(runtime)}")


def states(runtime: Runtime) -> str:
    return ", ".join(f"{row['id']} {row['state']} {row['events'] or ''}".strip() for row in runtime.engines())


# --- death -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["replica", "EngineCore"])
async def test_one_of_two_engines_is_killed_in_mid_stream_under_32_runs(
    serve: Serve, make_engine: Make, expected: list[str], journal: Say, victim: str
) -> None:
    first, second = make_engine(0), make_engine(1)
    runtime = await serve(first, second)
    runs = await submit(runtime)
    await writing([first, second])
    processes = family(first)
    journal(f"kill -9 of one engine's {victim} process; 32 runs under way")
    send(processes[:1] if victim == "replica" else processes[1:], signal.SIGKILL)
    answers = await results(runs)
    report(journal, runs, runtime, expected, answers)
    check_whole(runs, answers, expected)
    assert happened(runs, "node.continued") > 0, "it had written parts of answers"
    await until(lambda: first.status().up)
    journal("the killed engine is up again")
    before = first.status().tokens_out_total
    again = await submit(runtime)
    check_whole(again, await results(again), expected)
    assert first.status().tokens_out_total > before, "and gets calls again"


async def test_both_engines_are_killed_at_once_and_nothing_is_lost(
    serve: Serve, make_engine: Make, expected: list[str], journal: Say
) -> None:
    first, second = make_engine(0), make_engine(1)
    runtime = await serve(first, second)
    runs = await submit(runtime)
    await writing([first, second])
    journal("kill -9 of both engines; 32 runs under way")
    for engine in (first, second):
        send(family(engine), signal.SIGKILL)
    answers = await results(runs)
    report(journal, runs, runtime, expected, answers)
    check_whole(runs, answers, expected)


# --- standing still, and going slowly --------------------------------------------------------------------


async def test_one_of_two_engines_is_frozen(serve: Serve, make_engine: Make, expected: list[str], journal: Say) -> None:
    first, second = make_engine(0), make_engine(1)
    runtime = await serve(first, second, stall_s=1.0, probe_s=1.0)
    runs = await submit(runtime)
    await writing([first, second])
    frozen = family(first)
    journal("SIGSTOP to one engine and all its processes; 32 runs under way")
    send(frozen, signal.SIGSTOP)
    answers = await results(runs)
    report(journal, runs, runtime, expected, answers)
    check_whole(runs, answers, expected)
    await until(lambda: first.status().up and first.pid != frozen[0].pid)
    assert not any(process.is_running() for process in frozen), "what stood still is gone"
    journal("the frozen processes are gone, a new engine is up in their place")


async def test_an_engine_that_is_much_slower_gets_less_and_is_not_given_up(
    serve: Serve, make_engine: Make, expected: list[str], journal: Say
) -> None:
    first, second = make_engine(0), make_engine(1)
    runtime = await serve(first, second)
    processes = family(first)

    async def slow_down() -> None:
        while True:
            send(processes, signal.SIGSTOP)
            await asyncio.sleep(0.6)
            send(processes, signal.SIGCONT)
            await asyncio.sleep(0.05)

    slowing = asyncio.create_task(slow_down())
    try:
        journal("one engine computes for 50 ms, then stands still for 600, all the time")
        answers: list[str] = []
        runs: list[Run] = []
        waiting = list(range(32)) * 2

        async def client() -> None:
            while waiting:
                number = waiting.pop()
                [run] = await submit(runtime, [TEXTS[number]])
                answers.append(await run.result())
                runs.append(run)
                assert answers[-1] == expected[number]

        await asyncio.gather(*(client() for _ in range(8)))
    finally:
        slowing.cancel()
        send(processes, signal.SIGCONT)
    at = {engine.id: sum(run.snapshot().nodes[0].engine == engine.id for run in runs) for engine in (first, second)}
    moved = happened(runs, "node.continued") + happened(runs, "node.retrying")
    journal(f"all 64 runs answered rightly; they ended at {at}, {moved} were moved; engines: {states(runtime)}")
    assert at[second.id] > 2 * at[first.id]
    assert row(runtime, first)["events"].get("restarts", 0) == 0


# --- memory, and calls that cannot be -----------------------------------------------------------------------


async def test_an_engine_without_memory_preempts_and_answers(
    serve: Serve, make_engine: Make, expected: list[str], journal: Say
) -> None:
    small = make_engine(0, kv_bytes=8 << 20)
    runtime = await serve(small, kv_fill=100.0)
    runs = await submit(runtime)
    answers = await results(runs)
    status = small.status()
    journal(
        f"KV for {status.kv_tokens} tokens, 32 calls of about {24 * 3 + TOKENS}: vLLM preempted {status.preemptions}"
    )
    assert status.preemptions > 10
    report(journal, runs, runtime, expected, answers)
    check_whole(runs, answers, expected)
    assert row(runtime, small)["events"].get("restarts", 0) == 0


async def test_calls_are_held_back_so_that_vllm_hardly_preempts(
    serve: Serve, make_engine: Make, expected: list[str], journal: Say
) -> None:
    small = make_engine(0, kv_bytes=8 << 20)
    runtime = await serve(small)
    before = 0
    for known in ("before it knows how long answers are", "once it knows"):
        runs = await submit(runtime)
        answers = await results(runs)
        preempted = small.status().preemptions - before
        journal(f"the same memory and calls with the pool's own reserve, {known}: vLLM preempted {preempted}")
        check_whole(runs, answers, expected)
        before += preempted
    assert preempted <= 10, "without the reserve more than fifty"


async def test_bursts_of_prompts_that_are_too_long_hurt_nobody(
    serve: Serve, make_engine: Make, expected: list[str], journal: Say
) -> None:
    first, second = make_engine(0), make_engine(1)
    runtime = await serve(first, second)
    good, wrong = [], []
    for text in TEXTS:
        wrong += await submit(runtime, [LONG] * 4)
        good += await submit(runtime, [text])
    answers = await results(good)
    refused = await asyncio.gather(*(run.result() for run in wrong), return_exceptions=True)
    journal(f"{len(wrong)} prompts beyond the context refused among {len(good)} good ones; engines: {states(runtime)}")
    check_whole(good, answers, expected)
    assert {type(error) for error in refused} == {errors.RunFailed}
    assert {type(error.__cause__) for error in refused if isinstance(error, Exception)} == {errors.ContextTooLong}
    for engine in (first, second):
        assert row(runtime, engine)["state"] == "up" and not row(runtime, engine)["events"]


async def test_a_storm_of_cancellations_leaves_idle_engines(
    serve: Serve, make_engine: Make, expected: list[str], journal: Say
) -> None:
    first, second = make_engine(0), make_engine(1)
    runtime = await serve(first, second)
    chance = random.Random(1)
    cancelled = 0
    for _ in range(4):
        runs = await submit(runtime, TEXTS * 2)
        for run in chance.sample(runs, len(runs)):
            await asyncio.sleep(chance.choice([0, 0, 0.002, 0.01]))
            if chance.random() < 0.8:
                run.cancel()
        outcomes = await asyncio.gather(*(run.result() for run in runs), return_exceptions=True)
        cancelled += sum(isinstance(outcome, errors.RunCancelled) for outcome in outcomes)
        for outcome, text in zip(outcomes, expected * 2, strict=True):
            assert outcome == text or isinstance(outcome, errors.RunCancelled)
    journal(f"{cancelled} of 256 runs cancelled at random moments, the others answered rightly")
    for engine in (first, second):
        await until(lambda: engine.status().running == engine.status().waiting == 0)  # noqa: B023 used at once
        assert row(runtime, engine)["calls"] == row(runtime, engine)["reserved_tokens"] == 0
    journal(f"vLLM's running and waiting counts are zero; engines: {states(runtime)}")
    runs = await submit(runtime)
    check_whole(runs, await results(runs), expected)


# --- moving, and equality ---------------------------------------------------------------------------------------


async def test_an_engine_that_is_drained_under_load_hands_its_calls_over(
    serve: Serve, make_engine: Make, expected: list[str], journal: Say
) -> None:
    first, second = make_engine(0), make_engine(1)
    runtime = await serve(first, second, drain_s=0.0)
    runs = await submit(runtime, TEXTS[:16])
    await writing([first, second])
    journal("one engine is to be drained at once, with 8 of 16 runs on it, and room for 8 more on the other")
    runtime.drain(first.id)
    answers = await results(runs)
    report(journal, runs, runtime, expected[:16], answers)
    check_whole(runs, answers, expected[:16])
    assert happened(runs, "node.continued") > 0
    await until(lambda: not first.status().up)
    assert first.pid is None
    runtime.resume(first.id)
    await until(lambda: first.status().up)
    journal("drained, closed, and had back")


async def test_answers_are_the_same_with_and_without_the_pool(
    serve: Serve, make_engine: Make, expected: list[str], journal: Say
) -> None:
    runtime = await serve(make_engine(0), make_engine(1))
    runs = await submit(runtime)
    answers = await results(runs)
    journal(f"temperature 0: {sum(map(str.__eq__, answers, expected))} of 32 answers equal vLLM's own")
    check_whole(runs, answers, expected)
