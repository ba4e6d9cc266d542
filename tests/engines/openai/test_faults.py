"""What a server does wrong becomes the right error, and never a clean-looking end."""

import asyncio
import json
import socket
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from flowserve.engines.base import Call, Finish, Origin, Output, Segment
from flowserve.engines.openai.engine import OpenAIEngine
from flowserve.errors import (
    ContextTooLong,
    EngineError,
    EngineLost,
    FlowServeError,
    InputError,
    Overloaded,
    RequestError,
    UnknownName,
)

MakeCall = Callable[..., Call]
IDS = [40, 41, 42, 43, 44]
SECRET = "The patient's name is Ada Lovelace"


async def collect(engine: OpenAIEngine, call: Call) -> tuple[list[Output], FlowServeError | None]:
    """Outputs, and what ended them if they did not end well."""
    outputs: list[Output] = []
    try:
        async for output in engine.generate(call):
            outputs.append(output)
    except FlowServeError as error:
        return outputs, error
    return outputs, None


def ids(outputs: list[Output]) -> list[int]:
    return [i for output in outputs for i in output.token_ids]


async def failure(engine: OpenAIEngine, call: Call) -> FlowServeError:
    """The error of a call that must not look as if it ended well."""
    outputs, error = await collect(engine, call)
    assert error is not None, outputs
    assert not any(output.finish for output in outputs), outputs
    assert engine.status().running == engine.status().waiting == 0
    return error


# --- before the answer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "expected", "says"),
    [
        (
            400,
            {"error": {"message": "top_p must be at most 1", "type": "BadRequestError"}},
            InputError,
            "top_p must be",
        ),
        (422, {"detail": "no such field"}, InputError, "no such field"),
        (413, {}, InputError, "413"),
        (400, {"error": {"message": "x", "code": "context_length_exceeded"}}, ContextTooLong, "400"),
        (
            400,
            {"error": {"message": "This model's maximum context length is 512 tokens.", "code": 400}},
            ContextTooLong,
            "512 tokens",
        ),
        (
            400,
            {
                "object": "error",
                "message": "The input (9 tokens) is longer than the model's context length (8 tokens).",
                "code": 400,
            },
            ContextTooLong,
            "longer than",
        ),
        (404, {"error": {"message": "The model `x` does not exist."}}, UnknownName, "known: tiny"),
        (404, {"detail": "Not Found"}, EngineError, "404"),
        (401, {"error": {"message": "Incorrect API key provided: s3cret"}}, EngineError, "api_key"),
        (403, "no", EngineError, "api_key"),
        (429, {}, Overloaded, "no room"),
        (503, {"error": {"message": "The engine is currently busy"}}, Overloaded, "busy"),
        (
            500,
            {"error": {"message": "CUDA out of memory", "type": "InternalServerError"}},
            EngineError,
            "out of memory",
        ),
        (500, {"error": {"message": "EngineCore encountered an issue."}}, EngineLost, "EngineCore"),
        (502, b"<html>bad gateway</html>", EngineLost, "502"),
        (504, b"", EngineLost, "504"),
        (302, b"", EngineError, "redirects"),
        (200, {"choices": []}, EngineError, "protocol: expected text/event-stream"),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_statuses(
    mock: Any, engine: OpenAIEngine, call: MakeCall, status: int, body: Any, expected: type[FlowServeError], says: str
) -> None:
    async def reply(request: Any, wire: Any) -> None:
        await wire.whole(status, body, location="http://127.0.0.1:1/v1/completions")

    mock.reply = reply
    error = await failure(engine, call())
    assert type(error) is expected
    assert says in str(error)
    assert "s3cret" not in str(error)
    assert engine.status().up


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("0.5", 0.5), (None, 1.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 1.0), ("nan", 1.0)]
)
@pytest.mark.parametrize("status", [429, 503])
async def test_no_room_says_for_how_long(
    mock: Any, engine: OpenAIEngine, call: MakeCall, status: int, header: str | None, seconds: float
) -> None:
    async def reply(request: Any, wire: Any) -> None:
        await wire.whole(status, {}, **({} if header is None else {"Retry_After": header}))

    mock.reply = reply
    error = await failure(engine, call())
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == seconds


async def test_many_wrong_calls_change_nothing_for_a_right_one(mock: Any, engine: OpenAIEngine, call: MakeCall) -> None:
    async def refuse(request: Any, wire: Any) -> None:
        await wire.whole(400, {"error": {"message": "maximum context length"}})

    mock.reply = refuse
    for _ in range(200):
        assert isinstance(await failure(engine, call()), ContextTooLong)
    mock.reply = None
    outputs, error = await collect(engine, call(max_tokens=5))
    assert error is None
    assert ids(outputs) == IDS
    assert engine.status().up


async def test_a_server_that_is_gone_is_lost_at_once(mock: Any, engine: OpenAIEngine, call: MakeCall) -> None:
    heard: list[bool] = []
    engine.watch(lambda told, news: heard.append(told.status().up))
    await mock.stop()
    error = await failure_of(engine, call())
    assert isinstance(error, EngineLost)
    assert "cannot connect" in str(error) and mock.url in str(error)
    assert not engine.status().up
    assert "cannot connect" in engine.status().reason
    assert heard[-1] is False
    assert isinstance(await failure_of(engine, call()), EngineLost)


async def failure_of(engine: OpenAIEngine, call: Call) -> FlowServeError:
    _, error = await collect(engine, call)
    assert error is not None
    return error


async def test_a_connection_that_closes_before_the_answer(
    mock: Any, connect: Any, call: MakeCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowserve.engines.openai.client.KEEPALIVE_S", 0.0)
    async with connect() as engine:
        mock.reply = lambda request, wire: wire.close()
        assert isinstance(await failure(engine, call()), EngineLost)
        assert len(mock.streamed) == 1, "it may have been the call that broke it: it is not sent twice"


async def test_a_kept_connection_that_the_server_had_closed_is_not_an_error(
    mock: Any, engine: OpenAIEngine, call: MakeCall
) -> None:
    async def once(request: Any, wire: Any) -> None:
        mock.reply = None
        await wire.close()

    await collect(engine, call())
    mock.reply = once
    outputs, error = await collect(engine, call(max_tokens=5))
    assert error is None
    assert ids(outputs) == IDS


async def test_no_connection_in_time(connect: Any, mock: Any, call: MakeCall) -> None:
    async with connect(connect_s=0.2) as engine:
        full = socket.socket()
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        engine._client._url = f"http://127.0.0.1:{full.getsockname()[1]}"  # type: ignore[union-attr]
        error = await failure(engine, call())
        assert isinstance(error, EngineLost)
        assert "no connection after 0.2 s" in str(error)
        for sock in (full, *waiting):
            sock.close()


# --- in mid-stream ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset", "end"])
@pytest.mark.parametrize("k", range(len(IDS) + 3))
async def test_a_stream_cut_after_k_events(
    mock: Any, mocks: ModuleType, engine: OpenAIEngine, call: MakeCall, k: int, how: str
) -> None:
    """Also after the finish, after the usage and before [DONE]: what came is told, its end is not."""
    events = [mocks.chunk([token], "length" if token == IDS[-1] else None) for token in IDS]
    events.append(mocks.usage(4, len(IDS)))

    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        for event in events[:k]:
            await wire.event(event)
        await getattr(wire, how)()

    mock.reply = reply
    outputs, error = await collect(engine, call(max_tokens=5))
    assert isinstance(error, EngineLost)
    assert ids(outputs) == IDS[: min(k, 4)][: len(ids(outputs))]
    if how != "reset":  # which throws away what is under way
        assert ids(outputs) == IDS[: min(k, 4)]
    assert not any(output.finish for output in outputs)


@pytest.mark.parametrize(
    "payload",
    [
        "{",
        "[1, 2]",
        "nothing",
        '{"choices": 5}',
        '{"choices": [5]}',
        '{"choices": [{"index": 1, "token_ids": [40]}]}',
        '{"choices": [{"index": -1, "token_ids": [40]}]}',
        '{"choices": [{"index": true, "token_ids": [40]}]}',
        '{"choices": [{"index": 0, "text": "x"}]}',
        '{"choices": [{"index": 0, "token_ids": "x"}]}',
        '{"choices": [{"index": 0, "token_ids": [1.5]}]}',
        '{"choices": [{"index": 0, "token_ids": [true]}]}',
        '{"choices": [{"index": 0, "token_ids": [-1]}]}',
        '{"choices": [{"index": 0, "token_ids": [40], "finish_reason": "eos"}]}',
        '{"choices": [{"index": 0, "token_ids": [40], "finish_reason": "content_filter"}]}',
        '{"choices": [{"index": 0, "token_ids": [40], "finish_reason": 7}]}',
        "[" * 100_000,
    ],
    ids=lambda value: value[:60],
)
async def test_events_that_are_not_as_agreed(mock: Any, engine: OpenAIEngine, call: MakeCall, payload: str) -> None:
    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        await wire.event(payload)
        await wire.event("[DONE]")
        await wire.end()

    mock.reply = reply
    error = await failure(engine, call())
    assert type(error) is EngineError
    assert "protocol" in str(error) or "finish_reason" in str(error)


async def test_half_a_character_is_not_text(mock: Any, engine: OpenAIEngine, call: MakeCall) -> None:
    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        await wire.send('data: {"choices": [], "x": "é'.encode()[:-1] + b'"}\n\n')
        await wire.event("[DONE]")
        await wire.end()

    mock.reply = reply
    assert "protocol: expected JSON in UTF-8" in str(await failure(engine, call()))


@pytest.mark.parametrize("reason", ["abort", "error"])
async def test_an_end_that_nobody_asked_for_is_a_loss(
    mock: Any, mocks: ModuleType, engine: OpenAIEngine, call: MakeCall, reason: str
) -> None:
    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        await wire.event(mocks.chunk([40]))
        await wire.event(mocks.chunk([], reason))
        await wire.event("[DONE]")
        await wire.end()

    mock.reply = reply
    error = await failure(engine, call())
    assert isinstance(error, EngineLost)
    assert reason in str(error)


async def test_more_after_the_end_is_refused(
    mock: Any, mocks: ModuleType, engine: OpenAIEngine, call: MakeCall
) -> None:
    for late in (mocks.chunk([42]), mocks.chunk([], "stop"), "[DONE]"):

        async def reply(request: Any, wire: Any, late: Any = late) -> None:
            await wire.head()
            events = [mocks.chunk([40], "stop"), *(["[DONE]", late] if late == "[DONE]" else [late, "[DONE]"])]
            await wire.send("".join(f"data: {e if isinstance(e, str) else json.dumps(e)}\n\n" for e in events).encode())
            await wire.end()

        mock.reply = reply
        _, error = await collect(engine, call())
        assert late == "[DONE]" or "protocol" in str(error)


async def test_every_choice_needs_its_end(mock: Any, mocks: ModuleType, engine: OpenAIEngine, call: MakeCall) -> None:
    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        await wire.event(mocks.chunk([40], "stop", 0))
        await wire.event(mocks.chunk([41], "stop", 2))
        await wire.event("[DONE]")
        await wire.end()

    mock.reply = reply
    outputs, error = await collect(engine, call(n=3, temperature=1.0))
    assert isinstance(error, EngineLost)
    assert "1 choices without a finish_reason" in str(error)
    assert {output.index for output in outputs if output.finish} == {0, 2}


@pytest.mark.parametrize("length", [-7, 7])
async def test_a_wrong_content_length(
    mock: Any, mocks: ModuleType, engine: OpenAIEngine, call: MakeCall, length: int
) -> None:
    data = f"data: {json.dumps(mocks.chunk([40], 'length'))}\n\ndata: [DONE]\n\n".encode()

    async def reply(request: Any, wire: Any) -> None:
        await wire.head(content_length=str(len(data) + length))
        await wire.send(data)
        await wire.close()

    mock.reply = reply
    outputs, error = await collect(engine, call(max_tokens=1))
    if length < 0:  # [DONE] itself was cut
        assert isinstance(error, EngineError), outputs
        assert not any(output.finish for output in outputs)
    else:  # the answer was complete; that more was promised harms nobody
        assert ids(outputs) == [40]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"error": {"message": "This model's maximum context length is 512", "code": 400}}, ContextTooLong),
        ({"error": {"message": "a bad grammar", "type": "BadRequestError", "code": 400}}, InputError),
        ({"error": {"message": "EngineCore encountered an issue.", "code": 500}}, EngineLost),
        ({"error": {"message": "Internal server error", "code": 500}}, EngineError),
        ({"error": {"message": "try again", "code": 503}}, Overloaded),
        ({"error": "gone"}, EngineError),
    ],
    ids=str,
)
async def test_errors_inside_the_stream(
    mock: Any, mocks: ModuleType, engine: OpenAIEngine, call: MakeCall, said: Any, expected: type[FlowServeError]
) -> None:
    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        await wire.event(mocks.chunk([40]))
        await wire.event(said)
        await wire.event("[DONE]")
        await wire.end()

    mock.reply = reply
    assert type(await failure(engine, call())) is expected


async def test_an_endless_event_is_bounded(mock: Any, engine: OpenAIEngine, call: MakeCall, monkeypatch: Any) -> None:
    monkeypatch.setattr("flowserve.engines.openai.client.MAX_EVENT_BYTES", 1 << 16)

    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        while True:
            await wire.send(b"data: " + b"x" * 10_000)

    mock.reply = reply
    assert "events of at most 65536 bytes" in str(await failure(engine, call()))


# --- logprobs --------------------------------------------------------------------------------------------------------


def logprobs(**changes: Any) -> dict[str, Any]:
    tops = [{"token_id:40": -0.25, "token_id:7": -3.0, "token_id:9": -4.0}]
    return {"tokens": ["token_id:40"], "token_logprobs": [-0.25], "top_logprobs": tops, **changes}


@pytest.mark.parametrize(
    "wrong",
    [
        {"token_logprobs": [float("nan")]},
        {"token_logprobs": [None]},
        {"token_logprobs": [0.5]},
        {"token_logprobs": [float("-inf")]},
        {"token_logprobs": ["-1"]},
        {"token_logprobs": []},
        {"tokens": ["token_id:41"]},
        {"tokens": [" word"]},
        {"top_logprobs": [None]},
        {"top_logprobs": []},
        {"top_logprobs": [{"token_id:40": float("nan")}]},
        {"top_logprobs": [{"x": -1.0}]},
    ],
    ids=str,
)
async def test_logprobs_that_are_none(
    mock: Any, mocks: ModuleType, engine: OpenAIEngine, call: MakeCall, wrong: dict[str, Any]
) -> None:
    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        await wire.event(mocks.chunk([40], "length", logprobs=logprobs(**wrong)))
        await wire.event("[DONE]")
        await wire.end()

    mock.reply = reply
    error = await failure(engine, call(max_tokens=1, logprobs=2))
    assert type(error) is EngineError
    assert "protocol" in str(error)


async def test_logprobs_are_the_k_likeliest(mock: Any, mocks: ModuleType, engine: OpenAIEngine, call: MakeCall) -> None:
    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        told = logprobs(
            token_logprobs=[-9.0], top_logprobs=[{"token_id:40": -9.0, "token_id:7": -0.1, "token_id:9": -9999.0}]
        )
        await wire.event(mocks.chunk([40], "length", logprobs=told))
        await wire.event("[DONE]")
        await wire.end()

    mock.reply = reply
    outputs, error = await collect(engine, call(max_tokens=1, logprobs=2))
    assert error is None
    entry = outputs[0].logprobs[0]
    assert (entry.token_id, entry.logprob) == (40, -9.0)
    assert [(i, value) for i, _, value in entry.top] == [(7, -0.1), (40, -9.0)]


# --- what is said of it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        SECRET,
        f"bad input: {{'input': '{SECRET}'}}",
        f"bad: {json.dumps(SECRET)}",
        "... " + SECRET[5:30] + " ...",
        "value [1, 22, 333, 4444, 55555] is wrong",
        "tokens 1, 22, 333, 4444, 55555 are wrong",
    ],
)
async def test_errors_do_not_quote_the_prompt(mock: Any, engine: OpenAIEngine, call: MakeCall, message: str) -> None:
    async def reply(request: Any, wire: Any) -> None:
        await wire.whole(400, {"error": {"message": message}})

    mock.reply = reply
    said = str(await failure(engine, call(SECRET)))
    assert "patient" not in said and "Ada" not in said
    assert "4444" not in said
    assert said.startswith("call 'call-")


async def test_short_prompts_and_other_alphabets_are_not_quoted(mock: Any, engine: OpenAIEngine) -> None:
    for i, text in enumerate(("1234", "漢字のひみつの名前はとても長いです")):

        async def reply(request: Any, wire: Any, text: str = text) -> None:
            await wire.whole(400, {"error": {"message": f"input {json.dumps(text)} or {text}"}})

        mock.reply = reply
        segment = Segment(tuple(engine.tokenizer.encode(text)), Origin.VALUE, text)
        said = str(await failure(engine, Call(f"c{i}", (segment,))))
        assert text not in said and json.dumps(text)[1:-1] not in said


# --- endings that were asked for -------------------------------------------------------------------------------------


async def test_a_stalled_stream_is_aborted_at_once(
    mock: Any, mocks: ModuleType, engine: OpenAIEngine, call: MakeCall
) -> None:
    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        await wire.event(mocks.chunk([40]))
        await wire.stall()

    mock.reply = reply
    wanted = call()
    outputs: list[Output] = []
    async with asyncio.timeout(5):
        async for output in engine.generate(wanted):
            outputs.append(output)
            if len(outputs) == 1:
                assert engine.status().running == 1
                await engine.abort(wanted.id)
    assert [output.finish for output in outputs] == [None, Finish.ABORT]
    await until(lambda: mock.hangups == 1)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("headers", [False, True])
async def test_a_call_without_an_answer_can_be_aborted_cancelled_and_closed(
    mock: Any, connect: Any, call: MakeCall, headers: bool
) -> None:
    async def reply(request: Any, wire: Any) -> None:
        if headers:
            await wire.head()
        await wire.stall()

    mock.reply = reply
    async with connect() as engine:
        aborted, cancelled, closed = (call() for _ in range(3))
        tasks = [asyncio.create_task(collect(engine, one)) for one in (aborted, cancelled, closed)]
        await until(lambda: len(mock.streamed) == 3)
        assert engine.status().waiting == 3
        await engine.abort(aborted.id)
        tasks[1].cancel()
        outputs, error = await tasks[0]
        assert error is None and [output.finish for output in outputs] == [Finish.ABORT]
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        await engine.close()
        outputs, error = await tasks[2]
        assert [output.finish for output in outputs] == [Finish.ABORT] or isinstance(error, EngineLost)
        assert engine.status().waiting == 0
    await until(lambda: mock.hangups == 3)


async def test_bytes_may_come_one_by_one(mock: Any, mocks: ModuleType, engine: OpenAIEngine, call: MakeCall) -> None:
    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        for at, token in enumerate(IDS):
            for byte in f"data: {json.dumps(mocks.chunk([token], 'length' if at == 4 else None))}\r\n\r\n".encode():
                await wire.send(bytes([byte]))
                await asyncio.sleep(0)
        await wire.event("[DONE]")
        await wire.end()

    mock.reply = reply
    outputs, error = await collect(engine, call(max_tokens=5))
    assert error is None
    assert ids(outputs) == IDS
    assert "".join(output.text for output in outputs) == engine.tokenizer.decode(IDS)


async def test_a_probe_is_never_answered_with_a_clients_fault(mock: Any, engine: OpenAIEngine) -> None:
    for status in (400, 404, 429):

        async def reply(request: Any, wire: Any, status: int = status) -> None:
            await wire.whole(status, {"error": {"message": "the model is busy"}})

        mock.reply = reply
        with pytest.raises(EngineError):
            await engine.probe()
    mock.reply = None
    await engine.probe()


async def test_wrong_calls_never_reach_the_server(mock: Any, engine: OpenAIEngine, call: MakeCall) -> None:
    for wrong in ({"temperature": -1.0}, {"model": "another"}, {"thinking_budget": 3}):
        with pytest.raises((RequestError, EngineError)):
            async for _ in engine.generate(call(**wrong)):
                pass
    assert not mock.streamed
