"""The transformers engine: the same tokens as `model.generate`, whatever else is in the batch."""

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the transformers engine needs torch")

from flowserve.engines.base import Call, Finish, Origin, Output, Sampling, Segment
from flowserve.engines.hf import HFEngine
from flowserve.errors import ConfigError, EngineError, EngineLost, InputError, Unsupported

pytestmark = pytest.mark.torch

Folder = Callable[[str], Path]
Start = Callable[..., Any]


@pytest.fixture
async def start(tiny_folder: Folder) -> AsyncIterator[Start]:
    """Starts engines and closes them at the end."""
    engines: list[HFEngine] = []

    async def make(family: str = "llama", **options: Any) -> HFEngine:
        engine = HFEngine(tiny_folder(family), **{"max_batch": 8, "prefill_chunk": 16, "quiet": True, **options})
        engines.append(engine)
        await engine.start()
        return engine

    yield make
    for engine in engines:
        await engine.close()


def ids_call(name: str, prompt: tuple[int, ...], tenant: str = "", **settings: Any) -> Call:
    settings = {"max_tokens": 12, **settings}
    return Call(name, (Segment(prompt, Origin.VALUE),), Sampling(**settings), tenant=tenant)


def prompts(count: int, seed: int = 0, longest: int = 90) -> list[tuple[int, ...]]:
    source = random.Random(seed)
    return [tuple(source.randrange(7, 300) for _ in range(source.randint(1, longest))) for _ in range(count)]


@functools.cache
def oracle(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def generated(folder: Path, prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    with torch.inference_mode():
        whole = oracle(folder).generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return tuple(whole[0, len(prompt) :].tolist())


async def run(engine: HFEngine, call: Call) -> list[Output]:
    return [output async for output in engine.generate(call)]


def tokens(outputs: list[Output], index: int = 0) -> tuple[int, ...]:
    return tuple(i for output in outputs if output.index == index for i in output.token_ids)


# --- equality ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gpt2", "bloom", "mamba"])
async def test_greedy_equals_generate_in_a_mixed_batch(start: Start, tiny_folder: Folder, family: str) -> None:
    engine = await start(family)
    shares = family not in ("bloom", "mamba")  # these run one by one, the others must not
    assert engine.capabilities.prefix_reuse == shares
    lengths = [3 + 5 * i % 17 for i in range(12)]
    given = prompts(12)
    calls = [ids_call(f"c{i}", p, max_tokens=n) for i, (p, n) in enumerate(zip(given, lengths, strict=True))]
    outputs = await asyncio.gather(*(run(engine, call) for call in calls))
    wanted = [generated(tiny_folder(family), p, n) for p, n in zip(given, lengths, strict=True)]
    assert [tokens(o) for o in outputs] == wanted


async def test_greedy_equals_generate_while_calls_join_leave_and_are_aborted(start: Start, tiny_folder: Folder) -> None:
    engine = await start(max_batch=4)
    given = prompts(24, seed=1)
    source = random.Random(2)
    lengths = [source.randint(1, 40) for _ in given]

    async def one(i: int) -> tuple[int, ...]:
        for _ in range(source.randint(0, 30)):
            await asyncio.sleep(0)  # arrive at some point of the others' work
        found: list[int] = []
        call = ids_call(f"c{i}", given[i], max_tokens=lengths[i])
        async for output in engine.generate(call):
            found += output.token_ids
            if i % 5 == 0 and len(found) == 3:
                await engine.abort(call.id)
        return tuple(found)

    found = await asyncio.gather(*(one(i) for i in range(len(given))))
    for i, (prompt, length) in enumerate(zip(given, lengths, strict=True)):
        wanted = generated(tiny_folder("llama"), prompt, length)
        if i % 5 == 0:
            assert found[i] == wanted[: len(found[i])]
        else:
            assert found[i] == wanted


@pytest.mark.parametrize(("family", "seed"), [("llama", 1), ("mistral", 2)])
async def test_whatever_comes_and_goes_the_tokens_are_those_of_generate(
    start: Start, tiny_folder: Folder, family: str, seed: int
) -> None:
    source = random.Random(seed)
    per_token = 3 * 2 * 2 * 12 * 4  # layers, keys and values, kv heads, head dim, bytes
    kv, prefix = per_token * source.choice([300, 10_000]), per_token * source.choice([50, 500])
    engine = await start(family, max_batch=5, prefill_chunk=source.choice([5, 32]), kv_bytes=kv, prefix_bytes=prefix)
    shared = prompts(3, seed=seed, longest=60)
    full: list[tuple[tuple[int, ...], int, tuple[int, ...]]] = []
    part: list[tuple[tuple[int, ...], int, tuple[int, ...]]] = []

    async def one(i: int) -> None:
        for _ in range(source.randint(0, 200)):
            await asyncio.sleep(0)
        prompt = source.choice(shared)[: source.randint(1, 60)] + prompts(1, seed=i, longest=12)[0]
        length, cut, kind = source.randint(1, 25), source.randint(1, 9), source.choice(["run", "run", "abort", "leave"])
        choices = source.choice([1, 1, 3])
        call = ids_call(f"c{i}", prompt, max_tokens=length, n=choices, tenant=source.choice("ab"))
        outputs: list[Output] = []
        async with contextlib.aclosing(engine.generate(call)) as stream:
            async for output in stream:
                outputs.append(output)
                if kind == "abort" and len(outputs) == cut:
                    await engine.abort(call.id)
                if kind == "leave" and len(outputs) == cut:
                    break
        found = full if kind == "run" else part
        found += [(prompt, length, tokens(outputs, index)) for index in range(choices)]

    await asyncio.gather(*(one(i) for i in range(40)))
    for prompt, length, ids in full:
        assert ids == generated(tiny_folder(family), prompt, length)
    for prompt, length, ids in part:
        assert ids == generated(tiny_folder(family), prompt, length)[: len(ids)]
    assert len(full) > 10 and len(part) > 5


async def test_whole_batches_of_sampled_calls_do_not_touch_each_other(start: Start) -> None:
    engine = await start(prefix_bytes=0)
    given = prompts(16, seed=3)
    settings = [
        {"temperature": 0.5 + i % 3, "top_p": (1.0, 0.8, 0.5)[i % 3], "top_k": (0, 5, 20)[i % 3], "seed": i}
        for i in range(len(given))
    ]
    alone = [tokens(await run(engine, ids_call(f"a{i}", p, **settings[i]))) for i, p in enumerate(given)]
    together = await asyncio.gather(*(run(engine, ids_call(f"b{i}", p, **settings[i])) for i, p in enumerate(given)))
    assert [tokens(outputs) for outputs in together] == alone


async def test_choices_of_one_call_share_the_prompt_and_are_independent(start: Start, tiny_folder: Folder) -> None:
    engine = await start()
    prompt = prompts(1, seed=4)[0]
    call = ids_call("n", prompt, n=5, temperature=1.0, seed=7, max_tokens=10, ignore_eos=True)
    outputs = await run(engine, call)
    each = [tokens(outputs, i) for i in range(5)]
    assert len(set(each)) > 1
    for i in range(5):
        single = ids_call(f"n{i}", prompt, temperature=1.0, seed=7 + i, max_tokens=10, ignore_eos=True)
        assert tokens(await run(engine, single)) == each[i]
    greedy = await run(engine, ids_call("g", prompt, n=3))
    assert {tokens(greedy, i) for i in range(3)} == {generated(tiny_folder("llama"), prompt, 12)}


async def test_logprobs_are_those_of_the_model(start: Start, tiny_folder: Folder) -> None:
    engine = await start()
    prompt = prompts(1, seed=5)[0]
    outputs = await run(engine, ids_call("l", prompt, logprobs=3, max_tokens=6))
    chosen = tokens(outputs)
    with torch.inference_mode():
        logits = oracle(tiny_folder("llama"))(torch.tensor([prompt + chosen])).logits[0, len(prompt) - 1 : -1]
    wanted = torch.log_softmax(logits, dim=-1)
    entries = [entry for output in outputs for entry in output.logprobs]
    for i, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(float(wanted[i, chosen[i]]), abs=1e-3)
        assert [token for token, _, _ in entry.top] == wanted[i].topk(3).indices.tolist()


# --- prefixes -----------------------------------------------------------------------------------------


async def test_a_shared_prefix_is_reused_and_changes_nothing(start: Start, tiny_folder: Folder) -> None:
    engine = await start()
    shared = tuple(range(20, 80))
    tails = [(100 + i, 101, 102) for i in range(6)]
    outputs = [await run(engine, ids_call(f"p{i}", shared + tail)) for i, tail in enumerate(tails)]
    assert [o[0].cached_tokens for o in outputs] == [0, 60, 60, 60, 60, 60]
    assert [tokens(o) for o in outputs] == [generated(tiny_folder("llama"), shared + tail, 12) for tail in tails]
    again = await run(engine, ids_call("again", shared + tails[0]))
    assert again[0].cached_tokens == 62, "the last token is always computed: its logits are needed"


async def test_a_conversation_reuses_its_own_answers(start: Start) -> None:
    engine = await start()
    prompt = tuple(range(30, 60))
    answer = tokens(await run(engine, ids_call("first", prompt, ignore_eos=True)))
    follow_up = await run(engine, ids_call("second", prompt + answer + (9, 10, 11)))
    assert follow_up[0].cached_tokens == len(prompt) + len(answer) - 1


async def test_tenants_share_nothing(start: Start) -> None:
    engine = await start()
    prompt = tuple(range(30, 60))
    await run(engine, ids_call("a", prompt, tenant="a"))
    assert (await run(engine, ids_call("b", prompt, tenant="b")))[0].cached_tokens == 0
    assert (await run(engine, ids_call("a2", prompt, tenant="a")))[0].cached_tokens == 29


async def test_siblings_that_arrive_together_compute_their_common_prefix_once(start: Start) -> None:
    engine = await start()
    shared = tuple(range(20, 120))
    outputs = await asyncio.gather(*(run(engine, ids_call(f"s{i}", (*shared, 200 + i))) for i in range(6)))
    assert sorted(o[0].cached_tokens for o in outputs) == [0, 100, 100, 100, 100, 100]


async def test_prefill_makes_a_later_call_start_from_it(start: Start) -> None:
    engine = await start()
    prompt = tuple(range(30, 60))
    await engine.prefill(ids_call("ahead", prompt))
    assert (await run(engine, ids_call("then", (*prompt, 7))))[0].cached_tokens == 30


# --- scheduling ---------------------------------------------------------------------------------------


async def test_a_long_prompt_does_not_stop_the_others_tokens(start: Start) -> None:
    engine = await start(prefill_chunk=8)
    order: list[str] = []

    async def read(call: Call) -> None:
        async for _ in engine.generate(call):
            order.append(call.id)

    first = engine.generate(ids_call("short", (5, 6, 7), max_tokens=200, ignore_eos=True))
    await anext(first)
    long = asyncio.create_task(read(ids_call("long", tuple(range(8, 208)), max_tokens=1)))
    between = 0
    async for _ in first:
        between += not long.done()
    await long
    assert between >= 200 // 8 - 2, "about one token for each chunk of the long prompt"


async def test_lower_priority_numbers_go_first(start: Start) -> None:
    engine = await start(max_batch=1)
    order: list[str] = []

    async def read(name: str, priority: int) -> None:
        call = Call(name, (Segment((5, 6, 7), Origin.VALUE),), Sampling(max_tokens=3), priority=priority)
        async for output in engine.generate(call):
            if output.finish:
                order.append(name)

    blocker = engine.generate(ids_call("blocker", (9,), max_tokens=480, ignore_eos=True))
    await anext(blocker)
    async with asyncio.TaskGroup() as group:
        for name, priority in (("late", 5), ("soon", 1), ("soon too", 1), ("middle", 3)):
            group.create_task(read(name, priority))
        for _ in range(3):
            await asyncio.sleep(0)
        await engine.abort("blocker")
        async for _ in blocker:
            pass
    assert order == ["soon", "soon too", "middle", "late"]


async def test_memory_bounds_how_many_run_at_once_and_all_finish(start: Start, tiny_folder: Folder) -> None:
    per_token = 3 * 2 * 2 * 12 * 4  # layers, keys and values, kv heads, head dim, bytes
    engine = await start(kv_bytes=per_token * 160, prefix_bytes=0)
    given = prompts(8, seed=6, longest=40)
    outputs = await asyncio.gather(*(run(engine, ids_call(f"m{i}", p)) for i, p in enumerate(given)))
    assert [tokens(o) for o in outputs] == [generated(tiny_folder("llama"), p, 12) for p in given]


async def test_output_that_fills_the_context_ends_with_length(start: Start) -> None:
    engine = await start(max_context=20)
    outputs = await run(engine, ids_call("full", tuple(range(10, 25)), max_tokens=100, ignore_eos=True))
    assert len(tokens(outputs)) == 5
    assert outputs[-1].finish is Finish.LENGTH


# --- schemas ------------------------------------------------------------------------------------------


async def test_constrained_and_free_calls_share_a_batch(start: Start, tiny_folder: Folder, calls_for: Any) -> None:
    import json

    engine = await start()
    call = calls_for(engine)
    schema = {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 3}
    free = prompts(4, seed=8)
    results = await asyncio.gather(
        *(run(engine, ids_call(f"f{i}", p)) for i, p in enumerate(free)),
        *(run(engine, call(schema=schema, temperature=1.5, seed=i, max_tokens=40)) for i in range(4)),
    )
    assert [tokens(o) for o in results[:4]] == [generated(tiny_folder("llama"), p, 12) for p in free]
    for outputs in results[4:]:
        value = json.loads("".join(output.text for output in outputs))
        assert 2 <= len(value) <= 3


async def test_a_schema_that_makes_no_sense_is_an_input_error(start: Start, calls_for: Any) -> None:
    engine = await start()
    with pytest.raises(InputError, match="schema"):
        await run(engine, calls_for(engine)(schema={"type": "no such type"}))


# --- failures -----------------------------------------------------------------------------------------


async def test_a_failing_forward_fails_its_calls_and_the_engine_lives_on(start: Start) -> None:
    engine = await start()
    stepper = engine._stepper
    assert stepper is not None
    forward = stepper._batch._forward  # type: ignore[attr-defined]

    def broken(ids: Any, positions: Any) -> Any:
        if (ids == 299).any():
            raise RuntimeError("the accelerator coughed")
        return forward(ids, positions)

    stepper._batch._forward = broken  # type: ignore[attr-defined]
    good = ids_call("good", (5, 6, 7), max_tokens=30, ignore_eos=True)
    results = await asyncio.gather(run(engine, good), run(engine, ids_call("bad", (5, 299, 7))), return_exceptions=True)
    assert isinstance(results[0], list)
    assert isinstance(results[1], EngineError)
    assert "coughed" in str(results[1]) and "bad" in str(results[1])
    assert tokens(await run(engine, ids_call("after", (5, 6, 7), max_tokens=30, ignore_eos=True))) == tokens(results[0])


async def test_a_failing_decode_fails_the_batch_and_the_next_call_works(start: Start) -> None:
    engine = await start()
    stepper = engine._stepper
    assert stepper is not None
    decode = stepper._batch.decode
    failures = iter([True])

    def broken(ids: Any, positions: Any) -> Any:
        if len(ids) == 2 and next(failures, False):
            raise RuntimeError("out of memory")
        return decode(ids, positions)

    stepper._batch.decode = broken  # type: ignore[method-assign, assignment]
    calls = [ids_call(f"d{i}", (5, 6, 7 + i), max_tokens=300, ignore_eos=True) for i in range(2)]
    results = await asyncio.gather(*(run(engine, call) for call in calls), return_exceptions=True)
    assert all(isinstance(result, EngineError) for result in results)
    assert len(tokens(await run(engine, ids_call("next", (5, 6), ignore_eos=True)))) == 12


async def test_logits_that_are_not_finite_fail_the_call(start: Start) -> None:
    engine = await start()
    stepper = engine._stepper
    assert stepper is not None
    decode = stepper._batch.decode

    def poisoned(ids: Any, positions: Any) -> Any:
        logits = decode(ids, positions)
        logits[-1] = float("nan")
        return logits

    stepper._batch.decode = poisoned  # type: ignore[method-assign, assignment]
    with pytest.raises(EngineError, match="not finite"):
        await run(engine, ids_call("nan", (5, 6, 7), ignore_eos=True))


async def test_a_token_outside_the_vocabulary_is_refused(start: Start) -> None:
    engine = await start()
    with pytest.raises(InputError, match="vocabulary"):
        await run(engine, ids_call("wild", (5, 1_000_000)))


async def test_a_model_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    engine = HFEngine(tmp_path / "nothing", quiet=True)
    with pytest.raises(ConfigError, match="nothing"):
        await engine.start()
    assert not engine.status().up
    assert "nothing" in engine.status().reason
    await engine.close()


async def test_an_unknown_dtype_is_a_config_error(tiny_folder: Folder) -> None:
    engine = HFEngine(tiny_folder("llama"), dtype="float3", quiet=True)
    with pytest.raises(ConfigError, match="float3"):
        await engine.start()
    await engine.close()


async def test_bfloat16_runs(start: Start) -> None:
    engine = await start(dtype="bfloat16")
    outputs = await asyncio.gather(*(run(engine, ids_call(f"h{i}", p)) for i, p in enumerate(prompts(4))))
    assert all(outputs[-1].finish is not None for outputs in outputs)
    assert engine.capabilities.prefix_reuse, "the shared table agrees with the model in bfloat16 too"


async def test_a_thread_that_dies_ends_its_calls_with_engine_lost(start: Start) -> None:
    engine = await start()

    def dies(stepper: Any) -> bool:
        raise SystemExit("no more")

    outputs = engine.generate(ids_call("orphan", (5, 6, 7), max_tokens=400, ignore_eos=True))
    await anext(outputs)
    engine._drain = dies
    with pytest.raises(EngineLost, match="no more"):
        async for _ in outputs:
            pass
    assert not engine.status().up
    with pytest.raises(EngineLost):
        await run(engine, ids_call("late", (5,)))


async def test_a_tokenizer_that_cannot_be_constrained_says_so(tiny_folder: Folder, tmp_path: Path) -> None:
    import json
    import shutil

    from flowserve.demo.tokenizer import reader_tokenizer

    folder = tmp_path / "odd"
    shutil.copytree(tiny_folder("llama"), folder)
    reader_tokenizer().save_pretrained(folder)
    engine = HFEngine(folder, quiet=True)
    await engine.start()
    assert not engine.capabilities.schema
    call = Call("s", (Segment((5,), Origin.VALUE),), schema=json.loads("{}"))
    with pytest.raises(Unsupported, match="tokenizer"):
        await run(engine, call)
    await engine.close()


async def test_using_an_engine_before_it_started_says_so(tiny_folder: Folder) -> None:
    engine = HFEngine(tiny_folder("llama"), quiet=True)
    assert engine.status().reason == "not started"
    with pytest.raises(EngineLost, match="not started"):
        await run(engine, ids_call("early", (5,)))


async def test_closing_ends_the_thread(start: Start) -> None:
    engine = await start()
    thread = engine._thread
    assert thread is not None and thread.is_alive()
    await engine.close()
    assert not thread.is_alive()


async def test_the_event_loop_stays_free_while_the_engine_computes(start: Start) -> None:
    engine = await start()
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    spinner = asyncio.create_task(turn())
    outputs = await run(engine, ids_call("busy", (5, 6, 7), max_tokens=100, ignore_eos=True))
    spinner.cancel()
    assert turns > len(outputs)


async def test_models_that_cannot_share_a_table_say_so_and_reuse_nothing(start: Start, capsys: Any) -> None:
    engine = await start("mamba", quiet=False)
    assert "one by one" in capsys.readouterr().err
    assert not engine.capabilities.prefix_reuse
