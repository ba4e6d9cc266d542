"""What an engine behind a URL is told; checked when built."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from flowserve.engines.openai.dialects import DIALECTS
from flowserve.errors import ConfigError
from flowserve.ids import Seconds, Tokens


@dataclass(frozen=True, slots=True)
class OpenAISettings:
    """One server."""

    url: str
    """Its address, with or without `/v1` at the end."""
    model: str = ""
    """One of the server's models; "": its first."""
    api_key: str = field(default="", repr=False)
    """Sent as a bearer token; "": none. It is in no repr, error or log."""
    id: str = "openai"
    """Its name in the pool."""
    dialect: str = "auto"
    """Name in `dialects.DIALECTS`. "auto": found out; a router shows the servers behind it, so `llm-d` must be
    named."""
    tokenizer: str = ""
    """Folder or hub name. "": what the server says its model came from; where that cannot be had, or does not fit,
    the server is asked in words. One that is set and does not fit is an error."""
    window: int = 0
    """Choices at once. 0: what the server says (SGLang), or 64."""
    max_context: Tokens = 0
    """Lowers the server's own limit; 0: that."""
    priority: bool | None = None
    """Whether the server orders by priority. None: what it says; vLLM says nothing, so it means no. True is for a
    vLLM that was started with `--scheduling-policy priority`."""
    secret: bytes = field(default=b"", repr=False)
    """Cache salts of tenants are made from it; processes that may share a tenant's cached prefixes have the same.
    b"": random."""
    kv_events: str = ""
    """Where vLLM tells of its prefix cache, such as "tcp://host:5557"; "": nowhere."""
    connect_s: Seconds = 5.0
    """For a connection. There is no limit of a whole call: the pool has those."""
    start_timeout_s: Seconds = 600.0
    """How long a server that is still loading is waited for."""
    poll_s: Seconds = 1.0
    """Between two looks at a server that is at work; 0: never."""
    quiet: bool = False
    """Say nothing on stderr while starting."""

    def __post_init__(self) -> None:
        _check_url(self.url)
        for name in ("window", "max_context", "poll_s"):
            self._need(getattr(self, name) >= 0, name, "at least 0")
        for name in ("connect_s", "start_timeout_s"):
            self._need(getattr(self, name) > 0, name, "a number above 0")
        self._need(self.dialect in ("auto", *DIALECTS), "dialect", f"one of auto, {', '.join(DIALECTS)}")
        known = self.kv_events.startswith(("tcp://", "ipc://")) or not self.kv_events
        self._need(known, "kv_events", "an endpoint such as tcp://host:5557")
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigError("OpenAISettings.api_key: expected printable ASCII characters; got others")

    @property
    def base(self) -> str:
        """What stands before `/v1`."""
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")

    def _need(self, fine: bool, name: str, expected: str) -> None:
        if not fine:
            raise ConfigError(f"OpenAISettings.{name}: expected {expected}; got {getattr(self, name)!r}")


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        parts, fine = urlsplit(""), False
    if parts.username is not None or parts.password is not None:
        raise ConfigError("OpenAISettings.url: expected no user or password in it; give the key as api_key")
    if not fine or parts.query or parts.fragment:
        shown = url.partition("?")[0]  # people put keys behind it
        raise ConfigError(f"OpenAISettings.url: expected http(s)://host[:port][/path]; got '{shown}'")
