"""OpenAI's streams: from the events of a run to chunks.

`pieces` is what chat and plain completions share: text as it grows, then one end per choice, then usage. The two
dialects differ only in how a piece is written.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from flowserve.engines.base import Logprob
from flowserve.runtime.records import Choice, Generation, RunEvent, RunSnapshot
from flowserve.runtime.run import Run
from flowserve.server.growing import Growing
from flowserve.server.openai_convert import chat_logprobs, ours, result_text, text_logprobs, tool_calls, usage
from flowserve.server.sse import frame
from flowserve.server.wire import dumps

DONE = b"data: [DONE]\n\n"
ARGUMENT_CHARS = 24
"""Characters of a tool call's arguments per chunk."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Something new about one choice."""

    choice: int
    text: str = ""
    logprobs: tuple[Logprob, ...] = ()
    end: Choice | None = None
    """The choice is complete."""


async def pieces(run: Run) -> AsyncIterator[Piece]:
    """What a run's reader gets, in order. Raises what the run ends with when it has no result."""
    grown: defaultdict[int, Growing] = defaultdict(Growing)
    current: int | None = None
    async for event in run.events():
        if event.type == "node.started" and event.task == current and not event.data.get("continues"):
            for text in grown.values():
                text.restart()
        elif event.type == "node.delta" and event.data.get("result"):
            current = event.task
            piece = _delta(event, grown)
            if piece.text or piece.logprobs:
                yield piece
    value = await run.result()
    if isinstance(value, Generation):
        ends = list(value.choices)
    else:
        ends = [Choice(result_text(run.snapshot().result), "stop")]
    for i, end in enumerate(ends):
        cut = end.finish == "length" and grown[i].sent  # the whole may be JSON around an answer that was cut
        rest = "" if cut else grown[i].finish(end.text)
        if rest:
            yield Piece(i, rest)
        yield Piece(i, end=end)


def _delta(event: RunEvent, grown: defaultdict[int, Growing]) -> Piece:
    choice = int(event.data.get("choice") or 0)
    text = str(event.data.get("text", ""))
    new = grown[choice].add(text)
    return Piece(choice, new, tuple(event.data.get("logprobs") or ()) if new == text else ())


@dataclass(slots=True)
class Chunks:
    """Writes chunks of one answer. `created` is seconds since 1970."""

    id: str
    model: str
    created: int
    include_usage: bool

    def usage_chunk(self, kind: str, run: RunSnapshot) -> bytes:
        return frame(dumps({**self._head(kind), "choices": [], "usage": usage([run]), **ours([run])}))

    def _head(self, kind: str) -> dict[str, Any]:
        head: dict[str, Any] = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        if self.include_usage:
            head["usage"] = None
        return head

    def chunk(self, kind: str, choice: dict[str, Any]) -> bytes:
        return frame(dumps({**self._head(kind), "choices": [choice]}))


@dataclass(slots=True)
class ChatWriter:
    """Pieces as `chat.completion.chunk`s."""

    chunks: Chunks
    logprobs: bool
    _begun: set[int] = field(default_factory=set)

    kind = "chat.completion.chunk"

    def write(self, piece: Piece) -> bytes:
        out = b""
        if piece.choice not in self._begun:
            self._begun.add(piece.choice)
            out = self._chunk(piece.choice, {"role": "assistant", "content": "", "refusal": None})
        if piece.text or piece.logprobs:
            out += self._chunk(piece.choice, {"content": piece.text}, piece.logprobs)
        if piece.end is not None:
            out += self._tools(piece.choice, piece.end)
            out += self._chunk(piece.choice, {}, finish=piece.end.finish)
        return out

    def _tools(self, choice: int, end: Choice) -> bytes:
        out = b""
        for i, call in enumerate(tool_calls(end)):
            arguments = call["function"]["arguments"]
            begun = {**call, "index": i, "function": {"name": call["function"]["name"], "arguments": ""}}
            out += self._chunk(choice, {"tool_calls": [begun]})
            for at in range(0, len(arguments), ARGUMENT_CHARS):
                part = {"index": i, "function": {"arguments": arguments[at : at + ARGUMENT_CHARS]}}
                out += self._chunk(choice, {"tool_calls": [part]})
        return out

    def _chunk(
        self, choice: int, delta: dict[str, Any], logprobs: tuple[Logprob, ...] = (), finish: str | None = None
    ) -> bytes:
        shown = chat_logprobs(logprobs) if self.logprobs and logprobs else None
        return self.chunks.chunk(
            self.kind, {"index": choice, "delta": delta, "logprobs": shown, "finish_reason": finish}
        )


@dataclass(slots=True)
class TextWriter:
    """Pieces as `text_completion` chunks."""

    chunks: Chunks
    logprobs: bool
    _offsets: dict[int, int] = field(default_factory=dict)

    kind = "text_completion"

    def write(self, piece: Piece) -> bytes:
        offset = self._offsets.get(piece.choice, 0)
        self._offsets[piece.choice] = offset + len(piece.text)
        shown = text_logprobs(piece.logprobs, offset) if self.logprobs and piece.logprobs else None
        finish = piece.end.finish if piece.end is not None else None
        return self.chunks.chunk(
            self.kind, {"index": piece.choice, "text": piece.text, "logprobs": shown, "finish_reason": finish}
        )


async def frames(run: Run, writer: ChatWriter | TextWriter) -> AsyncGenerator[bytes, None]:
    """The whole stream, `[DONE]` included."""
    async for piece in pieces(run):
        yield writer.write(piece)
    if writer.chunks.include_usage:
        yield writer.chunks.usage_chunk(writer.kind, run.snapshot())
    yield DONE
