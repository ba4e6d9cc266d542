"""What a server is, is found out at the start; a server that is loading is waited for."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flowserve.engines.base import Call
from flowserve.engines.openai.engine import OpenAIEngine
from flowserve.engines.openai.settings import OpenAISettings
from flowserve.engines.words import WordTokenizer
from flowserve.errors import ConfigError, EngineError, EngineLost, Unsupported

MakeCall = Callable[..., Call]
SGLANG = {
    "max_total_num_tokens": 4096,
    "max_running_requests": 48,
    "chunked_prefill_size": 2048,
    "enable_priority_scheduling": True,
    "schedule_low_priority_values_first": False,
    "version": "0.5.9",
}
SGLANG_METRICS = 'sglang:num_running_reqs{model_name="tiny"} 0.0\nsglang:token_usage{model_name="tiny"} 0.28\n'


def card(root: str, **fields: Any) -> dict[str, Any]:
    return {"id": "tiny", "owned_by": "vllm", "root": root, "max_model_len": 512, **fields}


@pytest.mark.parametrize(
    ("pages", "owner", "expected"),
    [
        ({}, "vllm", "vllm"),
        ({"/metrics": (200, "x 1\nvllm:num_requests_running 1\n")}, "somebody", "vllm"),
        ({"/server_info": (200, SGLANG)}, "sglang", "sglang"),
        ({"/get_server_info": (200, SGLANG)}, "somebody", "sglang"),
        ({"/metrics": (200, "# HELP\ndynamo_frontend_inflight_requests 0\n")}, "nvidia", "dynamo"),
        ({"/version": (200, {"name": "flowserve", "version": "1"})}, "flowserve-engine", "flowserve"),
        ({"/version": (404, {})}, "library", "openai"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_dialects_are_recognised(mock: Any, connect: Any, pages: Any, owner: str, expected: str) -> None:
    mock.pages |= pages | {"/v1/models": (200, {"data": [card(mock.root, owned_by=owner)]})}
    async with connect() as engine:
        assert f" {expected} up" in repr(engine)


async def test_a_dialect_that_is_set_is_believed(mock: Any, connect: Any) -> None:
    async with connect(dialect="llm-d") as engine:
        assert " llm-d up" in repr(engine)
        assert engine.capabilities.tokens


async def test_sglang_says_what_it_can(mock: Any, connect: Any, call: MakeCall) -> None:
    mock.pages |= {
        "/v1/models": (200, {"data": [card(mock.root, owned_by="sglang")]}),
        "/server_info": (200, SGLANG),
        "/metrics": (200, SGLANG_METRICS),
    }
    async with connect() as engine:
        status, capabilities = engine.status(), engine.capabilities
        assert (status.window, status.kv_tokens, status.batch_tokens, status.kv_used) == (48, 4096, 2048, 0.28)
        assert capabilities.priority and capabilities.reprioritise and capabilities.prefix_reuse
        assert not capabilities.logprobs and not capabilities.grammar
        async for _ in engine.generate(call(priority=7)):
            pass
    assert mock.streamed[-1].body["priority"] == -7
    mock.pages["/server_info"] = (200, {**SGLANG, "schedule_low_priority_values_first": True})
    async with connect() as engine:
        async for _ in engine.generate(call(priority=7)):
            pass
    assert mock.streamed[-1].body["priority"] == 7


async def test_models_adapters_and_aliases(mock: Any, connect: Any, call: MakeCall) -> None:
    cards = [
        card(mock.root),
        card(mock.root, id="alias"),
        card("/lora/x", id="poet", parent="tiny"),
        card("/other", id="another model"),
    ]
    mock.pages["/v1/models"] = (200, {"data": cards})
    async with connect() as engine:
        assert engine.capabilities.models == ("tiny", "alias", "poet")
        assert engine.capabilities.lora
        async for _ in engine.generate(call(model="poet")):
            pass
    assert mock.streamed[-1].body["model"] == "poet"
    async with connect(model="poet") as engine:
        assert engine.capabilities.models[0] == "poet"
        assert engine.capabilities.tokens, "its tokenizer is its parent's"
    with pytest.raises(ConfigError, match="known: alias, another model, poet, tiny"):
        async with connect(model="nobody"):
            pass


async def test_a_server_that_tells_no_ids_is_asked_in_words(mock: Any, connect: Any, capsys: Any) -> None:
    mock._trial = lambda request, wire: wire.whole(200, {"choices": [{"index": 0, "text": "?"}]})
    async with connect(quiet=False) as engine:
        assert not engine.capabilities.tokens
        assert not engine.capabilities.logprobs and not engine.capabilities.reprioritise
        with pytest.raises(Unsupported, match="tokens"):
            await anext(engine.generate(Call("c", (), resumed=(1,))))
    assert "tells no token ids" in capsys.readouterr().err


async def test_another_tokenizer_is_seen(mock: Any, connect: Any, tokenizer_folder: Path, capsys: Any) -> None:
    """The same ids would be other text: wrong answers that look right."""
    mock.decode = lambda ids: "quite another text"
    async with connect(quiet=False) as engine:
        assert not engine.capabilities.tokens
    assert "reads other text" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="tokenizer .* reads other text"):
        async with connect(tokenizer=str(tokenizer_folder)):
            pass


async def test_a_tokenizer_that_cannot_be_had(mock: Any, connect: Any, tmp_path: Path) -> None:
    mock.pages["/v1/models"] = (200, {"data": [card("/nowhere/at/all")]})
    async with connect() as engine:
        assert not engine.capabilities.tokens
        assert isinstance(engine.tokenizer, WordTokenizer)
    with pytest.raises(ConfigError, match="tokenizer"):
        async with connect(tokenizer=str(tmp_path)):
            pass
    async with connect(tokenizer=mock.root) as engine:
        assert engine.capabilities.tokens


async def test_a_budget_of_thinking_tokens_is_tried_out(mock: Any, connect: Any, call: MakeCall) -> None:
    async with connect() as engine:
        assert not engine.capabilities.thinking_budget
        with pytest.raises(Unsupported, match="reasoning_parser"):
            await anext(engine.generate(call(thinking_budget=3)))
    trial = mock._trial

    async def takes_it(request: Any, wire: Any) -> None:
        if "thinking_token_budget" in request.body:
            await wire.whole(200, {"choices": []})
        else:
            await trial(request, wire)

    mock._trial = takes_it
    async with connect() as engine:
        assert engine.capabilities.thinking_budget
        async for _ in engine.generate(call(thinking_budget=3)):
            pass
    assert mock.streamed[-1].body["thinking_token_budget"] == 3


# --- not there, not ready --------------------------------------------------------------------------------------------


async def test_nobody_there_says_what_was_tried() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    engine = OpenAIEngine(OpenAISettings(f"http://127.0.0.1:{port}", id="far", quiet=True))
    with pytest.raises(EngineLost, match=rf"engine 'far' at http://127.0.0.1:{port}: cannot connect"):
        await engine.start()
    assert not engine.status().up
    assert "cannot connect" in engine.status().reason
    await engine.close()


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ((404, {}), "expected a list of models at GET /v1/models; got 404"),
        ((200, "hello"), "expected a list of models"),
        ((200, {"data": []}), "expected a list of models"),
        ((200, {"data": [{"id": 5}]}), "expected a list of models"),
        ((401, {}), "api_key"),
        ((403, {}), "api_key"),
    ],
    ids=str,
)
async def test_something_else_is_there(mock: Any, connect: Any, models: Any, says: str) -> None:
    mock.pages["/v1/models"] = models
    with pytest.raises(ConfigError, match=says):
        async with connect():
            pass


@pytest.mark.parametrize("page", ["/health", "/v1/models"])
async def test_a_server_that_loads_is_waited_for(
    mock: Any, connect: Any, page: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowserve.engines.openai.discovery.LOOK_AGAIN_S", 0.01)
    ready = mock.pages[page]
    mock.pages[page] = (503, {})
    starting = asyncio.ensure_future(connect(quiet=False).__aenter__())
    while len(mock.requests) < 6:
        await asyncio.sleep(0.005)
    mock.pages[page] = ready
    engine = await starting
    assert engine.status().up
    await engine.close()
    assert "is starting (503)" in capsys.readouterr().err


async def test_a_server_that_never_gets_ready(mock: Any, connect: Any) -> None:
    mock.pages["/health"] = (503, {})
    with pytest.raises(EngineError, match=r"not ready after 0.05 s .*503"):
        async with connect(start_timeout_s=0.05):
            pass


async def test_a_server_whose_engine_hangs_is_not_up(mock: Any, connect: Any) -> None:
    """vLLM #39863: everything answers but generation."""
    mock._trial = lambda request, wire: wire.stall()
    with pytest.raises(EngineError, match="no answer to a call of one token"):
        async with connect(start_timeout_s=0.1):
            pass


async def test_a_restart_asks_again(mock: Any, connect: Any, call: MakeCall) -> None:
    """Another model may stand at the address by then."""
    async with connect() as engine:
        tokenizer = engine.tokenizer
        mock.pages["/v1/models"] = (200, {"data": [card(mock.root, id="second", max_model_len=99)]})
        await engine.start()
        assert engine.capabilities.models == ("second",)
        assert engine.capabilities.max_context == 99
        assert engine.tokenizer.fingerprint == tokenizer.fingerprint
        async for _ in engine.generate(call()):
            pass
        assert mock.streamed[-1].body["model"] == "second"


async def test_a_start_that_fails_leaves_nothing_behind(mock: Any, mocks: ModuleType, connect: Any) -> None:
    mock.pages["/v1/models"] = (404, {})
    with contextlib.suppress(ConfigError):
        async with connect():
            pass
    assert len(asyncio.all_tasks()) <= 2 + len(mock._tasks)
