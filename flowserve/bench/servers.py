"""Servers for the length of a measurement: each a process group of its own, on loopback, ended with its children."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flowserve.bench import httpload
from flowserve.errors import ConfigError
from flowserve.ids import Seconds

FLOWSERVE = (sys.executable, "-c", "from flowserve.cli import main; main()")
VLLM = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
END_S: Seconds = 15.0


@dataclass(frozen=True, slots=True)
class Server:
    """One that answers."""

    url: str
    pid: int

    def cpu_s(self) -> Seconds:
        """CPU time of the process and its children so far."""
        ticks = os.sysconf("SC_CLK_TCK")
        return sum(sum(map(int, _stat(pid)[11:13])) for pid in _group(self.pid)) / ticks


def on_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


QUICK_BFLOAT16 = ("avx512f", "amx_bf16", "bf16")
"""Flags of CPUs on which vLLM computes bfloat16 with instructions for it."""


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """As Linux lists them; none where nobody does."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()}


def precision(kv_bytes: int) -> dict[str, str | int]:
    """Arguments of an engine: bfloat16 with `kv_bytes` of KV memory, or float32 with memory for as many tokens on a CPU without
    instructions for bfloat16 (one with AVX2 alone took fifty times as long)."""
    if on_gpu() or not cpu_flags().isdisjoint(QUICK_BFLOAT16):
        return {"dtype": "bfloat16", "kv_cache_memory_bytes": kv_bytes}
    return {"dtype": "float32", "kv_cache_memory_bytes": 2 * kv_bytes}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@asynccontextmanager
async def started(
    command: Sequence[str],
    port: int,
    ready: str,
    log: Path,
    *,
    cores: Sequence[int] | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: Seconds = 240.0,
) -> AsyncIterator[Server]:
    """Run `command` until the end of the block; `ready` is the path that answers 200 when it can be used.

    What it prints goes to `log`. Raises ConfigError, with the end of the log, when it does not come up.
    """
    prefix = ["taskset", "-c", ",".join(map(str, cores))] if cores is not None else []
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as file:
        process = _spawn([*prefix, *command], file, environment)
        try:
            try:
                await httpload.until_ready(url + ready, lambda: process.poll() is None, timeout_s)
            except ConfigError as error:
                tail = log.read_text(errors="replace")[-2000:]
                raise ConfigError(f"{' '.join(command[-6:])}: {error}\n{tail}") from error
            yield Server(url, process.pid)
        finally:
            await asyncio.to_thread(_end, process)


def _spawn(command: Sequence[str], log: IO[bytes], environment: Mapping[str, str] | None) -> "subprocess.Popen[bytes]":
    env = {**os.environ, **(environment or {})}
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, process_group=0)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask the process, then kill its group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _group(leader: int) -> list[int]:
    """Processes of the group that `leader` began: not a session, which Linux would give a share of each core by itself."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int(_stat(int(entry.name))[2]) == leader:
                    found.append(int(entry.name))
            except (OSError, ValueError, IndexError):
                continue
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat behind the name: state, ppid, pgrp, session, ..., utime, stime at 11 and 12."""
    return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
