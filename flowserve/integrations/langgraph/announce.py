"""Telling a FlowServe server of a graph and of ended sessions, beside the graph's run: nothing waits for it, nothing fails by it."""

import atexit
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from langchain_core.runnables.graph import Graph
from langgraph.constants import END, START

logger = logging.getLogger("flowserve.langgraph")

MOST_WAITING = 256
"""Tellings that wait; beyond that they are dropped, as the server forgets sessions by itself."""
TIMEOUT_S = 5.0


def program_data(graph: Graph) -> dict[str, Any]:
    """`graph.get_graph()` as the body of `PUT /v1/programs/{name}`: without start and end."""
    outside = {START, END}
    edges = [edge for edge in graph.edges if not {edge.source, edge.target} & outside]
    return {
        "nodes": [node for node in graph.nodes if node not in outside],
        "edges": [{"source": edge.source, "target": edge.target, "conditional": edge.conditional} for edge in edges],
    }


class Announcer:
    """Sends in a thread of its own, in order. What fails is logged and given up: it costs the server a hint, no answer."""

    def __init__(self, base_url: str | None = None, api_key: str | None = None) -> None:
        from flowserve.integrations.server import Server

        self._client = Server(base_url, api_key).client.with_options(timeout=TIMEOUT_S, max_retries=1)
        self._thread = ThreadPoolExecutor(1, "flowserve-announce")
        self._waiting: list[Future[None]] = []
        atexit.register(self._thread.shutdown, wait=False, cancel_futures=True)

    def declare(self, name: str, graph: Graph) -> None:
        """The program's nodes, and what may come after each."""
        self._tell("put", f"/programs/{quote(name, safe='')}", program_data(graph))

    def ended(self, session: str) -> None:
        """No call of this session comes any more."""
        self._tell("post", "/sessions:end", {"session_id": session})

    def flush(self, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until what was told so far has been sent or given up."""
        for sent in list(self._waiting):
            sent.result(timeout_s)

    def _tell(self, method: str, path: str, body: dict[str, Any]) -> None:
        self._waiting = [sent for sent in self._waiting if not sent.done()]
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(self._thread.submit(self._send, method, path, body))

    def _send(self, method: str, path: str, body: dict[str, Any]) -> None:
        try:
            getattr(self._client, method)(path, cast_to=object, body=body)
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not reach the graph
            logger.warning("%s was not told of %s: %s", self._client.base_url, path, error)
