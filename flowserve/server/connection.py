"""One TCP connection with the time and size limits that uvicorn leaves out.

uvicorn has no limit on how long headers may take or how large they may grow, keeps a reader that takes nothing for
ever, and keeps a client that goes on sending a body after it was answered. Each of these is a timer here, and when it
fires the connection is aborted: closing would first wait for the reader.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from flowserve.server.errors import STATUS_CODES, Fault, error_headers, problem_body
from flowserve.server.middleware import new_request_id
from flowserve.server.settings import ServerSettings
from flowserve.server.wire import dumps


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with deadlines."""

    def __init__(
        self,
        settings: ServerSettings,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = settings
        self._in_headers = False
        """A request has begun and its headers have not ended."""
        self._began = False
        """It began in the data that is being read."""
        self._header_bytes = 0
        self._body_complete = True
        self._reading: asyncio.TimerHandle | None = None
        """Deadline of the headers, or of the rest of a body that nobody reads any more."""
        self._writing: asyncio.TimerHandle | None = None
        """Running while the reader stands still."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read_within(self._settings.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_reading_timer()
        self._stop_writing_timer()
        super().connection_lost(exc)

    # --- reading --------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._began = False
        was_idle = self._idle
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_headers:
            # Data that ended another request first is not counted: it is one read at most.
            self._header_bytes += len(data) if was_idle or not self._began else 0
            if self._header_bytes > self._settings.max_header_bytes:
                self._refuse(431, f"expected at most {self._settings.max_header_bytes} bytes of headers")
            elif self._reading is None:
                self._read_within(self._settings.header_timeout_s)
        elif self._idle and self._reading is None and self.timeout_keep_alive_task is None:
            self._keep_alive_within(self.timeout_keep_alive)

    @property
    def _idle(self) -> bool:
        """Between two requests."""
        return self._body_complete and (self.cycle is None or self.cycle.response_complete)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._began = True
        self._in_headers = True
        self._header_bytes = 0
        self._body_complete = False

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_reading_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._body_complete = True
        self._stop_reading_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._body_complete and not self.transport.is_closing():
            self._read_within(self._settings.header_timeout_s)

    def _read_within(self, seconds: float) -> None:
        self._stop_reading_timer()
        self._reading = self.loop.call_later(seconds, self._abort)

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _keep_alive_within(self, seconds: float) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self._abort()
        else:
            super().timeout_keep_alive_handler()

    # --- writing --------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop_writing_timer()
        super().resume_writing()

    def _watch_reader(self, size: int) -> None:
        self._writing = self.loop.call_later(self._settings.write_idle_s, self._check_reader, size)

    def _check_reader(self, size: int) -> None:
        """Abort when nothing was taken since the last look."""
        now = self.transport.get_write_buffer_size()
        if now >= size:
            self._abort()
        else:
            self._watch_reader(now)

    def _stop_writing_timer(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    # --- ends -----------------------------------------------------------------------------------------------

    def _abort(self) -> None:
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "expected an HTTP/1.1 request")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer without the application, in the native dialect: the path may not be known."""
        code, title = STATUS_CODES[status]
        fault = Fault(status, code, title, detail)
        name = new_request_id()
        body = dumps(problem_body(fault, name))
        headers = {
            **error_headers(fault),
            "content-type": "application/problem+json",
            "content-length": str(len(body)),
            "connection": "close",
            "x-request-id": name,
        }
        lines = b"".join(f"{key}: {value}\r\n".encode("latin-1") for key, value in headers.items())
        self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + body)
        self.transport.close()


def connection_factory(settings: ServerSettings) -> Callable[..., Connection]:
    """What uvicorn calls for every connection."""

    def make(**given: Any) -> Connection:
        return Connection(settings, **given)

    return make
