"""The pool benchmark's own parts: canned server, load generator, ratios. What it measures is not asserted anywhere."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from flowserve.bench import httpload, mock_engine, pool, servers
from flowserve.bench.httpload import Answer, Load, request_bytes
from flowserve.errors import ConfigError


@pytest_asyncio.fixture
async def url() -> AsyncIterator[str]:
    """The canned server on this loop: five tokens an answer."""
    port = servers.free_port()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: mock_engine.Server(5, 0.0), "127.0.0.1", port)
    async with server:
        yield f"http://127.0.0.1:{port}"


def chat(url: str, **more: Any) -> bytes:
    body = {"model": "mock", "messages": [{"role": "user", "content": "hello"}], **more}
    return request_bytes(f"{url}/v1/chat/completions", body)


async def ask(url: str, data: bytes) -> Answer:
    connection = await httpload.connect(url)
    try:
        return await connection.send(data)
    finally:
        connection.close()


async def test_a_canned_answer_is_read_whole(url: str) -> None:
    answer = await ask(url, chat(url, max_tokens=3))
    assert answer.status == 200 and 0 < answer.first_s <= answer.seconds
    assert answer.json["choices"][0]["message"]["content"] == "xxx"
    assert answer.json["usage"]["completion_tokens"] == pool._output_tokens(answer) == 3


async def test_a_canned_stream_is_read_to_its_end(url: str) -> None:
    answer = await ask(url, chat(url, stream=True, stream_options={"include_usage": True}))
    events = [line[6:] for line in answer.body.decode().split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    texts = [json.loads(event)["choices"] for event in events[:-1]]
    assert "".join(choices[0]["delta"]["content"] for choices in texts if choices) == "xxxxx"
    assert pool._output_tokens(answer) == 5


async def test_loads_count_answers_and_errors(url: str) -> None:
    wrong = request_bytes(f"{url}/nothing", {"a": 1})
    load = await httpload.closed([(url, chat(url))] * 20 + [(url, wrong)] * 2, 4)
    assert (len(load.answers), load.errors) == (20, 2) and "404" in load.first_error
    paced = await httpload.paced(url, chat(url), rate=200, seconds=0.1)
    assert len(paced.answers) == 20 and paced.seconds >= 0.09


async def test_a_connection_that_the_server_closed_is_not_used_in_silence(url: str) -> None:
    connection = await httpload.connect(url)
    await connection.send(chat(url))
    connection.close()
    with pytest.raises(ConnectionError, match="closed the connection"):
        connection.send(chat(url))


async def test_only_this_machine_is_loaded() -> None:
    with pytest.raises(ConfigError, match="server on this machine"):
        await httpload.connect("http://192.0.2.1:80")


async def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such luck')"]
    with pytest.raises(ConfigError, match="no such luck"):
        async with servers.started(command, servers.free_port(), "/", tmp_path / "log"):
            pass


def load(seconds: float, latencies: list[float], tokens: int = 10) -> Load:
    body = json.dumps({"usage": {"completion_tokens": tokens}}).encode()
    return Load([Answer(200, value, value, body) for value in latencies], seconds)


def test_ratios_are_medians_over_rounds_of_flowserve_to_baseline() -> None:
    rounds = [
        {"baseline": load(2.0, [1.0, 2.0]), "flowserve": load(1.0, [0.5, 4.0])},
        {"baseline": load(2.0, [1.0, 2.0]), "flowserve": load(4.0, [2.0, 2.0])},
        {"baseline": load(3.0, [1.0, 2.0]), "flowserve": load(3.0, [1.0, 2.0])},
    ]
    case = pool._case("x", 8, rounds)
    assert (case["name"], case["concurrency"]) == ("x", 8)
    assert case["rounds"]["throughput"] == [2.0, 0.5, 1.0] and case["throughput_ratio"] == 1.0
    assert case["rounds"]["p50"] == [2.0, 1.0, 1.0] and case["p50_ratio"] == 1.0
    assert case["errors"] == {"baseline": 0, "flowserve": 0}


@pytest.mark.parametrize(("parts", "size", "message"), [(["x"], "4m", "--part"), (["added"], "9b", "--size")])
def test_what_there_is_not_is_refused(parts: list[str], size: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pool.run(None, size, True, parts, print)


@pytest.mark.slow
async def test_added_latency_is_measured_in_process_and_over_http(tmp_path: Path) -> None:
    plan = replace(pool.QUICK, rates=(50,), rate_s=0.4, flood=50)
    said: list[str] = []
    rows = await pool._added(plan, tmp_path, said.append)
    assert [(row["engine"], row["rate"]) for row in rows] == [
        ("in process", 50), ("in process", None), ("over HTTP", 50), ("over HTTP", None),
    ]  # fmt: skip
    assert all(row["errors"] == 0 and row["reached"] > 0 for row in rows)
    assert rows[0]["added_ms_p50"] > 0 and len(said) == 4


@pytest.mark.parametrize(
    ("line", "dtype", "kv_bytes"),
    [("flags\t\t: fpu avx2", "float32", 200), ("flags\t\t: fpu avx2 avx512f", "bfloat16", 100), ("", "float32", 200)],
)
def test_a_cpu_without_instructions_for_bfloat16_computes_float32_with_kv_for_as_many_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, dtype: str, kv_bytes: int
) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text(f"processor: 0\n{line}\nbogomips: 1\n")
    flags = servers.cpu_flags(told)
    monkeypatch.setattr(servers, "on_gpu", lambda: False)
    monkeypatch.setattr(servers, "cpu_flags", lambda: flags)
    assert servers.precision(100) == {"dtype": dtype, "kv_cache_memory_bytes": kv_bytes}


def test_where_nobody_tells_the_flags_there_are_none(tmp_path: Path) -> None:
    assert servers.cpu_flags(tmp_path / "nowhere") == set()
