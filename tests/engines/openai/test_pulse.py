"""Whether a server lives, and how much it does, is seen by looking at it; listeners hear of it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from flowserve.engines.base import Call
from flowserve.engines.openai.engine import OpenAIEngine
from flowserve.engines.openai.metrics import SGLANG, VLLM, Load, read_load
from flowserve.errors import EngineLost

MakeCall = Callable[..., Call]
TEXT = """# HELP vllm:num_requests_running Number of requests
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a \\"b\\" {c}"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 4.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.1
vllm:prefix_cache_queries_total{engine="0"} 1.2e+03
vllm:prefix_cache_hits_total{engine="0"} 600.0
vllm:prefix_cache_hits_created{engine="0"} 1.79e+09
vllm:num_preemptions_total{engine="0"} 5.0
vllm:iteration_tokens_total_bucket{engine="0",le="+Inf"} 70.0
vllm:iteration_tokens_total_count{engine="0"} 70.0
vllm:cache_config_info{block_size="16",effective_attention_block_size="99",num_gpu_blocks="100"} 1.0
vllm:cache_config_info{block_size="16",kv_cache_size_tokens="1500",num_gpu_blocks="100"} 1.0
process_start_time_seconds 1.7e+09
"""


def metrics(running: int = 0, steps: int = 0, born: int = 7) -> tuple[int, str]:
    lines = [f"vllm:num_requests_running {running}.0", f"vllm:iteration_tokens_total_count {steps}.0"]
    lines.append(f"process_start_time_seconds {born}.0")
    return 200, "\n".join(lines) + "\n"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_vllms_numbers() -> None:
    assert read_load(TEXT, VLLM) == Load(
        running=7,
        waiting=2,
        kv_used=0.3,
        steps=70,
        preemptions=5,
        prefix_asked=1200,
        prefix_hit=600,
        kv_tokens=3100,
        born=1.7e9,
    )


def test_sglangs_numbers() -> None:
    text = (
        'sglang:num_running_reqs{tp_rank="0"} 2\nsglang:num_queue_reqs 1\nsglang:token_usage 0.28\n'
        "sglang:prompt_tokens_total 8.5e+06\nsglang:generation_tokens_total 500\nsglang:cached_tokens_total 4000\n"
    )
    assert read_load(text, SGLANG) == Load(2, 1, 0.28, 8_500_500, 0, 8_500_000, 4_000)


@pytest.mark.parametrize("text", ["", "nothing", "vllm:other 5\n", "sglang:num_running_reqs 5\n", "<html>"])
def test_no_numbers(text: str) -> None:
    assert read_load(text, VLLM) is None


def test_numbers_that_are_none_count_nothing() -> None:
    assert read_load("vllm:num_requests_running NaN\nvllm:num_requests_waiting x\n", VLLM) == Load()


async def test_the_servers_own_steps_are_progress(mock: Any, connect: Any) -> None:
    mock.pages["/metrics"] = metrics(steps=1000)
    async with connect(poll_s=0.01) as engine:
        assert engine.status().steps == 0
        mock.pages["/metrics"] = metrics(steps=1007)
        engine._stirred.set()
        await until(lambda: engine.status().steps == 7)


async def test_what_others_do_there_is_seen_once_it_lasts(mock: Any, connect: Any) -> None:
    mock.pages["/metrics"] = metrics(running=3)
    async with connect(poll_s=0.01) as engine:
        await until(lambda: mock_looks(mock) >= 1)
        assert engine.status().running in (0, 3)
        engine._stirred.set()
        await until(lambda: engine.status().running == 3)


def mock_looks(mock: Any) -> int:
    return sum(request.path == "/metrics" for request in mock.requests) - 1


@pytest.mark.parametrize("how", ["gone", "503", "restarted", "counters"])
async def test_a_server_that_dies_is_noticed_without_a_call(
    mock: Any, connect: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("flowserve.engines.openai.engine.IDLE_S", 0.01)
    mock.pages["/metrics"] = metrics(steps=100)
    async with connect(poll_s=0.01) as engine:
        heard: list[bool] = []
        engine.watch(lambda told, news: heard.append(told.status().up))
        if how == "gone":
            await mock.stop()
        elif how == "503":
            mock.pages["/health"] = (503, {})
        else:
            mock.pages["/metrics"] = metrics(steps=100, born=8) if how == "restarted" else metrics(steps=2)
        await until(lambda: not engine.status().up)
        assert heard[-1] is False
        says = {"gone": "cannot connect", "503": "503"}.get(how, "started anew")
        assert says in engine.status().reason
        with pytest.raises(EngineLost, match="lost"):
            await engine.probe()


async def test_a_call_that_loses_its_connection_makes_it_look(mock: Any, connect: Any, call: MakeCall) -> None:
    """So that it is known within seconds, not at the next idle look."""
    async with connect(poll_s=0.01) as engine:
        mock.pages["/health"] = (500, {})
        mock.reply = lambda request, wire: wire.reset()
        with pytest.raises(EngineLost):
            await anext(engine.generate(call()))
        async with asyncio.timeout(2):
            await until(lambda: not engine.status().up)


async def test_one_look_that_fails_is_no_loss(mock: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowserve.engines.openai.engine.IDLE_S", 0.01)
    async with connect(poll_s=0.01) as engine:
        for _ in range(3):
            for _ in range(2):
                seen = len(mock.requests)
                mock.pages["/health"] = (500, {})
                await until(lambda seen=seen: len(mock.requests) > seen)  # type: ignore[misc]
                mock.pages["/health"] = (200, "")
            seen = len(mock.requests)
            await until(lambda seen=seen: len(mock.requests) > seen + 1)  # type: ignore[misc]
        assert engine.status().up


async def test_a_lost_engine_comes_back_with_start(mock: Any, connect: Any, call: MakeCall) -> None:
    async with connect() as engine:
        await mock.stop()
        with pytest.raises(EngineLost):
            await anext(engine.generate(call()))
        with pytest.raises(EngineLost, match="cannot connect"):
            await engine.start()
        await mock.__aenter__()
        await engine.start()
        assert engine.status().up
        assert [output async for output in engine.generate(call())]


async def test_looking_ends_with_the_engine(mock: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowserve.engines.openai.engine.IDLE_S", 0.01)
    async with connect(poll_s=0.01) as engine:
        seen = len(mock.requests)
        await until(lambda: len(mock.requests) > seen + 3)
    seen = len(mock.requests)
    await asyncio.sleep(0.05)
    assert len(mock.requests) == seen
    assert not engine._tasks


async def test_idle_servers_are_left_alone(mock: Any, connect: Any) -> None:
    async with connect(poll_s=0.01):
        await asyncio.sleep(0.1)
        seen = len(mock.requests)
        await asyncio.sleep(0.1)
        assert len(mock.requests) == seen


async def test_listeners_hear_of_progress_but_not_of_every_token(
    mock: Any, engine: OpenAIEngine, call: MakeCall
) -> None:
    mock.ids = list(range(40, 240))
    heard: list[int] = []
    engine.watch(lambda told, news: heard.append(told.status().tokens_out_total))
    async for _ in engine.generate(call(max_tokens=200)):
        pass
    assert 1 <= len(heard) < 50
