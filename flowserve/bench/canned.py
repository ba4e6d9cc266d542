"""An engine that answers at once with canned text, in the server's own process: what is left is what FlowServe costs."""

from collections.abc import AsyncIterator

from flowserve.engines.base import Call, Finish, Output
from flowserve.engines.fake import FakeEngine
from flowserve.ids import Tokens

PIECE_TOKENS: Tokens = 16
"""As the vllm engine's: a call that nobody reads along is told in pieces of so many."""


class CannedEngine(FakeEngine):
    """`x x x ...` up to the call's limit, by tokens where somebody reads along, else in pieces."""

    def __init__(self) -> None:
        super().__init__(models=("mock",), window=512)

    async def generate(self, call: Call) -> AsyncIterator[Output]:
        limit = call.sampling.max_tokens or 64
        prompt = sum(len(segment.ids) for segment in call.segments)
        for begin in range(0, limit, 1 if call.stream else PIECE_TOKENS):
            count = min(1 if call.stream else PIECE_TOKENS, limit - begin)
            yield Output(
                token_ids=(120,) * count,
                text="x " * count,
                finish=Finish.LENGTH if begin + count == limit else None,
                prompt_tokens=0 if begin else prompt,
            )
