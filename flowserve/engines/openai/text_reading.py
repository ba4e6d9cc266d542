"""Streams that tell text only. Tokens are counted by payloads until `usage` says how many they were."""

from collections.abc import Mapping
from typing import Any

from flowserve.engines.base import Call
from flowserve.engines.detok import StopScanner
from flowserve.engines.openai.reading import Delta, Reader, natural
from flowserve.errors import Unsupported
from flowserve.ids import Tokens


class TextReader(Reader):
    """See the module."""

    def __init__(self, call: Call, where: str) -> None:
        super().__init__(call, where, sum(len(segment.ids) for segment in call.segments))
        self._scanners = [StopScanner(call.sampling.stop) for _ in range(self.asked)]

    def _delta(self, index: int, choice: Mapping[str, Any]) -> Delta:
        text, thought = self._text(choice)
        return Delta(text=self._scanners[index].push(text), untold=1 if text or thought else 0)

    def _not_counted(self) -> Tokens:
        return max(0, natural(self._usage.get("completion_tokens")) - self._count)

    def _rest(self, index: int) -> str:
        return self._scanners[index].finish()

    def _stopped(self, index: int) -> bool:
        return self._scanners[index].stopped

    def _text(self, choice: Mapping[str, Any]) -> tuple[str, bool]:
        """(text, there is also thinking, which the server keeps apart)."""
        delta = choice.get("delta", choice)
        if not isinstance(delta, dict):
            raise self._wrong("expected `delta` to be an object")
        if delta.get("tool_calls") or delta.get("refusal"):
            what = "a tool call" if delta.get("tool_calls") else "a refusal"
            raise Unsupported(f"call '{self._call.id}': {self._where} answered with {what}; expected text")
        text = delta.get("text" if delta is choice else "content")
        if text is not None and not isinstance(text, str):
            raise self._wrong("expected text")
        return text or "", bool(delta.get("reasoning_content") or delta.get("reasoning"))
