"""Clients that attack the connection itself, over real sockets."""

import asyncio
import json
import socket
from typing import Any

import pytest

from flowserve.server.settings import ServerSettings

IMPATIENT = ServerSettings(
    port=0,
    header_timeout_s=0.2,
    body_timeout_s=0.2,
    write_idle_s=0.2,
    idle_connection_s=1,
    max_stream_backlog_bytes=4096,
)
HEAD = b"POST /v1/workflows/echo/runs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


async def answer_to(served: Any, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what a bare connection gets."""
    reader, writer = await served.connect()
    writer.write(request)
    try:
        return await read_answer(reader)
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(10):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, body


async def closed(reader: asyncio.StreamReader) -> bool:
    """The server ended the connection; what it still sent is dropped."""
    try:
        async with asyncio.timeout(10):
            while await reader.read(65536):
                pass
    except ConnectionResetError:
        return True
    return reader.at_eof()


@pytest.mark.parametrize(
    "request_line",
    [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n"],
)
async def test_what_is_not_http_gets_a_problem_and_is_closed(served: Any, request_line: bytes) -> None:
    status, headers, body = await answer_to(served, request_line)
    assert status == 400
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["request_id"] == headers["x-request-id"]


async def test_headers_that_never_end_are_cut_off_by_size(served: Any) -> None:
    reader, writer = await served.connect()
    writer.write(b"GET /health HTTP/1.1\r\nx-bomb: ")
    for _ in range(20):
        writer.write(b"a" * 1024)
    status, headers, _ = await read_answer(reader)
    assert (status, headers["connection"]) == (431, "close")
    assert await closed(reader)


async def test_headers_that_end_but_are_too_large_are_refused(served: Any) -> None:
    response = await served.http.get("/health", headers={"x-bomb": "a" * 20_000})
    assert (response.status_code, response.json()["code"]) == (431, "headers_too_large")


async def test_thousands_of_query_parameters_are_refused(served: Any) -> None:
    query = b"&".join(b"p%d=1" % i for i in range(5_000))
    status, _, _ = await answer_to(served, b"GET /v1/runs?" + query + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    assert status == 431


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nx: "])
async def test_a_client_that_does_not_finish_its_headers_is_dropped(serve: Any, sent: bytes) -> None:
    async with serve(settings=IMPATIENT) as served:
        reader, writer = await served.connect()
        writer.write(sent)
        assert await closed(reader)


async def test_a_body_that_does_not_arrive_is_408_and_the_connection_ends(serve: Any) -> None:
    async with serve(settings=IMPATIENT) as served:
        reader, writer = await served.connect()
        writer.write(HEAD + b'content-length: 1000\r\n\r\n{"input"')
        status, _, body = await read_answer(reader)
        assert (status, json.loads(body)["code"]) == (408, "body_timeout")
        assert await closed(reader)


async def test_a_body_that_drips_for_ever_after_its_answer_is_cut_off(serve: Any) -> None:
    async with serve(settings=IMPATIENT) as served:
        reader, writer = await served.connect()
        writer.write(HEAD + b"content-length: 99999999\r\n\r\n")
        status, _, _ = await read_answer(reader)
        assert status == 413
        ended = asyncio.ensure_future(closed(reader))
        while not ended.done():
            writer.write(b"a")
            await asyncio.wait({ended}, timeout=0.05)
        assert ended.result()


async def test_64_megabytes_are_refused_while_they_come_and_the_next_request_is_served(served: Any) -> None:
    async def body() -> Any:
        for _ in range(1024):
            yield b" " * 65_536

    response = await served.http.post(
        "/v1/workflows/echo/runs", content=body(), headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert (await served.http.get("/health")).status_code == 200


async def test_keys_by_the_ten_thousands_are_refused_before_they_are_built(served: Any) -> None:
    body = b'{"input": {' + b",".join(b'"%x":1' % i for i in range(50_000)) + b"}}"
    response = await served.http.post(
        "/v1/workflows/echo/runs", content=body, headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["code"]) == (422, "too_many_keys")


async def test_a_reader_that_takes_nothing_is_cut_off_and_its_run_ends(serve: Any) -> None:
    async with serve(settings=IMPATIENT, replies={"pour": "word " * 100_000}) as served:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        host, _, port = served.url.removeprefix("http://").rpartition(":")
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        body = b'{"input": {"text": "x"}, "mode": "stream", "overrides": {"*": {"max_tokens": 1000000}}}'
        head = HEAD.replace(b"echo", b"firehose") + b"content-length: %d\r\n\r\n" % len(body)
        await asyncio.get_running_loop().sock_sendall(sock, head + body)
        async with asyncio.timeout(20):
            while not served.runtime.runs():
                await served.http.get("/health")
            run = served.runtime.runs()[0]
            await run.wait()
            while served.door.stops.streams:
                await served.http.get("/health")
        assert run.snapshot().status == "cancelled"
        sock.close()


async def test_the_server_answers_others_while_a_firehose_runs_and_after_its_reader_left(serve: Any) -> None:
    async with serve(replies={"pour": "word " * 50_000}) as served:
        body = {"input": {"text": "x"}, "mode": "stream", "overrides": {"*": {"max_tokens": 1_000_000}}}
        async with served.http.stream("POST", "/v1/workflows/firehose/runs", json=body) as response:
            lines = response.aiter_lines()
            while await anext(lines) != "event: node.delta":
                pass
            assert (await served.http.get("/health")).status_code == 200
            assert served.runtime.runs()[0].snapshot().status == "running", "the answer came before the stream's end"
        assert (await served.http.get("/health")).status_code == 200
        async with asyncio.timeout(20):
            await served.runtime.runs()[0].wait()
        assert served.runtime.runs()[0].snapshot().status == "cancelled"


async def test_replaying_a_long_log_to_a_reader_that_leaves_does_not_freeze_the_server(serve: Any) -> None:
    async with serve() as served:
        run = (await served.run("firehose", overrides={"*": {"max_tokens": 100_000}})).json()
        assert run["last_seq"] > 5_000
        for _ in range(3):
            async with served.follow(f"/v1/runs/{run['id']}/events") as events:
                await anext(events)
            assert (await served.http.get("/health")).status_code == 200


async def test_connections_do_not_wait_for_acknowledgements(served: Any) -> None:
    async with served.http.stream("GET", "/health"):
        connection = next(iter(served.server.server_state.connections))
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_large_body_does_not_count_as_headers_of_the_next_request(served: Any) -> None:
    body = json.dumps({"input": {"text": "x" * 100_000}}).encode()
    reader, writer = await served.connect()
    for _ in range(2):
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
    assert (await read_answer(reader))[0] == 200
    assert (await read_answer(reader))[0] == 200
    writer.close()


async def test_empty_lines_between_requests_do_not_keep_a_connection(serve: Any) -> None:
    async with serve(settings=IMPATIENT) as served:
        reader, writer = await served.connect()
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await read_answer(reader))[0] == 200
        writer.write(b"\r\n")
        assert await closed(reader)


async def test_two_requests_in_one_packet_are_both_answered(served: Any) -> None:
    reader, writer = await served.connect()
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /version HTTP/1.1\r\nhost: x\r\n\r\n")
    assert json.loads((await read_answer(reader))[2]) == {"status": "ok"}
    assert json.loads((await read_answer(reader))[2])["name"] == "flowserve"
    writer.close()
