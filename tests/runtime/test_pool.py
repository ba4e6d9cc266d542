"""A runtime over several engines: losses, stalls, drains, hedges, roles, residency. Engines are scripted."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import flowserve as fs
from flowserve import errors
from flowserve.config import PoolConfig, RuntimeConfig
from flowserve.engines.base import Capabilities, KVNews, KVStored
from flowserve.engines.fake import FakeEngine
from flowserve.graphs.workflow import Workflow
from flowserve.runtime.pool import Seat
from flowserve.runtime.records import SubmitOptions
from flowserve.runtime.residency import CacheReader, PrefixNumbers
from flowserve.runtime.run import Run
from flowserve.runtime.runner import Runtime

WORDS = "one two three four five six seven eight nine ten"


def workflow(**options: Any) -> Workflow[..., Any]:
    """One LLM node `say`, declared with `options`."""

    @fs.llm(**options)
    def say(text: str) -> str:
        fs.prompt("{{ text }}")

    @fs.workflow()
    def flow(text: str) -> str:
        return say(text)

    return flow


def pair(**options: Any) -> tuple[FakeEngine, FakeEngine]:
    return FakeEngine(WORDS, id="a", **options), FakeEngine(WORDS, id="b", **options)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    """Starts a runtime on engines, with pool settings as keywords; closed at the end."""
    made: list[Runtime] = []

    async def start(*engines: Any, **pool: Any) -> Runtime:
        runtime = Runtime(engines, config=RuntimeConfig(pool=PoolConfig(**pool)))
        made.append(runtime)
        await runtime.start()
        return runtime

    yield start
    for runtime in made:
        await runtime.aclose()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def kinds(run: Run) -> list[str]:
    return [event.type for event in run.log.events if event.type != "node.delta"]


def shown(run: Run) -> str:
    """What a reader who obeys node.retrying has read."""
    text = ""
    for event in run.log.events:
        if event.type == "node.retrying":
            text = ""
        elif event.type == "node.delta":
            text += event.data["text"]
    return text


async def submit(runtime: Runtime, flow: Workflow[..., Any], count: int = 1, **options: Any) -> list[Run]:
    return [await runtime.submit(flow.program, {"text": f"x{i}"}, SubmitOptions(**options)) for i in range(count)]


async def written(engine: FakeEngine, tokens: int = 3) -> None:
    """Until `engine` has written so much."""
    await until(lambda: engine.status().tokens_out_total >= tokens)


# --- losses ----------------------------------------------------------------------------------------------


async def test_text_goes_on_at_another_engine_where_the_first_one_died(serve: Any) -> None:
    a, b = pair(token_delay_s=0.005)
    runtime = await serve(a, b)
    [run] = await submit(runtime, workflow())
    await written(a)
    a.crash()
    assert await run.result() == WORDS
    [resumed] = b.calls
    assert WORDS.startswith(b.tokenizer.decode(resumed.resumed)) and resumed.resumed
    assert shown(run) == WORDS
    [told] = [event for event in run.log.events if event.type == "node.continued"]
    assert told.data["code"] == "engine_lost" and told.data["engine"] == "a"
    assert told.data["kept_tokens"] == len(resumed.resumed)
    [node] = run.snapshot().nodes
    assert (node.tokens_out, node.attempt, node.engine) == (10, 2, "b")


async def test_the_same_text_begins_anew_where_that_is_wanted(serve: Any) -> None:
    a, b = pair(token_delay_s=0.005)
    runtime = await serve(a, b)
    [run] = await submit(runtime, workflow(on_loss="restart"))
    await written(a)
    a.crash()
    assert await run.result() == WORDS
    assert b.calls[0].resumed == ()
    assert "node.retrying" in kinds(run) and "node.continued" not in kinds(run)
    assert shown(run) == WORDS


async def test_the_node_fails_where_that_is_wanted(serve: Any) -> None:
    a, b = pair(token_delay_s=0.005)
    runtime = await serve(a, b)
    [run] = await submit(runtime, workflow(on_loss="fail"))
    await written(a)
    a.crash()
    with pytest.raises(errors.RunFailed, match="crashed"):
        await run.result()
    assert b.calls == []


@pytest.mark.parametrize(
    ("options", "resumed"),
    [
        ({}, True),
        ({"temperature": 0.7}, True),
        ({"temperature": 0.7, "seed": 1}, False),
        ({"temperature": 0.7, "seed": 1, "on_loss": "continue"}, True),
        ({"regex": ".*"}, False),
    ],
    ids=str,
)
async def test_what_is_gone_on_with_is_text_without_a_seed_or_a_form(
    serve: Any, options: dict[str, Any], resumed: bool
) -> None:
    a, b = pair(token_delay_s=0.005)
    runtime = await serve(a, b)
    [run] = await submit(runtime, workflow(**options))
    await written(a)
    a.crash()
    assert await run.result() == WORDS
    assert bool(b.calls[0].resumed) is resumed


async def test_engines_with_different_tokenizers_do_not_go_on_for_each_other(serve: Any) -> None:
    from flowserve.engines.words import WordTokenizer

    a = FakeEngine(WORDS, id="a", token_delay_s=0.005)
    b = FakeEngine(WORDS, id="b", tokenizer=WordTokenizer(chat_template=None))
    runtime = await serve(a, b)
    [run] = await submit(runtime, workflow())
    await written(a)
    a.crash()
    assert await run.result() == WORDS
    assert b.calls[0].resumed == ()
    assert a.calls[0].segments != b.calls[0].segments, "each got the prompt in its own tokens"


async def test_many_runs_survive_a_crash_whole_and_once(serve: Any) -> None:
    a, b = pair(token_delay_s=0.002)
    runtime = await serve(a, b)
    runs = await submit(runtime, workflow(), 32)
    await written(a, 40)
    a.crash()
    assert [await run.result() for run in runs] == [WORDS] * 32
    assert all(shown(run) == WORDS for run in runs)
    await until(lambda: a.starts == 2)
    await until(lambda: runtime.engines()[0]["state"] == "up")
    assert runtime.engines()[0]["events"] == {"losses": runtime.engines()[0]["events"]["losses"], "restarts": 1}
    [again] = await submit(runtime, workflow())
    assert await again.result() == WORDS


async def test_a_crash_of_everything_is_waited_out(serve: Any) -> None:
    a, b = pair(token_delay_s=0.002)
    runtime = await serve(a, b)
    runs = await submit(runtime, workflow(), 8)
    await written(a)
    a.crash()
    b.crash()
    assert [await run.result() for run in runs] == [WORDS] * 8


async def test_a_long_outage_is_told_at_the_door(serve: Any) -> None:
    [a] = [FakeEngine(WORDS, id="a")]
    runtime = await serve(a, outage_s=0.02, restart_s=0.01)
    a.startable = False
    a.crash()
    await asyncio.sleep(0.05)
    with pytest.raises(errors.Overloaded, match=r"no engine is up for what 'flow' calls \(engine a: .*does not start"):
        await submit(runtime, workflow())
    a.startable = True
    await until(lambda: runtime.ready()[0])
    [run] = await submit(runtime, workflow())
    assert await run.result() == WORDS


async def test_an_engine_that_has_no_room_is_left_alone_and_nothing_fails(serve: Any) -> None:
    full = FakeEngine(lambda call: errors.Overloaded("full", retry_after_s=0.05), id="a")
    other = FakeEngine(WORDS, id="b", window=1, delays=0.002)
    runtime = await serve(full, other)
    runs = await submit(runtime, workflow(), 6)
    assert [await run.result() for run in runs] == [WORDS] * 6
    asked = [call.id.split("/")[0] for call in full.calls]
    assert asked and len(asked) == len(set(asked)), "nobody asks twice within its pause"


async def test_a_wrong_call_is_refused_once_and_no_engine_suffers(serve: Any) -> None:
    a, b = pair(max_context=50)
    runtime = await serve(a, b)
    for _ in range(30):
        run = await runtime.submit(workflow().program, {"text": "word " * 200})
        with pytest.raises(errors.RunFailed, match="the model holds 50"):
            await run.result()
    [fine] = await submit(runtime, workflow())
    assert await fine.result() == WORDS
    assert all(row["state"] == "up" for row in runtime.engines())


# --- standing still --------------------------------------------------------------------------------------


async def test_calls_of_an_engine_that_stands_still_go_on_elsewhere(serve: Any) -> None:
    a, b = pair(token_delay_s=0.002)
    runtime = await serve(a, b, stall_s=0.1, probe_s=0.1)
    runs = await submit(runtime, workflow(), 4)
    await written(a)
    a.stall()
    assert [await run.result() for run in runs] == [WORDS] * 4
    assert any("node.continued" in kinds(run) for run in runs)
    await until(lambda: a.starts == 2)


async def test_an_engine_that_only_pauses_passes_its_probe(serve: Any) -> None:
    a = FakeEngine(WORDS, id="a", token_delay_s=0.002)
    runtime = await serve(a, stall_s=0.05, probe_s=5.0)
    [run] = await submit(runtime, workflow())
    await written(a)
    a.stall()
    await until(lambda: runtime.engines()[0]["state"] == "suspect")
    a.go_on()
    assert await run.result() == WORDS
    assert a.starts == 1 and runtime.engines()[0]["state"] == "up"


# --- operators -------------------------------------------------------------------------------------------


async def test_a_drained_engine_is_closed_when_empty_and_can_be_had_back(serve: Any) -> None:
    a, b = pair(token_delay_s=0.005)
    runtime = await serve(a, b)
    runs = await submit(runtime, workflow(), 4)
    await written(a)
    runtime.drain("a")
    assert [await run.result() for run in runs] == [WORDS] * 4
    await until(lambda: not a.status().up)
    assert runtime.engines()[0]["state"] == "closed"
    assert runtime.ready() == (True, "")
    before = len(a.calls)
    for run in await submit(runtime, workflow(), 3):
        await run.result()
    assert len(a.calls) == before
    runtime.resume("a")
    await until(lambda: runtime.engines()[0]["state"] == "up")
    with pytest.raises(errors.UnknownName, match="a, b"):
        runtime.drain("c")


async def test_a_drain_that_takes_too_long_moves_calls_with_what_they_wrote(serve: Any) -> None:
    a, b = FakeEngine(WORDS, id="a", token_delay_s=0.5), FakeEngine(WORDS, id="b")
    runtime = await serve(a, b, drain_s=0.05)
    [run] = await submit(runtime, workflow())
    await written(a, 1)
    runtime.drain("a", replace=True)
    assert await run.result() == WORDS
    assert b.calls[0].resumed
    await until(lambda: a.starts == 2)


# --- roles and models ------------------------------------------------------------------------------------


async def test_nodes_choose_engines_by_model_or_by_role(serve: Any) -> None:
    small = FakeEngine("from small", id="s", models=("tiny",))
    large = FakeEngine("from large", id="l", models=("huge",))
    runtime = await serve(Seat(small, ("small",)), Seat(large, ("large",), default=False))
    for model, expected in (
        (None, "small"),
        ("small", "small"),
        ("tiny", "small"),
        ("large", "large"),
        ("huge", "large"),
    ):
        run = await runtime.submit(workflow(model=model).program, {"text": "x"})
        assert await run.result() == f"from {expected}", model
    assert large.calls[0].model == "", "a role is the pool's word; the engine is asked for its own model"
    assert runtime.models() == ("tiny", "small", "huge", "large")
    [run] = await submit(runtime, workflow(model="nowhere"))
    with pytest.raises(errors.RunFailed, match="no engine serves the model"):
        await run.result()


async def test_two_engines_of_one_id_are_refused() -> None:
    with pytest.raises(errors.ConfigError, match="'fake' twice"):
        Runtime([FakeEngine(), FakeEngine()])


# --- hedging ---------------------------------------------------------------------------------------------


async def test_a_slow_interactive_call_is_answered_by_the_second_engine(serve: Any) -> None:
    slow, quick = FakeEngine(WORDS, id="a", delays=30.0), FakeEngine(WORDS, id="b")
    runtime = await serve(slow, quick, hedge_after_s=0.02, hedge_share=1.0)
    [run] = await submit(runtime, workflow(), tier="interactive")
    assert await run.result() == WORDS
    assert shown(run) == WORDS
    await until(lambda: slow.status().running == 0)
    assert slow.aborted and len(quick.calls) == 1
    [node] = run.snapshot().nodes
    assert (node.engine, node.attempt, node.tokens_out) == ("b", 1, 10)


async def test_a_hedge_whose_second_engine_fails_goes_on_at_the_first(serve: Any) -> None:
    slow = FakeEngine(WORDS, id="a", delays=0.1)
    broken = FakeEngine(lambda call: errors.EngineError("broken"), id="b")
    runtime = await serve(slow, broken, hedge_after_s=0.02, hedge_share=1.0)
    [run] = await submit(runtime, workflow(), tier="interactive")
    assert await run.result() == WORDS
    assert len(broken.calls) == 1


# --- what is kept and told -------------------------------------------------------------------------------


async def test_calls_that_nobody_reads_say_so(serve: Any) -> None:
    a = FakeEngine(WORDS, id="a")
    runtime = await serve(a)
    for stream in (True, False):
        [run] = await submit(runtime, workflow(), stream=stream)
        await run.result()
    assert [call.stream for call in a.calls] == [True, False]


async def test_prompts_with_a_common_beginning_meet_at_one_engine(serve: Any) -> None:
    a, b = pair(delays=0.05)
    runtime = await serve(a, b, prefix_tokens=8)
    texts = [" ".join(f"{topic}{i}" for i in range(400)) for topic in ("apple", "brick")]
    flow = workflow().program
    for _ in range(3):
        runs = [await runtime.submit(flow, {"text": f"{text} question {i}"}) for i, text in enumerate(texts)]
        for run in runs:
            await run.result()
    for engine in (a, b):
        topics = {"apple" in call.prompt_text for call in engine.calls}
        assert len(topics) == 1 and len(engine.calls) == 3, "each topic has its engine"


class Telling(FakeEngine):
    """Says what its cache holds."""

    @property
    def capabilities(self) -> Capabilities:
        from dataclasses import replace

        return replace(super().capabilities, kv_events=True)

    def tell(self, news: KVNews) -> None:
        assert self._listener is not None
        self._listener(self, news)


async def test_what_an_engine_tells_of_its_cache_decides_the_place(serve: Any) -> None:
    a, b = FakeEngine(WORDS, id="a"), Telling(WORDS, id="b")
    runtime = await serve(a, b, prefix_tokens=8)
    text = " ".join(f"word{i}" for i in range(400))
    run = await runtime.submit(workflow().program, {"text": text})
    await run.result()
    [call] = a.calls
    names = tuple(bytes([i]) for i in range(40))
    b.tell(KVNews(stored=(KVStored("", None, names, call.prompt_ids[: 40 * 8], 8),)))
    assert runtime.engines()[1]["resident_prefixes"] == 40
    a.crash()  # what it held is gone
    await until(lambda: a.starts == 2 and runtime.engines()[0]["state"] == "up")
    tenant = await runtime.submit(workflow().program, {"text": text}, SubmitOptions(tenant="other"))
    await tenant.result()
    assert len(b.calls) == 0, "another tenant's cache is no reason"
    again = await runtime.submit(workflow().program, {"text": text})
    await again.result()
    assert len(b.calls) == 1


def test_numbers_of_prefixes_agree_whatever_the_size_of_an_engines_blocks() -> None:
    numbers = PrefixNumbers(8)
    ids = list(range(100))
    expected = numbers.of(numbers.root("t"), ids)
    assert len(expected) == 12
    for size in (2, 8, 12, 32):
        reader = CacheReader(numbers)
        count = len(ids) // size
        names = tuple(f"{size}-{i}".encode() for i in range(count))
        first = KVStored("t", None, names[:1], tuple(ids[:size]), size)
        rest = KVStored("t", names[0], names[1:], tuple(ids[size : count * size]), size)
        stored, removed = reader.read(KVNews(stored=(first, rest)))
        assert stored == expected[: count * size // 8] and removed == ()
        _, removed = reader.read(KVNews(removed=names[::-1]))
        assert sorted(removed) == sorted(stored)
    assert numbers.of(numbers.root("other"), ids) != expected
    assert numbers.root("t", "lora") != numbers.root("t")
    assert PrefixNumbers(8).root("t") != numbers.root("t"), "a key of its own"


def test_blocks_behind_an_unknown_one_are_ignored() -> None:
    numbers = PrefixNumbers(8)
    reader = CacheReader(numbers)
    stray = KVStored("", b"unknown", (b"x",), tuple(range(8)), 8)
    assert reader.read(KVNews(stored=(stray,))) == ((), ())
    known = KVStored("", None, (b"y",), tuple(range(8)), 8)
    assert reader.read(KVNews(stored=(known,)))[0] == numbers.of(numbers.root(""), range(8))
    behind = KVStored("", b"y", (b"z",), tuple(range(8)), 8)
    assert reader.read(KVNews(cleared=True, stored=(behind,))) == ((), ())
