"""What is kept between calls: exact, within a budget, for a time, never for others."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
import pytest_asyncio

from flowserve.engines.base import Call, Origin, Output, Segment
from flowserve.engines.vllm import VLLMEngine

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]
MakeCall = Callable[..., Call]
BLOCK = 32
"""Tokens, the default of ours on a CPU."""
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(start: Callable[..., Awaitable[VLLMEngine]]) -> VLLMEngine:
    """With memory for six contexts of 512 tokens; sessions may hold two places and 768 tokens."""
    # 3 layers, 2 heads of 32, keys and values, 4 bytes: 1.5 kB a token
    return await start(kv_bytes=97 * BLOCK * 1536)


@pytest.fixture
def call(engine: VLLMEngine, calls_for: Callable[[VLLMEngine], MakeCall]) -> MakeCall:
    return calls_for(engine)


async def collect(engine: VLLMEngine, call: Call) -> list[Output]:
    return [output async for output in engine.generate(call)]


def ids(outputs: Iterable[Output]) -> tuple[int, ...]:
    return tuple(i for output in outputs for i in output.token_ids)


def cached(outputs: list[Output]) -> int:
    return outputs[0].cached_tokens


def tokens(seed: int, count: int) -> tuple[Segment, ...]:
    """Some prompt that no other test has."""
    return (Segment(tuple(10 + (seed * 7919 + i * (seed + 31)) % 300 for i in range(count)), Origin.VALUE),)


def longer(call: Call, answer: tuple[int, ...], seed: int = 999, count: int = 10) -> tuple[Segment, ...]:
    """The next turn's prompt."""
    return (*call.segments, Segment(answer, Origin.GENERATED), *tokens(seed, count))


async def churn(engine: VLLMEngine, call: MakeCall, total: int = 6000) -> None:
    """Other prompts, several times what the memory holds."""
    for i in range(total // 400):
        await collect(engine, call(segments=tokens(5000 + i, 400), max_tokens=1))


async def test_a_session_goes_on_to_the_token_and_exactly(engine: VLLMEngine, call: MakeCall) -> None:
    settings: dict[str, Any] = {"max_tokens": 11, "ignore_eos": True}
    first = call(segments=tokens(1, 77), session="exact", keep_s=30, **settings)
    segments = first.segments
    held = 0
    for turn in range(3):
        outputs = await collect(
            engine, call(segments=segments, session="exact", keep_s=30 if turn < 2 else 0, **settings)
        )
        assert cached(outputs) == held, "all but the last token of the answer before"
        held = sum(len(s.ids) for s in segments) + len(ids(outputs)) - 1
        cold = await collect(engine, call(segments=segments, tenant=f"cold {turn}", **settings))
        assert cached(cold) == 0
        assert ids(outputs) == ids(cold)
        segments = (*segments, Segment(ids(outputs), Origin.GENERATED), *tokens(100 + turn, 10))


async def test_a_sampled_session_is_as_sampled_alone(engine: VLLMEngine, call: MakeCall) -> None:
    """A seed does not survive in a talk of vLLM's, so a seeded call is not a turn of one."""
    settings: dict[str, Any] = {"max_tokens": 9, "ignore_eos": True, "temperature": 1.0, "seed": 5}
    first = call(segments=tokens(2, 70), session="seeded", keep_s=30, **settings)
    answer = ids(await collect(engine, first))
    segments = longer(first, answer)
    kept = await collect(engine, call(segments=segments, session="seeded", **settings))
    cold = await collect(engine, call(segments=segments, tenant="cold", **settings))
    assert ids(kept) == ids(cold)
    assert cached(kept) > 0


@pytest.mark.parametrize(
    "settings",
    [{"schema": SCHEMA}, {"stop": ("never written",)}, {"logprobs": 1}, {"n": 2, "temperature": 1.0, "seed": 3}],
    ids=lambda settings: next(iter(settings)),
)
async def test_blocks_of_other_calls_outlive_churn_and_then_go(
    engine: VLLMEngine, call: MakeCall, settings: dict[str, Any]
) -> None:
    name = next(iter(settings))
    common = {"max_tokens": 8, "ignore_eos": True, **settings}
    first = call(segments=tokens(3 + len(name), 10 * BLOCK + 5), session=name, keep_s=60, **common)
    answer = ids(await collect(engine, first))
    assert engine.status().kv_used > 0.05
    await churn(engine, call)
    second = await collect(engine, call(segments=longer(first, answer), session=name, **common))
    assert cached(second) == 10 * BLOCK
    await churn(engine, call)
    third = await collect(engine, call(segments=longer(first, answer), session=name, **common))
    assert cached(third) == 0, "the call before ended it"
    await idle(engine)


async def test_blocks_are_kept_of_a_call_that_a_stop_string_ended(engine: VLLMEngine, call: MakeCall) -> None:
    settings: dict[str, Any] = {"segments": tokens(15, 6 * BLOCK + 5), "max_tokens": 60, "ignore_eos": True}
    whole = "".join(output.text for output in await collect(engine, call(tenant="other", **settings)))
    at = next(i for i in range(4, len(whole)) if whole[i : i + 2].isascii())
    first = call(session="stopped", keep_s=60, stop=(whole[at : at + 2],), **settings)
    answer = ids(await collect(engine, first))
    assert len(answer) < 60
    await churn(engine, call)
    again = await collect(engine, call(segments=longer(first, answer), session="stopped", max_tokens=4))
    assert cached(again) >= 6 * BLOCK
    await idle(engine)


async def idle(engine: VLLMEngine) -> None:
    """Nothing is held any more."""
    async with asyncio.timeout(5):
        while engine.status().kv_used > 0:
            await engine.probe()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["talk", "pin"])
async def test_what_is_kept_expires(engine: VLLMEngine, call: MakeCall, schema: dict[str, Any] | None) -> None:
    await collect(engine, call(segments=tokens(20, 100), session="short", keep_s=0.3, schema=schema))
    await engine.probe()
    await idle(engine)


@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["talk", "pin"])
async def test_what_is_kept_can_be_released(engine: VLLMEngine, call: MakeCall, schema: dict[str, Any] | None) -> None:
    await collect(engine, call(segments=tokens(21, 100), session="freed", keep_s=60, schema=schema))
    await engine.release("freed")
    await idle(engine)


async def test_the_oldest_goes_when_the_budget_is_full(engine: VLLMEngine, call: MakeCall) -> None:
    calls = [call(segments=tokens(30 + i, 300), session=f"s{i}", keep_s=60, max_tokens=4) for i in range(3)]
    answers = [ids(await collect(engine, one)) for one in calls]
    held = [
        cached(await collect(engine, call(segments=longer(one, answer), session=one.session, tenant="")))
        for one, answer in zip(calls, answers, strict=True)
    ]
    assert held[0] % BLOCK == 0, "only in the prefix cache"
    assert held[1] == 300 + len(answers[1]) - 1 and held[2] == 300 + len(answers[2]) - 1
    await idle(engine)


async def test_sessions_give_way_when_calls_wait(engine: VLLMEngine, call: MakeCall) -> None:
    for i in range(2):
        await collect(engine, call(segments=tokens(50 + i, 50), session=f"w{i}", keep_s=60))
    crowd = [call(f"crowd {i}", max_tokens=30, ignore_eos=True) for i in range(10)]
    async with asyncio.timeout(20):
        await asyncio.gather(*(collect(engine, one) for one in crowd))
    await idle(engine)


async def test_a_prompt_that_does_not_go_on_from_the_session_is_computed_anew(
    engine: VLLMEngine, call: MakeCall
) -> None:
    settings: dict[str, Any] = {"max_tokens": 6, "ignore_eos": True}
    await collect(engine, call(segments=tokens(60, 90), session="turned", keep_s=60, **settings))
    other = await collect(engine, call(segments=tokens(61, 90), session="turned", **settings))
    cold = await collect(engine, call(segments=tokens(61, 90), tenant="cold", **settings))
    assert ids(other) == ids(cold)
    await idle(engine)


@pytest.mark.parametrize("leave", ["abort", "close"])
async def test_a_turn_that_is_left_ends_its_session(engine: VLLMEngine, call: MakeCall, leave: str) -> None:
    wanted = call(segments=tokens(70, 60), session="left", keep_s=60, max_tokens=300, ignore_eos=True)
    outputs = engine.generate(wanted)
    await anext(outputs)
    if leave == "abort":
        await engine.abort(wanted.id)
        assert [o async for o in outputs][-1].finish == "abort"
    else:
        await outputs.aclose()  # type: ignore[attr-defined]
    await idle(engine)
    assert ids(await collect(engine, call(segments=wanted.segments, session="left", max_tokens=5)))


async def test_two_calls_of_a_session_at_once_are_both_answered(engine: VLLMEngine, call: MakeCall) -> None:
    settings: dict[str, Any] = {"max_tokens": 20, "ignore_eos": True}
    calls = [call(segments=tokens(80 + i, 60), session="both", keep_s=5, **settings) for i in range(2)]
    together = await asyncio.gather(*(collect(engine, one) for one in calls))
    for one, outputs in zip(calls, together, strict=True):
        assert ids(outputs) == ids(await collect(engine, call(segments=one.segments, tenant="cold", **settings)))
    await engine.release("both")
    await idle(engine)


@pytest.mark.parametrize("extra", [0, 25], ids=["same", "longer"])
@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["talk", "blocks"])
async def test_what_was_computed_ahead_is_not_computed_again(
    engine: VLLMEngine, call: MakeCall, extra: int, schema: dict[str, Any] | None
) -> None:
    known = tokens(90 + extra, 5 * BLOCK + 7)
    whole = (*known, *tokens(95, extra)) if extra else known
    settings: dict[str, Any] = {"max_tokens": 8, "schema": schema}
    await engine.prefill(call(segments=known, **settings))
    warm = await collect(engine, call(segments=whole, **settings))
    cold = await collect(engine, call(segments=whole, tenant="cold", **settings))
    assert cached(warm) == (5 * BLOCK if schema else 5 * BLOCK + 6)
    assert ids(warm) == ids(cold)
    await idle(engine)


async def test_a_call_that_comes_while_its_beginning_is_computed_waits_for_it(
    engine: VLLMEngine, call: MakeCall
) -> None:
    known = tokens(110, 300)
    ahead = asyncio.create_task(engine.prefill(call(segments=known)))
    await asyncio.sleep(0)
    outputs = await collect(engine, call(segments=(*known, *tokens(111, 9)), max_tokens=5))
    await ahead
    assert cached(outputs) == 299


async def test_a_prefill_can_be_left(engine: VLLMEngine, call: MakeCall) -> None:
    task = asyncio.create_task(engine.prefill(call(segments=tokens(120, 400))))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await idle(engine)


@pytest.mark.parametrize("kept", [{}, {"session": "mine", "keep_s": 60}], ids=["cache", "session"])
async def test_tenants_never_share(engine: VLLMEngine, call: MakeCall, kept: dict[str, Any]) -> None:
    prompt = tokens(130 + len(kept), 200)
    first = await collect(engine, call(segments=prompt, tenant="a", **kept))
    again = longer(call(segments=prompt), ids(first))
    for tenant in ("b", ""):
        assert cached(await collect(engine, call(segments=again, tenant=tenant, session=kept.get("session")))) == 0
    assert cached(await collect(engine, call(segments=again, tenant="a", session=kept.get("session")))) >= 192
    await idle(engine)
