"""What every engine must do. The fixture `engine` runs each test on each kind; see conftest.py to add one."""

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from flowserve.engines.base import Call, Engine, Finish, Origin, Output, Segment
from flowserve.engines.detok import TextStream
from flowserve.errors import ContextTooLong, EngineLost, InputError, RequestError, Unsupported

pytestmark = pytest.mark.asyncio(loop_scope="module")
MakeCall = Callable[..., Call]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Krekol", "Mudi"]}, "ok": {"type": "boolean"}, "size": {"enum": [1, 2, 3]}},
    "required": ["name", "ok", "size"],
    "additionalProperties": False,
}


async def collect(engine: Engine, call: Call) -> list[Output]:
    return [output async for output in engine.generate(call)]


def text(outputs: list[Output], index: int = 0) -> str:
    return "".join(output.text for output in outputs if output.index == index)


def ids(outputs: list[Output], index: int = 0) -> tuple[int, ...]:
    return tuple(i for output in outputs if output.index == index for i in output.token_ids)


def finishes(outputs: list[Output]) -> dict[int, Finish]:
    """Finish of each choice; fails when one finished twice."""
    counts = Counter(output.index for output in outputs if output.finish is not None)
    assert all(count == 1 for count in counts.values()), counts
    return {output.index: output.finish for output in outputs if output.finish is not None}


async def test_deltas_concatenate_to_the_decoded_tokens(engine: Engine, call: MakeCall) -> None:
    outputs = await collect(engine, call(max_tokens=24, ignore_eos=True))
    assert text(outputs) == engine.tokenizer.decode(ids(outputs))
    assert len(outputs) > 3, "text comes in pieces"


async def test_every_choice_finishes_exactly_once_and_says_nothing_after(engine: Engine, call: MakeCall) -> None:
    outputs = await collect(engine, call(n=3, temperature=1.0, seed=1))
    assert set(finishes(outputs)) == {0, 1, 2}
    for index in range(3):
        assert [output for output in outputs if output.index == index][-1].finish is not None


async def test_prompt_tokens_are_told_once(engine: Engine, call: MakeCall) -> None:
    wanted = call(n=2)
    outputs = await collect(engine, wanted)
    told = [output.prompt_tokens for output in outputs if output.prompt_tokens]
    assert told == [len(wanted.prompt_ids)]
    assert next(output for output in outputs if output.index == 0).prompt_tokens


async def test_max_tokens_is_the_greatest_number_of_tokens(engine: Engine, call: MakeCall) -> None:
    for limit in (1, 5):
        outputs = await collect(engine, call(max_tokens=limit, ignore_eos=True))
        assert len(ids(outputs)) == limit
        assert finishes(outputs) == {0: Finish.LENGTH}


async def test_a_stop_string_ends_the_text_before_it(engine: Engine, call: MakeCall) -> None:
    whole = text(await collect(engine, call(max_tokens=16, ignore_eos=True)))
    clean = next(i for i in range(4, len(whole) - 2) if "\ufffd" not in whole[i : i + 2])
    stop = whole[clean : clean + 2]
    outputs = await collect(engine, call(max_tokens=16, ignore_eos=True, stop=(stop, "never written")))
    assert text(outputs) == whole[: whole.index(stop)]
    assert finishes(outputs) == {0: Finish.STOP}


async def test_greedy_is_deterministic_and_ignores_the_seed(engine: Engine, call: MakeCall) -> None:
    runs = [ids(await collect(engine, call(seed=seed))) for seed in (None, 1, 2)]
    assert runs[0] == runs[1] == runs[2]


async def test_the_same_seed_gives_the_same_tokens_whatever_else_runs(engine: Engine, call: MakeCall) -> None:
    if not engine.capabilities.deterministic_seed:
        pytest.skip("the engine has no deterministic seed")
    settings: dict[str, Any] = {"temperature": 1.0, "seed": 11, "top_p": 0.9, "max_tokens": 12, "ignore_eos": True}
    alone = await collect(engine, call(**settings))
    crowd = [call(f"other prompt {i}", temperature=1.0, seed=i, max_tokens=4 + i) for i in range(5)]
    together = await asyncio.gather(collect(engine, call(**settings)), *(collect(engine, other) for other in crowd))
    assert ids(together[0]) == ids(alone)
    double = await collect(engine, call(**settings, n=2))
    assert ids(double, 0) == ids(alone)
    next_seed = await collect(engine, call(**{**settings, "seed": 12}))
    assert ids(double, 1) == ids(next_seed), "choice i draws from seed + i"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_logprobs_are_sane(engine: Engine, call: MakeCall, temperature: float) -> None:
    if not engine.capabilities.logprobs:
        pytest.skip("the engine has no logprobs")
    outputs = await collect(engine, call(logprobs=4, temperature=temperature, seed=5, ignore_eos=True))
    entries = [entry for output in outputs for entry in output.logprobs]
    assert [entry.token_id for entry in entries] == list(ids(outputs))
    for entry in entries:
        values = [value for _, _, value in entry.top]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)
        assert all(math.isfinite(value) and value <= 0 for value in [entry.logprob, *values])
        assert sum(math.exp(value) for value in values) <= 1 + 1e-4
        if temperature == 0:
            assert entry.top[0][0] == entry.token_id
        assert entry.text == engine.tokenizer.decode((entry.token_id,))


async def test_logprobs_of_chosen_tokens_only_and_none_at_all(engine: Engine, call: MakeCall) -> None:
    if not engine.capabilities.logprobs:
        pytest.skip("the engine has no logprobs")
    chosen = await collect(engine, call(logprobs=0))
    assert all(entry.top == () for output in chosen for entry in output.logprobs)
    assert sum(len(output.logprobs) for output in chosen) == len(ids(chosen))
    assert not any(output.logprobs for output in await collect(engine, call()))


@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_output_satisfies_the_schema(engine: Engine, call: MakeCall, temperature: float) -> None:
    wanted = call(schema=SCHEMA, max_tokens=100, temperature=temperature, seed=3, n=2)
    if not engine.capabilities.schema:
        with pytest.raises(Unsupported, match="schema"):
            await collect(engine, wanted)
        return
    outputs = await collect(engine, wanted)
    for index in range(2):
        Draft202012Validator(SCHEMA).validate(json.loads(text(outputs, index)))
    assert set(finishes(outputs).values()) == {Finish.STOP}


async def test_abort_ends_the_iterator_with_abort(engine: Engine, call: MakeCall) -> None:
    wanted = call(max_tokens=400, ignore_eos=True)
    outputs: list[Output] = []
    async for output in engine.generate(wanted):
        outputs.append(output)
        if len(outputs) == 2:
            await engine.abort(wanted.id)
    assert finishes(outputs) == {0: Finish.ABORT}
    assert engine.status().running == 0


async def test_aborting_an_unknown_call_does_nothing(engine: Engine, call: MakeCall) -> None:
    await engine.abort("nobody")
    assert finishes(await collect(engine, call()))


async def test_leaving_the_iterator_frees_the_engine(engine: Engine, call: MakeCall, settle: Any) -> None:
    async with aclosing(engine.generate(call(max_tokens=400, ignore_eos=True))) as outputs:  # type: ignore[type-var]
        async for _ in outputs:
            break
    await settle(lambda: engine.status().running == 0 and engine.status().waiting == 0)


async def test_cancelling_the_reader_frees_the_engine(engine: Engine, call: MakeCall, settle: Any) -> None:
    task = asyncio.create_task(collect(engine, call(max_tokens=400, ignore_eos=True)))
    await settle(lambda: engine.status().running > 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settle(lambda: engine.status().running == 0)


async def test_a_prompt_that_does_not_fit_is_refused_before_anything_runs(engine: Engine, call: MakeCall) -> None:
    before = engine.status().tokens_out_total
    with pytest.raises(ContextTooLong, match=str(engine.capabilities.max_context)):
        await collect(engine, call("word " * 3 * engine.capabilities.max_context))
    assert engine.status().tokens_out_total == before
    assert finishes(await collect(engine, call()))


async def test_an_empty_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="no tokens"):
        await collect(engine, Call("empty", (Segment((), Origin.VALUE, ""),)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_k": -1},
        {"max_tokens": 0},
        {"n": 0},
        {"n": 10_000},
        {"logprobs": 1000},
        {"stop": ("",)},
        {"seed": 1 << 80},
    ],
    ids=str,
)
async def test_bad_sampling_names_the_setting(engine: Engine, call: MakeCall, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        await collect(engine, call(**wrong))


async def test_an_unknown_model_is_refused_with_the_known_ones(engine: Engine, call: MakeCall) -> None:
    with pytest.raises(RequestError, match=engine.capabilities.models[0]):
        await collect(engine, call(model="no such model"))
    assert finishes(await collect(engine, call(model=engine.capabilities.models[0])))


async def test_many_calls_at_once_are_each_answered_as_if_alone(engine: Engine, call: MakeCall) -> None:
    texts = [f"prompt number {i} " * (1 + i % 5) for i in range(20)]
    alone = [ids(await collect(engine, call(prompt, max_tokens=3 + i))) for i, prompt in enumerate(texts)]
    together = await asyncio.gather(
        *(collect(engine, call(prompt, max_tokens=3 + i)) for i, prompt in enumerate(texts))
    )
    assert [ids(outputs) for outputs in together] == alone


async def test_a_second_call_with_the_id_of_a_running_one_is_refused(engine: Engine, call: MakeCall) -> None:
    first = engine.generate(call(id="same", max_tokens=400, ignore_eos=True))
    await anext(first)
    with pytest.raises(InputError, match="same"):
        await collect(engine, call(id="same"))
    await engine.abort("same")
    assert finishes([output async for output in first]) == {0: Finish.ABORT}


async def test_prefill_is_a_hint_that_changes_no_answer(engine: Engine, call: MakeCall) -> None:
    plain = ids(await collect(engine, call("a long shared prompt to be computed ahead")))
    await engine.prefill(call("a long shared prompt to be computed ahead, and more"))
    assert ids(await collect(engine, call("a long shared prompt to be computed ahead"))) == plain


async def test_status_counts_what_runs_and_what_came_out(engine: Engine, call: MakeCall) -> None:
    status = engine.status()
    assert (status.up, status.running, status.waiting) == (True, 0, 0)
    assert status.window > 0
    outputs = await collect(engine, call())
    assert engine.status().tokens_out_total == status.tokens_out_total + len(ids(outputs))
    assert 0 <= engine.status().kv_used <= 1


async def test_closing_while_calls_run_ends_them(engine: Engine, call: MakeCall) -> None:
    ends: list[object] = []

    async def read(wanted: Call) -> None:
        try:
            outputs = await collect(engine, wanted)
            ends.extend(finishes(outputs).values())
        except EngineLost as error:
            ends.append(error)

    started = asyncio.Event()

    async def read_first() -> None:
        outputs = engine.generate(call(max_tokens=400, ignore_eos=True))
        collected = [await anext(outputs)]
        started.set()
        collected += [output async for output in outputs]
        ends.extend(finishes(collected).values())

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(read_first())
        await started.wait()
        for _ in range(3):
            group.create_task(read(call(max_tokens=400, ignore_eos=True)))
        await asyncio.sleep(0)
        await engine.close()
    assert len(ends) == 4
    assert all(end is Finish.ABORT or isinstance(end, EngineLost) for end in ends)


async def test_a_closed_engine_says_so_and_closing_again_is_fine(engine: Engine, call: MakeCall) -> None:
    wanted = call()
    await engine.close()
    await engine.close()
    assert not engine.status().up
    assert engine.status().reason
    with pytest.raises(EngineLost):
        await collect(engine, wanted)


@pytest.mark.parametrize("stop", [(), ("e", "never written")], ids=["", "stop"])
async def test_a_call_that_another_engine_began_goes_on_where_it_stood(
    engine: Engine, call: MakeCall, stop: tuple[str, ...]
) -> None:
    whole = await collect(engine, call(max_tokens=12, ignore_eos=True, stop=stop))
    written = ids(whole)
    for kept in range(1, len(written) - 1, 3):
        shown = TextStream(engine.tokenizer.decode, stop).push(written[:kept])
        rest = await collect(engine, call(max_tokens=12, ignore_eos=True, stop=stop, resumed=written[:kept]))
        assert written[:kept] + ids(rest) == written
        assert shown + text(rest) == text(whole)
        assert finishes(rest) == finishes(whole)


async def test_what_cannot_be_resumed_is_refused(engine: Engine, call: MakeCall) -> None:
    for wrong in ({"n": 2}, {"schema": SCHEMA}, {"max_tokens": 1}):
        if wrong == {"schema": SCHEMA} and not engine.capabilities.schema:
            continue
        with pytest.raises(RequestError, match="resumed"):
            await collect(engine, call(resumed=(5,), **wrong))


async def test_output_matches_the_regular_expression(engine: Engine, call: MakeCall) -> None:
    pattern = "(red|green) [0-9]{3}"
    wanted = call(regex=pattern, max_tokens=40, meta={"node": "colour"})
    if not engine.capabilities.regex:
        with pytest.raises(Unsupported, match="regex"):
            await collect(engine, wanted)
        return
    outputs = await collect(engine, wanted)
    assert re.fullmatch(pattern, text(outputs))
    assert finishes(outputs) == {0: Finish.STOP}


async def test_output_follows_the_grammar(engine: Engine, call: MakeCall) -> None:
    wanted = call(grammar='start: "(" ("a" | "b") ")"', max_tokens=40, meta={"node": "brackets"})
    if not engine.capabilities.grammar:
        with pytest.raises(Unsupported, match="grammar"):
            await collect(engine, wanted)
        return
    outputs = await collect(engine, wanted)
    assert text(outputs) in ("(a)", "(b)")
    assert finishes(outputs) == {0: Finish.STOP}


async def test_two_constraints_at_once_are_refused(engine: Engine, call: MakeCall) -> None:
    with pytest.raises(InputError, match="at most one"):
        await collect(engine, call(regex="a", schema=SCHEMA))


async def test_a_probe_is_answered_beside_other_calls(engine: Engine, call: MakeCall) -> None:
    await engine.probe()
    task = asyncio.create_task(collect(engine, call(max_tokens=24, ignore_eos=True)))
    async with asyncio.timeout(20):
        await engine.probe()
    assert finishes(await task) == {0: Finish.LENGTH if engine.capabilities.models[0] != "fake" else Finish.STOP}


async def test_a_new_priority_changes_no_answer(engine: Engine, call: MakeCall) -> None:
    whole = ids(await collect(engine, call(max_tokens=24, ignore_eos=True)))
    wanted = call(max_tokens=24, ignore_eos=True, priority=5)
    outputs: list[Output] = []
    async for output in engine.generate(wanted):
        outputs.append(output)
        if len(outputs) == 2:
            await engine.reprioritise(wanted.id, -5)
    assert ids(outputs) == whole
    await engine.reprioritise("nobody", 1)


async def test_what_is_kept_for_a_session_changes_no_answer(engine: Engine, call: MakeCall) -> None:
    first = call("The first turn of a talk. ", session="talk", keep_s=30.0, max_tokens=6, ignore_eos=True)
    answer = ids(await collect(engine, first))
    longer = Segment(answer, Origin.GENERATED, engine.tokenizer.decode(answer))
    more = Segment(tuple(engine.tokenizer.encode("And more. ")), Origin.VALUE, "And more. ")
    turn = (*first.segments, longer, more)
    plain = ids(await collect(engine, call(segments=turn, session="another")))
    assert ids(await collect(engine, call(segments=turn, session="talk", keep_s=30.0))) == plain
    assert ids(await collect(engine, call(segments=turn, session="talk"))) == plain
    await engine.release("talk")
    await engine.release("nobody")


async def test_the_listener_hears_when_the_engine_goes(engine: Engine) -> None:
    heard: list[bool] = []
    engine.watch(lambda told, news: heard.append(told.status().up))
    await engine.close()
    assert heard and heard[-1] is False


async def test_a_closed_engine_can_be_started_again(engine: Engine, call: MakeCall) -> None:
    if not engine.capabilities.restart:
        pytest.skip("the engine cannot be started twice")
    before = ids(await collect(engine, call()))
    await engine.close()
    await engine.start()
    assert engine.status().up
    assert ids(await collect(engine, call())) == before
