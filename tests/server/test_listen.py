"""Starting and stopping the server."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from flowserve.errors import ConfigError
from flowserve.server.listen import bind
from flowserve.server.settings import ServerSettings


async def test_a_stop_lets_a_waiting_answer_finish(serve: Any) -> None:
    async with serve(settings=ServerSettings(port=0, grace_s=10), delays={"say": 0.2}) as served:
        waiting = asyncio.create_task(served.run("echo"))
        await started(served)
        served.server.stop()
        assert (await waiting).json()["result"] == "one two three"


async def test_a_server_that_is_stopping_is_not_ready_and_takes_no_runs(serve: Any) -> None:
    async with serve(settings=ServerSettings(port=0, grace_s=10)) as served:
        served.door.stops.closing = True
        assert (await served.http.get("/ready")).status_code == 503
        response = await served.run("echo")
        assert (response.status_code, response.json()["code"]) == (503, "closing")
        assert response.headers["retry-after"]
        assert (await served.http.get("/health")).status_code == 200


async def test_streams_are_told_to_come_back_when_the_grace_is_over(serve: Any) -> None:
    async with serve(settings=ServerSettings(port=0, grace_s=0.1)) as served:
        run = (await served.run("stuck", mode="background")).json()
        async with served.follow(f"/v1/runs/{run['id']}/events") as events:
            assert await anext(events)
            served.server.stop()
            last = [event async for event in events][-1]
        assert last == {"event": "reconnect", "data": {"run_id": run["id"]}}


async def test_plain_waits_get_a_503_of_our_shape_when_the_grace_is_over(serve: Any) -> None:
    async with serve(settings=ServerSettings(port=0, grace_s=0.1)) as served:
        waiting = asyncio.create_task(served.run("stuck"))
        await started(served)
        served.server.stop()
        response = await waiting
        assert response.status_code == 503
        assert response.headers["content-type"] == "application/problem+json"


async def test_a_second_signal_ends_the_grace(serve: Any) -> None:
    async with serve(settings=ServerSettings(port=0, grace_s=600)) as served:
        waiting = asyncio.create_task(served.run("stuck"))
        await started(served)
        served.server.handle_exit(signal.SIGTERM, None)
        await closing(served)
        served.server.handle_exit(signal.SIGTERM, None)
        assert (await asyncio.wait_for(waiting, 10)).status_code == 503


async def test_nobody_is_let_in_once_it_is_closed(serve: Any) -> None:
    async with serve() as served:
        url = served.url
    async with httpx2.AsyncClient() as http:
        try:
            await http.get(f"{url}/health")
        except httpx2.ConnectError:
            return
    raise AssertionError("the port still answers")


def test_the_page_travels_with_the_package() -> None:
    import flowserve.server

    assert flowserve.server.__file__ is not None
    assert (Path(flowserve.server.__file__).parent / "docs.html").is_file()


async def test_a_port_that_is_taken_is_said_before_anything_is_started(serve: Any) -> None:
    """It was found after the model had been loaded, and told by uvicorn's log."""
    async with serve() as served:
        port = int(served.url.rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: .*--port"):
            bind("127.0.0.1", port)


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(ConfigError, match="cannot listen on 192.0.2.1:0: .*--host"):
        bind("192.0.2.1", 0)


async def test_a_host_of_several_addresses_is_bound_on_each_that_there_is() -> None:
    sockets = bind("localhost", 0)
    assert {sock.getsockname()[0] for sock in sockets} <= {"127.0.0.1", "::1"}
    assert sockets
    for sock in sockets:
        sock.close()


async def started(served: Any) -> Any:
    async with asyncio.timeout(10):
        while not served.engine.calls:
            await served.http.get("/health")
    return served.runtime.runs()[0]


async def closing(served: Any) -> None:
    """Until the server has begun to stop."""
    async with asyncio.timeout(10):
        while not served.door.stops.closing:
            await asyncio.sleep(0)
