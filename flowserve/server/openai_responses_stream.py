"""The stream of a response: numbered events that are the same whenever and as often as they are read.

They are made from the events of the run, which are kept, by a rule that looks at nothing else; so a reader who was cut off goes on
behind the number that it saw last (`starting_after`).
"""

from collections.abc import AsyncGenerator, Iterator
from typing import Any

from flowserve.errors import FlowServeError
from flowserve.runtime.records import Choice
from flowserve.runtime.run import Run
from flowserve.server.openai_convert import tool_calls
from flowserve.server.openai_responses_convert import Kept, call_item, message_item, response, text_part
from flowserve.server.openai_stream import ARGUMENT_CHARS, pieces
from flowserve.server.sse import frame
from flowserve.server.wire import dumps

Event = dict[str, Any]


async def frames(run: Run, kept: Kept, after: int = -1) -> AsyncGenerator[bytes, None]:
    """Events with `sequence_number` > `after`, from 0; the last one has the response as it ended."""
    number = -1
    async for event in _events(run, kept):
        number += 1
        if number > after:
            yield frame(dumps({**event, "sequence_number": number}), event["type"])


async def _events(run: Run, kept: Kept) -> AsyncGenerator[Event, None]:
    for name in ("response.created", "response.in_progress"):
        yield {"type": name, "response": response(run, kept, "in_progress")}
    text = _Text(run)
    end = Choice("", "stop")
    try:
        async for piece in pieces(run):
            for event in text.grow(piece.text):
                yield event
            end = piece.end or end
    except FlowServeError:
        yield {
            "type": "response.failed",
            "response": response(run, kept),
        }  # cancelled too: OpenAI has no event for that
        return
    calls = tool_calls(end)
    for event in text.close(end, empty=not calls):
        yield event
    for i, call in enumerate(calls):
        for event in _call(call_item(run, i, call), i + text.opened):
            yield event
    ended = response(run, kept)
    yield {"type": f"response.{ended['status']}", "response": ended}


class _Text:
    """The message item while it grows."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.opened = False
        self._place = {"item_id": message_item(run, None)["id"], "output_index": 0, "content_index": 0}

    def grow(self, text: str) -> Iterator[Event]:
        if text:
            yield from self._open()
            yield {"type": "response.output_text.delta", **self._place, "delta": text, "logprobs": []}

    def close(self, end: Choice, empty: bool) -> Iterator[Event]:
        """`empty`: a message without text is told as well."""
        if not self.opened and not empty:
            return
        yield from self._open()
        yield {"type": "response.output_text.done", **self._place, "text": end.text, "logprobs": []}
        yield {"type": "response.content_part.done", **self._place, "part": text_part(end.text)}
        yield {"type": "response.output_item.done", "output_index": 0, "item": message_item(self._run, end)}

    def _open(self) -> Iterator[Event]:
        if not self.opened:
            self.opened = True
            yield {"type": "response.output_item.added", "output_index": 0, "item": message_item(self._run, None)}
            yield {"type": "response.content_part.added", **self._place, "part": text_part("")}


def _call(item: dict[str, Any], index: int) -> Iterator[Event]:
    begun = {**item, "arguments": "", "status": "in_progress"}
    place = {"item_id": item["id"], "output_index": index}
    arguments: str = item["arguments"]
    yield {"type": "response.output_item.added", "output_index": index, "item": begun}
    for start in range(0, len(arguments), ARGUMENT_CHARS):
        delta = arguments[start : start + ARGUMENT_CHARS]
        yield {"type": "response.function_call_arguments.delta", **place, "delta": delta}
    yield {
        "type": "response.function_call_arguments.done",
        **place,
        "name": item["name"],
        "arguments": arguments,
    }
    yield {"type": "response.output_item.done", "output_index": index, "item": item}
