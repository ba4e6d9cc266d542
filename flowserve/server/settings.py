"""Settings of the server: frozen, with units in the names, checked when built.

`from_environ` is the only place in the server that reads the environment.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from flowserve.errors import ConfigError
from flowserve.ids import Bytes, Seconds
from flowserve.server.auth import Keyring


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the server listens, whom it lets in and how much it takes from one client."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 lets the system choose."""
    keys: Keyring = field(default_factory=Keyring)
    """Empty: everybody is let in, which `auth.check_bind` allows on loopback only."""
    insecure: bool = False
    """Bind another address than loopback without keys all the same."""

    max_body_bytes: Bytes = 4 * 1024 * 1024
    max_json_depth: int = 64
    max_json_keys: int = 10_000
    """Keys of one body, all objects together."""
    max_json_values: int = 100_000
    """Strings, numbers, objects and arrays of one body."""
    thread_body_bytes: Bytes = 64 * 1024
    """Bodies above this are parsed in a thread."""
    max_header_bytes: Bytes = 16 * 1024
    """Request line and headers together."""

    header_timeout_s: Seconds = 10.0
    """From the first byte of a request to the end of its headers; also how long a new connection may say nothing."""
    body_timeout_s: Seconds = 30.0
    """From the end of the headers to the end of the body."""
    write_idle_s: Seconds = 30.0
    """A reader that takes nothing for this long while there is something to take is cut off."""
    keep_alive_s: Seconds = 15.0
    """A stream that is silent for this long sends a comment, so that proxies keep it open."""
    idle_connection_s: Seconds = 30.0
    """Between two requests of one connection."""
    max_poll_s: Seconds = 60.0
    """Longest wait of one `GET /v1/runs/{id}/result`."""
    stream_head_s: Seconds = 10.0
    """How long the OpenAI door holds back the head of a stream so that an early failure still gets a proper status."""
    grace_s: Seconds = 20.0
    """How long requests at work, streams included, may go on after a stop signal. What still waits then is ended; native
    streams are told to reconnect."""

    max_requests: int = 1_000
    """Requests at work at once, streams included; one more is answered with 503."""
    max_adopted: int = 100
    """Workflows that clients brought as specs."""
    max_streams_per_run: int = 8
    max_stream_backlog_bytes: Bytes = 256 * 1024
    """Encoded and not yet taken by a stream's reader."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "port":
                if not 0 <= value <= 65_535:
                    raise ConfigError(f"ServerSettings.port: expected 0 to 65535, got {value}")
            elif isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                raise ConfigError(f"ServerSettings.{item.name}: expected a number above 0, got {value}")


def from_environ(environ: Mapping[str, str] = os.environ, **given: Any) -> ServerSettings:
    """Settings from FLOWSERVE_HOST, FLOWSERVE_PORT, FLOWSERVE_API_KEYS and FLOWSERVE_MAX_BODY_BYTES.

    What is `given` and not None wins over the environment.
    """
    found: dict[str, Any] = {}
    if "FLOWSERVE_HOST" in environ:
        found["host"] = environ["FLOWSERVE_HOST"]
    for name in ("port", "max_body_bytes"):
        variable = f"FLOWSERVE_{name.upper()}"
        if variable in environ:
            found[name] = _whole_number(variable, environ[variable])
    if "FLOWSERVE_API_KEYS" in environ:
        found["keys"] = Keyring.parse(environ["FLOWSERVE_API_KEYS"])
    return ServerSettings(**(found | {name: value for name, value in given.items() if value is not None}))


def _whole_number(variable: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{variable}: expected a whole number, got {text!r}") from None
