"""Serving an application on a port: uvicorn with our connections and a shutdown that lets answers finish."""

import asyncio
import contextlib
import errno
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from flowserve.errors import ConfigError
from flowserve.server.auth import check_bind
from flowserve.server.connection import connection_factory
from flowserve.server.settings import ServerSettings
from flowserve.server.sse import Stops


class Listener(uvicorn.Server):
    """A uvicorn server that first stops taking runs, then lets those at work finish, then ends what still waits."""

    def __init__(
        self, config: uvicorn.Config, stops: Stops, settings: ServerSettings, sockets: list[socket.socket]
    ) -> None:
        super().__init__(config)
        self._sockets = sockets
        self._stops = stops
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self.listening = asyncio.Event()
        self._leave = asyncio.Event()
        """Set by the first signal."""
        self._hurry = asyncio.Event()
        """Set by a second signal: no more grace."""

    @property
    def url(self) -> str:
        """Where it listens, with the port that the system chose when 0 was asked for."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(self._sockets)
        except OSError as error:  # somebody bound the same address, too, and listened first
            raise ConfigError(f"cannot listen on {self._settings.host}:{self._settings.port}: {error}") from error
        self.listening.set()

    async def main_loop(self) -> None:
        """As uvicorn's, without waking ten times a second: only the Date header needs the clock."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._leave.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stops.closing = True
        for server in self.servers:
            server.close()
        if self.server_state.tasks:
            answers = asyncio.ensure_future(asyncio.wait(self.server_state.tasks))
            hurry = asyncio.ensure_future(self._hurry.wait())
            await asyncio.wait((answers, hurry), timeout=self._settings.grace_s, return_when=asyncio.FIRST_COMPLETED)
            answers.cancel()
            hurry.cancel()
        self._stops.end_waits()
        await super().shutdown(sockets)
        self._captured_signals.clear()  # uvicorn would raise them again, and the caller has a runtime to close

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the shutdown; a second one, of either kind, ends its grace."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stop, self.should_exit)
        # Not uvicorn's: that would raise the signal again after the shutdown and end the process before the runtime is closed.
        self.should_exit = True

    def stop(self, hurry: bool = False) -> None:
        """Begin the shutdown; `hurry` leaves those at work no time."""
        self.should_exit = True
        self._leave.set()
        if hurry:
            self._hurry.set()


def listener(app: FastAPI, settings: ServerSettings) -> Listener:
    """A server for `app`, not started; its port is taken, so that a model is not loaded in vain.

    Raises ConfigError for an address that would let anybody in, or that cannot be had.
    """
    check_bind(settings.host, settings.keys, settings.insecure)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=connection_factory(settings),  # type: ignore[arg-type]  # uvicorn calls it; a class is one way
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, round(settings.idle_connection_s)),
        timeout_graceful_shutdown=5,
    )
    return Listener(config, app.state.door.stops, settings, bind(settings.host, settings.port))


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets for every address of `host`, bound and not listening yet. Raises ConfigError."""
    bound: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind(address)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL or len(found) == 1:
                    raise
                bound.pop().close()  # localhost has an IPv6 address on paper only
    except OSError as error:
        for sock in bound:
            sock.close()
        taken = error.errno == errno.EADDRINUSE
        remedy = "choose another --port, or end what listens there" if taken else "check --host and --port"
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}; {remedy}") from error
    return bound


async def serve(app: FastAPI, settings: ServerSettings) -> None:
    """Until SIGINT or SIGTERM. The caller closes the runtime afterwards."""
    await listener(app, settings).serve()
