"""What goes over the wire: our own fields alone, to the server alone, with the key and without the client."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from flowserve.engines.base import Call, Finish, Output
from flowserve.engines.openai.engine import OpenAIEngine
from flowserve.engines.openai.settings import OpenAISettings
from flowserve.engines.salts import Salts
from flowserve.errors import ConfigError, InputError

MakeCall = Callable[..., Call]
IDS = [40, 41, 42, 43, 44]
CLIENTS = "client's own words"


async def collect(engine: OpenAIEngine, call: Call) -> list[Output]:
    return [output async for output in engine.generate(call)]


def ids(outputs: list[Output]) -> list[int]:
    return [i for output in outputs for i in output.token_ids]


async def test_every_field_is_ours(mock: Any, connect: Any, call: MakeCall) -> None:
    async with connect(priority=True, secret=b"x", api_key="s3cret") as engine:
        wanted = call(
            temperature=0.7, top_p=0.9, top_k=5, seed=3, stop=("END",), n=2, logprobs=2, priority=4,
            session=CLIENTS, tenant=CLIENTS, meta={"node": CLIENTS, "user": CLIENTS}, regex="a+", keep_s=9.0,
        )  # fmt: skip
        mock.reply = lambda request, wire: wire.whole(400, {})
        with pytest.raises(InputError):
            await collect(engine, wanted)
    request = mock.streamed[-1]
    body = request.body
    salts = Salts(b"x")
    assert body.pop("request_id").endswith(f"-{wanted.id}-1")
    assert body == {
        "model": "tiny",
        "prompt": list(wanted.prompt_ids),
        "max_tokens": 8,
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "logprobs": 2,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "seed": 3,
        "ignore_eos": False,
        "structured_outputs": {"regex": "a+"},
        "priority": 4,
        "session_id": salts.session(CLIENTS, CLIENTS),
        "cache_salt": salts.of(CLIENTS),
    }
    assert set(request.headers) == {
        "host", "user-agent", "authorization", "content-type", "accept", "accept-encoding", "content-length",
    }  # fmt: skip
    assert request.headers["authorization"] == "Bearer s3cret"
    assert CLIENTS.encode() not in request.raw


async def test_the_key_is_shown_nowhere(mock: Any, connect: Any, call: MakeCall) -> None:
    async with connect(api_key="s3cret") as engine:
        mock.reply = lambda request, wire: wire.whole(401, {"error": {"message": "wrong key s3cret"}})
        with pytest.raises(Exception, match="api_key") as caught:
            await collect(engine, call())
        shown = [repr(engine), str(caught.value), repr(engine.status()), repr(engine._client), repr(vars(engine))]
        assert "secret" not in repr(OpenAISettings("http://x", secret=b"x"))
        assert not [text for text in shown if "s3cret" in text]
    for key in ("a\nb", "é"):
        with pytest.raises(ConfigError, match="api_key") as refused:
            OpenAISettings("http://x", api_key=key)
        assert key not in str(refused.value)


async def test_cookies_redirects_and_proxies_are_not_followed(
    mock: Any, mocks: ModuleType, connect: Any, call: MakeCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with connect() as engine:

        async def reply(request: Any, wire: Any) -> None:
            await wire.head(set_cookie="session=1; Path=/")
            await wire.event(mocks.chunk([40], "length"))
            await wire.event("[DONE]")
            await wire.end()

        mock.reply = reply
        await collect(engine, call(max_tokens=1))
        await collect(engine, call(max_tokens=1))
        mock.reply = lambda request, wire: wire.whole(307, {}, location=f"{mock.url}/v1/elsewhere")
        with pytest.raises(Exception, match="redirects"):
            await collect(engine, call())
    assert not [request for request in mock.requests if "cookie" in request.headers]
    assert "/v1/elsewhere" not in {request.path for request in mock.requests}


async def test_connections_are_kept(mock: Any, engine: OpenAIEngine, call: MakeCall) -> None:
    before = mock.connections
    for _ in range(10):
        await collect(engine, call(max_tokens=5))
    assert mock.connections == before, "ten calls in a row take a connection of the start"


async def test_connections_do_not_wait_for_acknowledgements(
    mock: Any, mocks: ModuleType, engine: OpenAIEngine, call: MakeCall
) -> None:
    """Nagle's algorithm and delayed acknowledgements together cost 40 ms per piece."""

    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        await wire.event(mocks.chunk([40]))
        await wire.stall()

    mock.reply = reply
    async with aclosing(engine.generate(call())) as outputs:  # type: ignore[type-var]
        await anext(outputs)
        busy: Any = engine._client._session.connector._acquired  # type: ignore[union-attr]
        [sock] = [protocol.transport.get_extra_info("socket") for protocol in busy]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_stop_string_hangs_up(mock: Any, mocks: ModuleType, engine: OpenAIEngine, call: MakeCall) -> None:
    texts = [engine.tokenizer.decode([i]) for i in IDS]

    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        for token in IDS:
            await wire.event(mocks.chunk([token]))
        await wire.stall()

    mock.reply = reply
    async with asyncio.timeout(5):
        outputs = await collect(engine, call(stop=(texts[2] + texts[3],)))
    assert ids(outputs) == IDS[:4]
    assert "".join(output.text for output in outputs) == texts[0] + texts[1]
    assert outputs[-1].finish is Finish.STOP
    assert "stop" not in mock.streamed[-1].body


async def test_a_stop_string_inside_one_event_cuts_the_rest(
    mock: Any, mocks: ModuleType, engine: OpenAIEngine, call: MakeCall
) -> None:
    texts = [engine.tokenizer.decode([i]) for i in IDS]

    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        await wire.event(mocks.chunk(IDS, "length"))
        await wire.event(mocks.usage(4, 5))
        await wire.event("[DONE]")
        await wire.end()

    mock.reply = reply
    [output] = await collect(engine, call(stop=(texts[1],)))
    assert (list(output.token_ids), output.text, output.finish) == (IDS[:2], texts[0], Finish.STOP)


async def test_what_was_cached_is_told_with_the_end(
    mock: Any, mocks: ModuleType, engine: OpenAIEngine, call: MakeCall
) -> None:
    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        await wire.event(mocks.chunk([40]))
        await wire.event(mocks.chunk([41], "length"))
        await wire.event(mocks.usage(5, 2, cached=3))
        await wire.event("[DONE]")
        await wire.end()

    mock.reply = reply
    wanted = call(max_tokens=2)
    outputs = await collect(engine, wanted)
    assert [output.prompt_tokens for output in outputs] == [len(wanted.prompt_ids), 0]
    assert sum(output.cached_tokens for output in outputs) == 3


async def test_max_tokens_leave_room_for_the_prompt(mock: Any, connect: Any, call: MakeCall) -> None:
    async with connect(max_context=20) as engine:
        wanted = call(max_tokens=400, resumed=(5, 6))
        await collect(engine, wanted)
        assert engine.capabilities.max_context == 20
    assert mock.streamed[-1].body["max_tokens"] == 20 - len(wanted.prompt_ids) - 2
    assert mock.streamed[-1].body["prompt"] == [*wanted.prompt_ids, 5, 6]


async def test_nobody_reading_along_takes_larger_pieces(mock: Any, engine: OpenAIEngine, call: MakeCall) -> None:
    await collect(engine, call())
    await collect(engine, replace(call(), stream=False))
    assert [request.body.get("stream_interval") for request in mock.streamed] == [None, 16]


async def test_greedy_choices_are_written_once(mock: Any, engine: OpenAIEngine, call: MakeCall) -> None:
    """vLLM refuses several, and they are alike."""
    outputs = await collect(engine, call(n=3, max_tokens=5))
    assert mock.streamed[-1].body["n"] == 1
    for index in range(3):
        assert ids([output for output in outputs if output.index == index]) == IDS
    assert [output.index for output in outputs if output.prompt_tokens] == [0]


async def test_a_prefill_is_one_token_behind_everything_else(mock: Any, connect: Any, call: MakeCall) -> None:
    async with connect(priority=True) as engine:
        await engine.prefill(call(max_tokens=100, n=3, schema={"type": "object"}, tenant="t"))
    body = mock.streamed[-1].body
    assert (body["max_tokens"], body["n"], body["priority"]) == (1, 1, 1 << 62)
    assert "structured_outputs" not in body and len(body["cache_salt"]) == 44


async def test_priorities_are_sent_only_where_they_order(mock: Any, connect: Any, call: MakeCall) -> None:
    async with connect() as engine:
        assert not engine.capabilities.priority and not engine.capabilities.reprioritise
        wanted = call(priority=3)
        outputs = engine.generate(wanted)
        await anext(outputs)
        await engine.reprioritise(wanted.id, -3)
        async for _ in outputs:
            pass
    assert len(mock.streamed) == 1
    assert "priority" not in mock.streamed[-1].body


@pytest.mark.parametrize("told", range(4))
async def test_a_new_priority_sends_the_call_anew_with_what_it_has_written(
    mock: Any, mocks: ModuleType, connect: Any, call: MakeCall, told: int
) -> None:
    async def reply(request: Any, wire: Any) -> None:
        already = len(request.body["prompt"]) - len(wanted.prompt_ids)
        await wire.head()
        for at, token in enumerate(IDS[already:], already):
            if request.body["priority"] == 5 and at == told:
                await wire.stall()
            await wire.event(mocks.chunk([token], "length" if at == 4 else None))
        await wire.event(mocks.usage(9, 9, cached=9))
        await wire.event("[DONE]")
        await wire.end()

    mock.reply = reply
    async with connect(priority=True) as engine:
        wanted = call(max_tokens=5, priority=5, tenant="t")
        reading = asyncio.create_task(collect(engine, wanted))
        async with asyncio.timeout(5):
            while engine.status().tokens_out_total < told or not mock.streamed:
                await asyncio.sleep(0.001)
            await engine.reprioritise(wanted.id, -5)
            outputs = await reading
    assert ids(outputs) == IDS
    assert "".join(output.text for output in outputs) == engine.tokenizer.decode(IDS)
    assert [output.finish for output in outputs if output.finish] == [Finish.LENGTH]
    assert sum(output.prompt_tokens for output in outputs) == len(wanted.prompt_ids)
    first, second = (request.body for request in mock.streamed)
    assert (first["priority"], second["priority"]) == (5, -5)
    assert second["prompt"] == [*wanted.prompt_ids, *IDS[:told]]
    assert second["max_tokens"] == 5 - told
    assert first["request_id"] != second["request_id"]
    assert first["cache_salt"] == second["cache_salt"]


@pytest.mark.parametrize(
    "settings", [{"temperature": 1.0, "seed": 3}, {"temperature": 1.0, "n": 2}, {"regex": "a+"}], ids=str
)
async def test_what_could_change_the_answer_keeps_its_place(
    mock: Any, mocks: ModuleType, connect: Any, call: MakeCall, settings: dict[str, Any]
) -> None:
    go_on = asyncio.Event()

    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        await wire.event(mocks.chunk([40]))
        await go_on.wait()
        for index in range(request.body["n"]):
            await wire.event(mocks.chunk([41], "stop", index))
        await wire.event("[DONE]")
        await wire.end()

    mock.reply = reply
    async with connect(priority=True) as engine:
        wanted = call(priority=5, **settings)
        outputs = engine.generate(wanted)
        await anext(outputs)
        await engine.reprioritise(wanted.id, -5)
        go_on.set()
        assert [output async for output in outputs][-1].finish is Finish.STOP
    assert len(mock.streamed) == 1


@pytest.mark.parametrize(
    "url",
    ["", "x", "ftp://x", "http://", "http://u:p@x", "http://x?a=b", "http://x#a", "http://[::1", "http://x:99999999"],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="url"):
        OpenAISettings(url)


@pytest.mark.parametrize("url", ["http://x:1", "http://x:1/", "http://x:1/v1", "http://x:1/v1/"])
def test_urls_may_end_in_v1(url: str) -> None:
    assert "http://x:1 " in repr(OpenAIEngine(OpenAISettings(url)))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("window", -1),
        ("max_context", -1),
        ("connect_s", 0.0),
        ("start_timeout_s", -1.0),
        ("poll_s", -0.1),
        ("dialect", "grpc"),
        ("kv_events", "host:5557"),
    ],
)
def test_settings_that_are_wrong_are_named(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=setting):
        OpenAISettings("http://x", **{setting: value})
