"""The compute loop, driven step by step: what goes into one forward."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the transformers engine needs torch")

from flowserve.engines.base import Call, Finish, Origin, Output, Sampling, Segment
from flowserve.engines.hf_load import Source, load_model
from flowserve.engines.job import Job
from flowserve.engines.prefix import PrefixCache
from flowserve.engines.stepper import Stepper

pytestmark = pytest.mark.torch

Folder = Callable[[str], Path]


class Bench:
    """A stepper whose forwards are noted: (sequences, tokens of each)."""

    def __init__(self, folder: Path, prefill_chunk: int = 64, max_batch: int = 8) -> None:
        loaded = load_model(Source(str(folder)), 1 << 28)
        self.stepper = Stepper(
            loaded.batch,
            loaded.tokenizer,
            PrefixCache(1 << 20),
            loaded.grammars,
            max_batch=max_batch,
            max_context=loaded.max_context,
            prefill_chunk=prefill_chunk,
        )
        self.forwards: list[tuple[int, int]] = []
        self.outputs: dict[str, list[Any]] = {}
        batch: Any = loaded.batch
        forward = batch._forward

        def noted(ids: Any, positions: Any) -> Any:
            self.forwards.append(tuple(ids.shape))
            return forward(ids, positions)

        batch._forward = noted

    def add(self, name: str, prompt: Sequence[int], **settings: Any) -> Job:
        call = Call(name, (Segment(tuple(prompt), Origin.VALUE),), Sampling(**{"max_tokens": 6, **settings}))
        job = Job(call, call.prompt_ids, self.outputs.setdefault(name, []).append)
        self.stepper.add(job)
        return job

    def step(self) -> list[tuple[int, int]]:
        """The step's forwards."""
        self.forwards.clear()
        self.stepper.step()
        for job, item in self.stepper.outbox:
            job.deliver(item)
        self.stepper.outbox.clear()
        return list(self.forwards)

    def finish(self) -> None:
        while not self.stepper.idle:
            self.step()

    def tokens(self, name: str) -> list[int]:
        return [i for output in self.outputs[name] if isinstance(output, Output) for i in output.token_ids]


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.inference_mode():
        yield


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(7, 290) for _ in range(source.randint(1, longest))] for _ in range(count)]


def alone(folder: Path, prompt: Sequence[int], **settings: Any) -> list[int]:
    bench = Bench(folder)
    bench.add("only", prompt, **settings)
    bench.finish()
    return bench.tokens("only")


def test_short_prompts_are_computed_in_one_forward(tiny_folder: Folder) -> None:
    """Each took a forward of its own: eight for eight prompts of a few tokens."""
    bench = Bench(tiny_folder("llama"))
    for i, length in enumerate((5, 3, 8, 1, 8, 2, 7, 4)):
        bench.add(str(i), range(10 * i + 10, 10 * i + 10 + length), ignore_eos=True)
    assert bench.step() == [(8, 8), (8, 1)], "one for the prompts, one for the second tokens"


def test_padding_counts_against_the_step_too(tiny_folder: Folder) -> None:
    bench = Bench(tiny_folder("llama"), prefill_chunk=64)
    for i, length in enumerate((30, 2, 30, 3)):
        bench.add(str(i), range(60 * i + 10, 60 * i + 10 + length))
    assert bench.step()[0] == (2, 30), "a third row would make 90"


def test_what_is_left_of_cached_prompts_is_computed_together(tiny_folder: Folder) -> None:
    bench = Bench(tiny_folder("llama"))
    shared = list(range(20, 60))
    bench.add("first", shared)
    bench.finish()
    for i in range(4):
        bench.add(str(i), [*shared, 70 + i], ignore_eos=True)
    assert bench.step()[0] == (4, 1)
    assert all(bench.outputs[str(i)][0].cached_tokens == 40 for i in range(4))


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2", "gpt2"])
def test_a_prompt_among_others_gives_the_tokens_that_it_gives_alone(tiny_folder: Folder, family: str) -> None:
    folder = tiny_folder(family)
    bench = Bench(folder, prefill_chunk=200)
    given = prompts(6, longest=40)
    given += [given[0] + [11, 12, 13], given[1] + [14], given[2][:-1] + [9]]  # beginnings that are known by then
    for i, prompt in enumerate(given):
        bench.add(str(i), prompt, max_tokens=8)
    bench.finish()
    for i, prompt in enumerate(given):
        assert bench.tokens(str(i)) == alone(folder, prompt, max_tokens=8), i


def test_padding_stays_within_the_positions_that_a_model_knows(tiny_folder: Folder) -> None:
    """A nearly full context beside a long rest: padding may not ask gpt2 for a position that it has not learned."""
    folder = tiny_folder("gpt2")
    bench = Bench(folder, prefill_chunk=600)
    long = prompts(1, longest=1)[0] * 508
    bench.add("first", long, max_tokens=1)
    bench.finish()
    other = prompts(1, longest=80, seed=3)[0]
    bench.add("long", [*long, 9], max_tokens=3, ignore_eos=True)
    bench.add("other", other, max_tokens=3, ignore_eos=True)
    bench.finish()
    assert bench.outputs["long"][0].cached_tokens == 508
    assert bench.tokens("long") == alone(folder, [*long, 9], max_tokens=3, ignore_eos=True)
    assert bench.tokens("other") == alone(folder, other, max_tokens=3, ignore_eos=True)


def test_samples_and_singles_mix(tiny_folder: Folder) -> None:
    folder = tiny_folder("llama")
    bench = Bench(folder)
    bench.add("a", [5, 6, 7], seed=1, temperature=1.0)
    bench.add("many", [8, 9], n=3, seed=2, temperature=1.0)
    bench.add("b", [5, 6, 8], seed=3, temperature=1.0)
    bench.finish()
    assert bench.tokens("a") == alone(folder, [5, 6, 7], seed=1, temperature=1.0)
    assert bench.tokens("b") == alone(folder, [5, 6, 8], seed=3, temperature=1.0)
    assert bench.tokens("many") == alone(folder, [8, 9], n=3, seed=2, temperature=1.0)


def test_a_job_aborted_while_it_waits_leaves_no_gap_in_the_slots(tiny_folder: Folder) -> None:
    folder = tiny_folder("llama")
    bench = Bench(folder)
    jobs = [bench.add(str(i), [20 + i, 30 + i], ignore_eos=True) for i in range(4)]
    bench.stepper.abort(jobs[1])
    bench.step()
    bench.stepper.abort(jobs[0])
    bench.finish()
    for name in "01":
        assert bench.outputs[name][-1].finish is Finish.ABORT
    for i in (2, 3):
        assert bench.tokens(str(i)) == alone(folder, [20 + i, 30 + i], ignore_eos=True)


def test_texts_of_logprobs_are_as_they_read_in_the_answer(tiny_folder: Folder) -> None:
    """Word pieces came with their marks (`##lol`) and words without their space."""
    bench = Bench(tiny_folder("llama"))
    words = {290: "Ve", 291: "##lol", 292: "is"}

    class Pieces:
        eos_ids = ()

        def decode(self, ids: Sequence[int]) -> str:
            pieces = [words[i] for i in ids]
            return pieces[0] + "".join(p[2:] if p.startswith("##") else f" {p}" for p in pieces[1:]) if pieces else ""

    bench.stepper._tokenizer = Pieces()  # type: ignore[assignment]
    batch: Any = bench.stepper._batch
    answer = iter(words)

    def scripted(ids: Any, positions: Any) -> Any:
        logits = torch.zeros(len(ids), 384)
        logits[:, next(answer)] = 9.0
        logits[:, list(words)] += 1.0
        return logits

    batch._forward = scripted
    bench.add("a", [5, 6], max_tokens=3, logprobs=1)
    bench.finish()
    found = [logprob for output in bench.outputs["a"] for logprob in output.logprobs]
    assert [logprob.text for logprob in found] == ["Ve", "lol", " is"]
    assert [logprob.top[0][1] for logprob in found] == ["Ve", "lol", " is"]


def test_prompts_that_fail_together_are_tried_alone(tiny_folder: Folder) -> None:
    bench = Bench(tiny_folder("llama"))
    batch: Any = bench.stepper._batch
    forward = batch._forward

    def small(ids: Any, positions: Any) -> Any:
        if ids.numel() > 8:
            raise RuntimeError("out of memory")
        return forward(ids, positions)

    batch._forward = small
    for i in range(3):
        bench.add(str(i), range(10 * i + 10, 10 * i + 15), ignore_eos=True)
    bench.finish()
    for i in range(3):
        assert bench.tokens(str(i)) == alone(tiny_folder("llama"), range(10 * i + 10, 10 * i + 15), ignore_eos=True)
