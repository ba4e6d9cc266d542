"""Streams that tell token ids: the text is made of them here, so that it is the same as with every other engine."""

import math
from collections.abc import Mapping
from typing import Any

from flowserve.engines.base import Call, Logprob, Tokenizer
from flowserve.engines.detok import TextStream
from flowserve.engines.openai.reading import Delta, Reader
from flowserve.ids import Tokens

FLOOR = -9999.0
"""What servers write for a probability of zero: JSON has no infinity."""


class TokenReader(Reader):
    """See the module."""

    def __init__(self, call: Call, where: str, tokenizer: Tokenizer) -> None:
        super().__init__(call, where, len(call.prompt_ids))
        self._decode = tokenizer.decode
        self.written: list[list[int]] = [[] for _ in range(self.asked)]
        """Tokens of each choice, without those that the call came with."""
        self._streams = [TextStream(tokenizer.decode, call.sampling.stop) for _ in range(self.asked)]
        for stream in self._streams:
            stream.push(call.resumed)
        self._moved = False

    def go_on(self) -> list[int]:
        """The rest of the answer comes from another request, whose prompt ends in the tokens returned."""
        self._writing = set(self._open)
        self._moved = True
        return self.written[0]

    def _delta(self, index: int, choice: Mapping[str, Any]) -> Delta:
        ids = choice.get("token_ids")
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            raise self._wrong("expected `token_ids` in every choice")
        logprobs = self._logprobs(index, ids, choice.get("logprobs"))
        stream = self._streams[index]
        text = ""
        for count, token in enumerate(ids, 1):
            text += stream.push((token,))
            if stream.stopped:
                ids = ids[:count]
                break
        self.written[index] += ids
        return Delta(tuple(ids), text, logprobs[: len(ids)])

    def _cached(self) -> Tokens:
        """What a call finds of itself when it goes on was not saved to anybody."""
        return 0 if self._moved else min(super()._cached(), self._prompt_tokens)

    def _rest(self, index: int) -> str:
        return self._streams[index].finish()

    def _stopped(self, index: int) -> bool:
        return self._streams[index].stopped

    def _logprobs(self, index: int, ids: list[int], told: Any) -> tuple[Logprob, ...]:
        wanted = self._call.sampling.logprobs
        if wanted is None or not ids:
            return ()
        told = told if isinstance(told, dict) else {}
        tokens, values, tops = (told.get(name) or () for name in ("tokens", "token_logprobs", "top_logprobs"))
        if not len(tokens) == len(values) == len(ids) or (wanted and len(tops) != len(ids)):
            raise self._wrong(f"expected logprobs of {len(ids)} tokens; got {len(values)}")
        if [self._token(token) for token in tokens] != ids:
            raise self._wrong("expected the logprobs to be of the tokens told")
        before = (*self._call.resumed, *self.written[index])[-1:]
        entries: list[Logprob] = []
        for i, token in enumerate(ids):
            top = self._top(tops[i], wanted, before) if wanted else ()
            entries.append(Logprob(token, self._text(before, token), self._value(values[i]), top))
            before = (token,)
        return tuple(entries)

    def _top(self, told: Any, wanted: int, before: tuple[int, ...]) -> tuple[tuple[int, str, float], ...]:
        """Best first. Servers add the chosen token to the likeliest `wanted`."""
        if not isinstance(told, dict):
            raise self._wrong("expected `top_logprobs` of every token")
        ranked = sorted(((self._value(value), token) for token, value in told.items()), key=lambda x: -x[0])
        best = [(self._token(token), value) for value, token in ranked[:wanted]]
        return tuple((token, self._text(before, token), value) for token, value in best)

    def _text(self, before: tuple[int, ...], token: int) -> str:
        """As it reads behind the one before: alone, word pieces keep their marks."""
        context = self._decode(before) if before else ""
        both = self._decode((*before, token))
        return both[len(context) :] if both.startswith(context) else self._decode((token,))

    def _token(self, told: Any) -> int:
        name, _, number = str(told).partition(":")
        if name != "token_id" or not (number.isascii() and number.isdigit()):
            raise self._wrong("expected the logprobs' tokens as ids")
        return int(number)

    def _value(self, told: Any) -> float:
        if isinstance(told, bool) or not isinstance(told, int | float) or not math.isfinite(told) or told > 1e-3:
            raise self._wrong("expected logprobs to be finite and at most 0")
        return min(0.0, max(FLOOR, float(told)))
