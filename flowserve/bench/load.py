"""Many clients at once against a server on this machine: what they get, and what it costs the server.

Of a hundred requests seventy wait for the answer, twenty stream it, five leave in mid-stream and five start in
the background and cancel. Only loopback addresses are asked: this is a test of one's own server.
"""

import asyncio
import ipaddress
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from flowserve import demo
from flowserve.errors import ConfigError
from flowserve.ids import Seconds

Ways = dict[str, int]
WAYS: Ways = {"wait": 70, "stream": 20, "leave": 5, "cancel": 5}


def run(url: str, clients: int = 64, seconds: Seconds = 60.0, seed: int = 0) -> dict[str, Any]:
    """Counts by way and outcome, latency quantiles, resident memory over time. Raises ConfigError off loopback."""
    host = urlsplit(url).hostname or ""
    if host != "localhost" and not _loopback(host):
        raise ConfigError(f"--url: expected a server on this machine (127.0.0.1); got {host}")
    return asyncio.run(_run(url, clients, seconds, random.Random(seed)))


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _run(url: str, clients: int, seconds: Seconds, rng: random.Random) -> dict[str, Any]:
    questions = [item.question for item in demo.questions()]
    counts: Counter[str] = Counter()
    latencies: list[Seconds] = []
    memory: list[dict[str, float]] = []
    end = time.monotonic() + seconds
    connector = aiohttp.TCPConnector(limit=clients + 2)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:

        async def client() -> None:
            while time.monotonic() < end:
                way = rng.choices(list(WAYS), list(WAYS.values()))[0]
                started = time.monotonic()
                outcome = await _once(session, url, way, rng.choice(questions))
                counts[f"{way} {outcome}"] += 1
                if outcome == "ok" and way in ("wait", "stream"):
                    latencies.append(time.monotonic() - started)
                if outcome == "429":
                    await asyncio.sleep(1)

        async def watch() -> None:
            while time.monotonic() < end:
                memory.append({"at_s": round(seconds - (end - time.monotonic()), 1), **await _gauges(session, url)})
                await asyncio.sleep(max(1.0, seconds / 12))

        await asyncio.gather(watch(), *(client() for _ in range(clients)))
        await _settled(session, url)
        after = await _gauges(session, url)
    return {
        "clients": clients,
        "seconds": seconds,
        "outcomes": dict(sorted(counts.items())),
        "errors": sum(n for outcome, n in counts.items() if outcome.split()[1] not in ("ok", "429")),
        "answers_per_s": len(latencies) / seconds,
        "latency_s": _quantiles(latencies),
        "memory": memory,
        "after": after,
    }


async def _once(session: aiohttp.ClientSession, url: str, way: str, question: str) -> str:
    """`ok`, a status code, or the name of an exception."""
    path = f"{url}/v1/workflows/rag/runs"
    mode = {"wait": "wait", "stream": "stream", "leave": "stream", "cancel": "background"}[way]
    try:
        async with session.post(path, json={"input": {"question": question}, "mode": mode}) as response:
            if response.status not in (200, 201, 202):
                return str(response.status)
            if way == "leave":
                await response.content.readline()
                response.close()
                return "ok"
            if way == "cancel":
                return await _cancel(session, url, (await response.json())["id"])
            text = await response.text()
        done = "run.completed" in text if way == "stream" else json.loads(text).get("status") == "completed"
        return "ok" if done else "incomplete"
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
        return type(error).__name__


async def _cancel(session: aiohttp.ClientSession, url: str, run: str) -> str:
    async with session.post(f"{url}/v1/runs/{run}/cancel") as response:
        return "ok" if response.status in (200, 202) else str(response.status)


async def _gauges(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Resident megabytes of the server and calls in its engines."""
    async with session.get(f"{url}/metrics") as response:
        text = await response.text()
    inflight = _sum(text, lambda name: name.startswith("flowserve_engine_inflight"))
    resident = _sum(text, lambda name: name == "process_resident_memory_bytes")
    return {"resident_mb": round(resident / 1e6, 1), "engine_inflight": inflight}


async def _settled(session: aiohttp.ClientSession, url: str) -> None:
    """Until the engines are empty, or ten seconds have passed."""
    for _ in range(20):
        if (await _gauges(session, url))["engine_inflight"] == 0:
            return
        await asyncio.sleep(0.5)


def _sum(text: str, wanted: Callable[[str], bool]) -> float:
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return sum(float(value) for name, value in lines if wanted(name))


def _quantiles(values: list[Seconds]) -> dict[str, Seconds | None]:
    if len(values) < 2:
        return {"p50": None, "p95": None, "p99": None}
    cuts = statistics.quantiles(values, n=100)
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}
