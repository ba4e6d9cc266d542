"""Three ways to run the same workload: FlowServe over REST, LangGraph with langchain-openai, and plain asyncio.

LangGraph and asyncio ask vLLM's servers directly, a run always the same one (session-sticky, which keeps its prefixes), the
one with the fewest live runs when it begins; or each call the server with the fewest calls.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, Protocol

import aiohttp

from flowserve.bench import httpload
from flowserve.bench.workflows.shape import Arrival, Say, Workload
from flowserve.errors import ConfigError

MODEL = "bench"
INSTALL = "pip install 'flowserve[bench]'"


class System(Protocol):
    """Something that runs workflows."""

    name: str

    async def run(self, workload: Workload, arrival: Arrival) -> Any:
        """The result of one run. Raises RuntimeError when it failed."""
        ...


class FlowServe:
    """A FlowServe server at `url` that serves `served.py`."""

    name = "flowserve"

    def __init__(self, url: str) -> None:
        self.url = url

    async def run(self, workload: Workload, arrival: Arrival) -> Any:
        url = f"{self.url}/v1/workflows/{arrival.workflow}/runs"
        connection = await httpload.connect(self.url)
        try:
            body = {"input": dict(arrival.input), "mode": "wait"}
            answer = await connection.send(httpload.request_bytes(url, body))
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {answer.body[:500].decode(errors='replace')}")
        return _trimmed(answer.json["result"])


def _trimmed(value: Any) -> Any:
    """As the other two trim what the model says."""
    if isinstance(value, list):
        return [_trimmed(item) for item in value]
    return value.strip() if isinstance(value, str) else value


Bound = Callable[[], AbstractAsyncContextManager[str]]
"""Where a call goes; open while it lasts."""


class Balancer:
    """Which of the servers a run is bound to, or with `each_call` a call: the one that has the fewest, the earlier of equals."""

    def __init__(self, urls: Sequence[str], each_call: bool = False) -> None:
        self.live = dict.fromkeys(urls, 0)
        self._each_call = each_call

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Bound]:
        """Where the calls of one run go."""
        if self._each_call:
            yield self.bound
        else:
            async with self.bound() as url:
                yield lambda: nullcontext(url)

    @asynccontextmanager
    async def bound(self) -> AsyncIterator[str]:
        url = min(self.live, key=self.live.__getitem__)
        self.live[url] += 1
        try:
            yield url
        finally:
            self.live[url] -= 1


class LangGraph:
    """Compiled graphs in this process; a ChatOpenAI per server and limit, as the library makes them."""

    name = "langgraph"

    def __init__(self, urls: Sequence[str], each_call: bool = False) -> None:
        try:
            from langchain_openai import ChatOpenAI
        except ImportError as error:
            raise ConfigError(f"the comparison needs langgraph and langchain-openai: {INSTALL}") from error
        self._make: Any = ChatOpenAI
        self._balancer = Balancer(urls, each_call)
        self._models: dict[tuple[str, int], Any] = {}
        self._graphs: dict[str, dict[str, Any]] = {}

    async def run(self, workload: Workload, arrival: Arrival) -> Any:
        graphs = self._graphs.get(workload.name)
        if graphs is None:
            graphs = self._graphs[workload.name] = workload.graphs()
        async with self._balancer.run() as bound:
            config = {"configurable": {"say": self._say(bound)}, "recursion_limit": 100}
            state = await graphs[arrival.workflow].ainvoke(dict(arrival.input), config)
        return state["result"]

    def _say(self, bound: Bound) -> Say:
        async def say(system: str, user: str, max_tokens: int, **sampling: Any) -> str:
            messages = [("system", system)] if system else []
            async with bound() as url:
                answer = await self._model(url, max_tokens).ainvoke([*messages, ("human", user)], **sampling)
            return str(answer.content).strip()

        return say

    def _model(self, url: str, max_tokens: int) -> Any:
        model = self._models.get((url, max_tokens))
        if model is None:
            model = self._models[url, max_tokens] = self._make(
                model=MODEL, base_url=f"{url}/v1", api_key="-", temperature=0, max_tokens=max_tokens, max_retries=0
            )
        return model


class Plain:
    """Coroutines that ask the servers with aiohttp: what a careful engineer would write by hand.

    It asks the servers that LangGraph asks, the same. A salt keeps it from finding LangGraph's prompts in their caches.
    """

    name = "asyncio"

    def __init__(self, urls: Sequence[str], session: aiohttp.ClientSession, each_call: bool = False) -> None:
        self._balancer = Balancer(urls, each_call)
        self._session = session

    async def run(self, workload: Workload, arrival: Arrival) -> Any:
        async with self._balancer.run() as bound:
            return await workload.plain[arrival.workflow](self._say(bound), arrival.input)

    def _say(self, bound: Bound) -> Say:
        async def say(system: str, user: str, max_tokens: int, **sampling: Any) -> str:
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": user})
            body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": max_tokens, **sampling}
            body["cache_salt"] = self.name
            async with bound() as url, self._session.post(f"{url}/v1/chat/completions", json=body) as response:
                if response.status != 200:
                    raise RuntimeError(f"{response.status} {await response.text()}")
                answer: Mapping[str, Any] = json.loads(await response.read())
            return str(answer["choices"][0]["message"]["content"]).strip()

        return say


async def follow(system: System, workload: Workload, arrivals: Sequence[Arrival]) -> list[tuple[float, Any]]:
    """Begin each run at its time, whether others have ended or not; per run its seconds and its result.

    Raises what a run raises, after all have ended.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one(arrival: Arrival) -> tuple[float, Any]:
        await asyncio.sleep(began + arrival.at_s - loop.time())
        result = await system.run(workload, arrival)
        return loop.time() - began - arrival.at_s, result

    done = await asyncio.gather(*(one(arrival) for arrival in arrivals), return_exceptions=True)
    for item in done:
        if isinstance(item, BaseException):
            raise item
    return [item for item in done if not isinstance(item, BaseException)]
