"""Prompts of the comparison are the same tokens whether FlowServe makes them in segments or a server makes them whole."""

from random import Random
from typing import Any

import pytest

import flowserve as fs
from flowserve.bench import random_model
from flowserve.bench.random_model import WORDS
from flowserve.bench.workflows import searching, served
from flowserve.bench.workflows.compare import WORKLOADS
from flowserve.bench.workflows.shape import Arrival, Workload
from flowserve.engines.base import Call

pytest.importorskip("transformers", reason="needs the tokenizer of a model")


@pytest.fixture(scope="module")
def published() -> Any:
    """The random models' tokenizer as transformers has it."""
    return random_model._tokenizer()


def wordy(call: Call) -> str:
    """As random weights speak: words, and sometimes a blank at an end."""
    rnd = Random("".join(segment.text for segment in call.segments))
    return rnd.choice(("", " ")) + " ".join(rnd.choices(WORDS, k=6)) + rnd.choice(("", " "))


def samples(workload: Workload) -> list[Arrival]:
    return list({arrival.workflow: arrival for arrival in workload.arrivals(Random(7), 1.0, 20.0)}.values())


@pytest.mark.parametrize("name", WORKLOADS)
async def test_segments_join_to_the_tokens_of_the_whole_prompt(name: str, published: Any) -> None:
    from flowserve.engines.hf_tokenizer import HFTokenizer

    workload = WORKLOADS[name]
    indexes = {searching.INDEX: workload.corpus()[:60]} if workload.corpus is not None else None
    with fs.testing.engine(replies=wordy, indexes=indexes, tokenizer=HFTokenizer(published)) as session:
        for arrival in samples(workload):
            await getattr(served, arrival.workflow).arun(**arrival.input)
        calls = session.calls
    assert calls
    for call in calls:
        messages = [{"role": m.role, "content": m.text} for m in call.messages or ()]
        whole = published.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = [token for segment in call.segments for token in segment.ids]
        assert ids == published.encode(whole, add_special_tokens=False), call.meta
