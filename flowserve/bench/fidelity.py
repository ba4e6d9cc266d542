"""The live half of `flowserve bench fidelity`: workflows on a real vLLM engine on this machine, recorded by the scheduler's log.

One engine, bound to a core; the server and the load have the other. In turn, a calibration (runs of
session `calibration`, of all sizes), from which the simulator learns what a step costs, and the workload that it has to foretell.
"""

import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowserve.bench import httpload, random_model, servers
from flowserve.bench.httpload import request_bytes
from flowserve.bench.servers import FLOWSERVE
from flowserve.errors import ConfigError
from flowserve.ids import Seconds

CALIBRATION = "calibration"
"""Session of the runs that teach the costs."""
SEED = 17
ROUNDS = 3
"""Calibration and workload in turn: a shared machine is not equally fast for long."""
CROWDS = (1, 2, 1, 8, 4, 16)
"""Clients at once of the parts of a calibration."""
APP = '''
import asyncio

import flowserve as fs


@fs.tool(effects=False)
async def look_up(question: str) -> str:
    """Wait as a service would."""
    await asyncio.sleep(0.15)
    return question


@fs.llm(max_tokens=48)
def draft(topic: str) -> str:
    fs.prompt("Write about {{ topic }}")


@fs.llm(max_tokens=24)
def review(text: str) -> str:
    fs.prompt("Review this: {{ text }}")


@fs.llm(max_tokens=40)
def final(text: str, remarks: str) -> str:
    fs.prompt("Improve {{ text }} by {{ remarks }}")


@fs.llm(max_tokens=32)
def part(topic: str) -> str:
    fs.prompt("Summarise {{ topic }}")


@fs.llm(max_tokens=64)
def combine(parts: list[str]) -> str:
    fs.prompt("Merge {% for p in parts %}{{ p }} {% endfor %}")


@fs.llm(max_tokens=56)
def answer(question: str) -> str:
    fs.prompt("Answer {{ question }}")


@fs.workflow()
def chain(topic: str) -> str:
    text = draft(topic)
    return final(text, review(text))


@fs.workflow()
def fan(topics: list[str]) -> str:
    return combine(part.map(topics, max_width=8))


@fs.workflow()
def lookup(question: str) -> str:
    return answer(look_up(question))
'''


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was seen live."""

    lines: list[str]
    """The scheduler's log."""
    others_share: float
    """Of the machine's cores, what other programs had while it was measured: figures from a busy machine say little."""


def live(rate: float, seconds: Seconds, size: str, say: Callable[[str], None]) -> Recorded:
    """Serve and load. Raises ConfigError when vLLM does not come up or runs fail."""
    with tempfile.TemporaryDirectory(prefix="flowserve-fidelity-") as folder:
        path = random_model.make(size, Path(folder) / "model")
        return asyncio.run(_live(rate, seconds, path, Path(folder), say))


async def _live(rate: float, seconds: Seconds, model: Path, folder: Path, say: Callable[[str], None]) -> Recorded:
    app, pool, log, port = folder / "app.py", folder / "pool.toml", folder / "run.log", servers.free_port()
    app.write_text(APP)
    arguments = {**servers.precision(256 << 20), "enforce_eager": True, "max_num_seqs": 32}
    arguments |= {"max_model_len": 4096, "max_num_batched_tokens": 4096, "enable_prefix_caching": True}
    args = "\n".join(f"{name} = {json.dumps(value)}" for name, value in arguments.items())
    pool.write_text(f'[[engine]]\nkind = "vllm"\nmodel = "{model}"\ncores = ["1"]\n[engine.args]\n{args}\n')
    command = [*FLOWSERVE, "serve", str(app), "--pool", str(pool), "--port", str(port), "--record", str(log)]
    say("starting vLLM behind FlowServe")
    async with servers.started(command, port, "/ready", folder / "server.log", cores=None) as server:
        calibrating, measuring = random.Random(SEED), random.Random(SEED + 1)
        failed, others = list[str](), 0.0
        for number in range(ROUNDS):
            say(
                f"round {number + 1} of {ROUNDS}: calibrating, then {rate} workflows per second for {seconds / ROUNDS:.0f} s"
            )
            for crowd in CROWDS:
                bodies = [_body(calibrating, CALIBRATION, calibrating.choice([20, 100, 400])) for _ in range(2 * crowd)]
                await _closed(server.url, bodies, crowd)
            began, busy, own = time.monotonic(), _busy_s(), _own_s()
            failed += await _paced(server.url, measuring, rate, seconds / ROUNDS)
            spent = (time.monotonic() - began) * (os.cpu_count() or 1)
            others += max(0.0, _busy_s() - busy - (_own_s() - own)) / spent / ROUNDS
    if failed:
        raise ConfigError(f"{failed[0]} and {len(failed) - 1} further runs failed live")
    return Recorded(log.read_text(encoding="utf-8").splitlines(), others)


def _own_s() -> Seconds:
    """CPU time so far of all programs of this terminal's session: engines leave the tree of processes, but not that."""
    session, ticks = os.getsid(0), 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            ticks += (int(fields[3]) == session) * (int(fields[11]) + int(fields[12]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _busy_s() -> Seconds:
    """CPU time of all programs so far: all but idle and waiting, from the first line of /proc/stat."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _body(rnd: random.Random, session: str | None, words: int) -> tuple[str, bytes]:
    name = rnd.choice(["chain", "fan", "lookup"])

    def text(count: int) -> str:
        return " ".join(rnd.choices(random_model.WORDS, k=count))

    inputs: dict[str, Any]
    if name == "chain":
        inputs = {"topic": text(words)}
    elif name == "fan":
        inputs = {"topics": [text(words // 2 + 5) for _ in range(rnd.randint(2, 6))]}
    else:
        inputs = {"question": text(words * 2)}
    body: dict[str, Any] = {"input": inputs, "mode": "wait"} | ({"session_id": session} if session is not None else {})
    return f"/v1/workflows/{name}/runs", json.dumps(body).encode()


async def _closed(url: str, bodies: Sequence[tuple[str, bytes]], crowd: int) -> None:
    requests = [(url, request_bytes(url + path, json.loads(data))) for path, data in bodies]
    load = await httpload.closed(requests, crowd)
    if load.errors:
        raise ConfigError(f"{load.errors} runs of the calibration failed: {load.first_error}")


async def _paced(url: str, rnd: random.Random, rate: float, seconds: Seconds) -> list[str]:
    """Poisson arrivals; what went wrong."""
    failed: list[str] = []

    async def one(path: str, data: bytes) -> None:
        connection = await httpload.connect(url)
        try:
            found = await connection.send(request_bytes(url + path, json.loads(data)))
            if found.status != 200:
                failed.append(f"{path}: {found.status} {found.body[:200]!r}")
        finally:
            connection.close()

    tasks, now = [], 0.0
    began = asyncio.get_running_loop().time()
    while (now := now + rnd.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, began + now - asyncio.get_running_loop().time()))
        tasks.append(asyncio.create_task(one(*_body(rnd, None, rnd.choice([20, 60, 150])))))
    await asyncio.gather(*tasks)
    return failed
