"""What the comparison counts at servers, and whose processor time it says a load took."""

import asyncio
import os
import time

import pytest

from flowserve.bench import servers
from flowserve.bench.servers import Server
from flowserve.bench.workflows import cpu, engines, lean
from flowserve.errors import ConfigError

METRICS = """# HELP flowserve_tokens_total Tokens of model calls.
flowserve_tokens_total{direction="in",workflow="a"} 100.0
flowserve_tokens_total{direction="in",workflow="b"} 20.0
flowserve_tokens_total{direction="cached",workflow="a"} 64.0
flowserve_tokens_total{direction="out",workflow="a"} 7.0
flowserve_tokens_created{direction="in",workflow="a"} 1.7e9
"""


async def test_counters_are_summed_over_labels_and_servers() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n")).startswith(b"GET /metrics ")
        body = METRICS.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()

    port = servers.free_port()
    async with await asyncio.start_server(answer, "127.0.0.1", port):
        one = Server(f"http://127.0.0.1:{port}", os.getpid())
        found = await engines.counters([one, one], engines.FLOWSERVE_COUNTERS)
    assert found == {"prompt_tokens": 240.0, "hit_tokens": 128.0, "output_tokens": 14.0}


def test_processor_time_is_the_servers_the_clients_and_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_busy_s", lambda: 10.0)
    monkeypatch.setattr(time, "process_time", lambda: 2.0)
    monkeypatch.setattr(Server, "cpu_s", lambda self: 1.5)
    group = [Server("http://127.0.0.1:1", 1), Server("http://127.0.0.1:2", 2)]
    assert cpu.spent(group) == {"server_cpu_s": 3.0, "client_cpu_s": 2.0, "other_cpu_s": 5.0}


def test_a_server_without_an_engine_process_is_not_taken_for_bound() -> None:
    with pytest.raises(ConfigError, match="expected a process VLLM::EngineCor behind"):
        lean.pin(Server("http://127.0.0.1:1", os.getpid()), 0)
