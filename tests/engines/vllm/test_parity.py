"""vLLM and transformers give the same answers: the demo model on its own questions, both in float32."""

from collections.abc import Awaitable, Callable

import pytest

from flowserve import demo
from flowserve.engines.base import Call, Engine, Origin, Output, Sampling
from flowserve.engines.chat import ChatFormat, Piece, PromptMessage
from flowserve.engines.vllm import VLLMEngine

pytestmark = [pytest.mark.vllm, pytest.mark.torch, pytest.mark.asyncio(loop_scope="module")]
QUESTIONS = 50
TOKENS = 64


def prompts(engine: Engine) -> list[Call]:
    """Greedy calls with logprobs: a question and the documents that answer it, among others."""
    form = ChatFormat(engine.tokenizer)
    files = sorted(path.name for path in demo.corpus_path().iterdir())
    calls = []
    for i, question in enumerate(demo.questions()[:QUESTIONS]):
        others = [name for name in files if name not in question.documents][i % 20 : i % 20 + 4]
        passages = [
            Piece((demo.corpus_path() / name).read_text(), Origin.CHUNK) for name in (*question.documents, *others)
        ]
        user = (*passages, Piece(f"Question: {question.question}", Origin.VALUE))
        messages = [PromptMessage("system", (Piece("Answer from the passages only."),)), PromptMessage("user", user)]
        calls.append(
            Call(f"q{i}", form.segments(messages), Sampling(max_tokens=TOKENS, ignore_eos=True, logprobs=2), priority=i)
        )
    return calls


async def collect(engine: Engine, call: Call) -> list[Output]:
    return [output async for output in engine.generate(call)]


async def test_answers_are_equal_and_so_are_their_probabilities(start: Callable[..., Awaitable[VLLMEngine]]) -> None:
    from flowserve.engines.hf import HFEngine

    vllm = await start(model=str(demo.reader_path()), kv_bytes=128 << 20)
    hf = HFEngine(demo.reader_path(), dtype="float32", quiet=True)
    await hf.start()
    differences = []
    worst = 0.0
    try:
        assert vllm.tokenizer.fingerprint == hf.tokenizer.fingerprint
        for call in prompts(hf):
            ours, theirs = await collect(vllm, call), await collect(hf, call)
            our_tokens = [entry for output in ours for entry in output.logprobs]
            their_tokens = [entry for output in theirs for entry in output.logprobs]
            assert len(our_tokens) == len(their_tokens) == TOKENS
            for at, (our, their) in enumerate(zip(our_tokens, their_tokens, strict=True)):
                if our.token_id != their.token_id:
                    differences.append(f"{call.id} at {at}: gap {their.top[0][2] - their.top[1][2]:.2g}")
                    break
                worst = max(worst, abs(our.logprob - their.logprob))
                assert our.text == their.text
            else:
                assert "".join(o.text for o in ours) == "".join(o.text for o in theirs)
                assert ours[-1].finish == theirs[-1].finish
    finally:
        await hf.close()
    print(f"greedy answers: {len(differences)} of {QUESTIONS} differ {differences}; logprobs within {worst:.1e}")
    assert not differences
    assert worst < 1e-3
