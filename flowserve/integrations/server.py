"""Where a FlowServe server is, and its clients: OpenAI's own, which also carry requests to the native door.

OpenAI's client brings what every request needs - connections that are kept, time-outs, and tries again on 408, 429 and 5xx as the
server's `retry-after` and `x-should-retry` say - so nothing of it is written again here.
"""

import os

from openai import AsyncOpenAI, OpenAI

DEFAULT_URL = "http://127.0.0.1:8000/v1"
NO_KEY = "none"
"""What a server without keys is sent: OpenAI's client insists on one."""


def default_url() -> str:
    """`FLOWSERVE_URL` with its `/v1`, else the port that `flowserve serve` listens on by default."""
    return os.environ.get("FLOWSERVE_URL", DEFAULT_URL)


def default_key() -> str:
    """`FLOWSERVE_API_KEY`; OpenAI's key is never sent to a server that did not ask for it."""
    return os.environ.get("FLOWSERVE_API_KEY", NO_KEY)


class Server:
    """A server's two clients. Connections are opened by the first request, in the thread or event loop that makes it."""

    def __init__(self, base_url: str | None = None, api_key: str | None = None) -> None:
        self.base_url = base_url or default_url()
        key = api_key or default_key()
        self.client = OpenAI(base_url=self.base_url, api_key=key)
        self.async_client = AsyncOpenAI(base_url=self.base_url, api_key=key)

    def __repr__(self) -> str:
        return f"Server({self.base_url!r})"
