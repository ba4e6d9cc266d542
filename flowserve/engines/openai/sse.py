"""Server-sent events: bytes in, payloads out, however the bytes are cut.

Only `data:` fields count; the lines of one event are joined. Lines end in LF, CRLF or CR. Comments, other fields and a
byte order mark are passed over.
"""

from flowserve.errors import EngineError

MAX_EVENT_BYTES = 16 << 20
"""vLLM's first event repeats the prompt's token ids: 16 MiB is a prompt of two million tokens."""
_MARK = b"\xef\xbb\xbf"


class SSE:
    """A parser of one stream. limit: of one event, in bytes."""

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self._limit = limit
        self._rest = b""
        self._carriage = False
        """The last byte was a CR, which an LF may follow."""

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads of the events that `data` completes. Raises EngineError for an event over the limit."""
        if self._carriage or b"\r" in data:
            data = self._with_plain_ends(data)
        *events, self._rest = (self._rest + data).split(b"\n\n")
        if len(self._rest) > self._limit:
            raise EngineError(f"protocol: expected events of at most {self._limit} bytes; got a longer one")
        return [payload for event in events if (payload := _payload(event)) is not None]

    def end(self) -> list[bytes]:
        """The same for what stands behind the last blank line when no more bytes come."""
        payload = _payload(self._rest)
        self._rest = b""
        return [] if payload is None else [payload]

    def _with_plain_ends(self, data: bytes) -> bytes:
        if self._carriage:
            data = b"\r" + data
        self._carriage = data.endswith(b"\r")
        if self._carriage:
            data = data[:-1]
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _payload(event: bytes) -> bytes | None:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [line for line in event.removeprefix(_MARK).split(b"\n") if line == b"data" or line.startswith(b"data:")]
    if not lines:
        return None
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)
