"""The pool as operators see it over HTTP."""

import asyncio
from typing import Any

from flowserve.server.auth import Keyring
from flowserve.server.settings import ServerSettings

OPERATOR, TENANT = "a-key-of-the-operators", "a-key-of-somebody-else"
KEYS = Keyring.parse(f"operator:{OPERATOR},red:{TENANT}")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def state(served: Any) -> str:
    [row] = (await served.http.get("/v1/pool")).json()["data"]
    return str(row["state"])


async def test_the_pool_tells_how_its_engines_are(served: Any) -> None:
    await served.run("echo", text="x")
    [row] = (await served.http.get("/v1/pool")).json()["data"]
    assert (row["id"], row["state"], row["up"], row["draining"]) == ("fake", "up", True, False)
    assert (row["models"], row["default"], row["calls"], row["backlog_tokens"]) == (["fake"], True, 0, 0)


async def test_an_engine_is_drained_and_had_back(served: Any) -> None:
    answered = await served.http.post("/v1/pool/fake/drain", json={})
    assert answered.status_code == 200
    async with asyncio.timeout(10):
        while await state(served) != "closed":
            await asyncio.sleep(0.01)
    assert (await served.http.get("/ready")).status_code == 503
    assert (await served.http.post("/v1/pool/fake/resume")).status_code == 200
    async with asyncio.timeout(10):
        while await state(served) != "up":
            await asyncio.sleep(0.01)
    assert (await served.run("echo", text="x")).json()["result"] == "one two three"
    assert served.engine.starts == 2


async def test_an_engine_is_replaced(served: Any) -> None:
    assert (await served.http.post("/v1/pool/fake/drain", json={"replace": True})).status_code == 200
    async with asyncio.timeout(10):
        while served.engine.starts < 2:
            await asyncio.sleep(0.01)
    assert (await served.run("echo", text="x")).json()["result"] == "one two three"


async def test_an_unknown_engine_is_404_with_the_known_ones(served: Any) -> None:
    answered = await served.http.post("/v1/pool/nobody/drain", json={})
    assert answered.status_code == 404
    assert "fake" in answered.json()["detail"]


async def test_only_operators_see_and_change_the_pool(serve: Any) -> None:
    async with serve(settings=ServerSettings(port=0, keys=KEYS)) as served:
        for method, path in (("GET", "/v1/pool"), ("POST", "/v1/pool/fake/drain"), ("POST", "/v1/pool/fake/resume")):
            body = {"json": {}} if path.endswith("drain") else {}
            assert (await served.http.request(method, path, headers=bearer(TENANT), **body)).status_code == 403
            assert (await served.http.request(method, path, headers=bearer(OPERATOR), **body)).status_code == 200


async def test_metrics_show_the_pool(served: Any) -> None:
    await served.run("echo", text="x")
    text = (await served.http.get("/metrics")).text
    assert 'flowserve_engine_state{engine="fake",state="up"} 1.0' in text
    assert 'flowserve_engine_state{engine="fake",state="down"} 0.0' in text
    assert 'flowserve_engine_calls{engine="fake"} 0.0' in text
    served.engine.crash()
    async with asyncio.timeout(10):
        while served.engine.starts < 2:
            await asyncio.sleep(0.01)
    text = (await served.http.get("/metrics")).text
    assert 'flowserve_engine_events_total{engine="fake",event="restarts"} 1.0' in text
