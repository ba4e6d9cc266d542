"""What operators and browsers ask."""

import asyncio
import random
from typing import Any

from flowserve.config import RuntimeConfig


async def test_health_ready_and_version_answer(served: Any) -> None:
    assert (await served.http.get("/health")).json() == {"status": "ok"}
    assert (await served.http.get("/ready")).json() == {"status": "ready", "engines": 1}
    assert (await served.http.get("/version")).json()["name"] == "flowserve"


async def test_the_page_may_not_reach_out(served: Any) -> None:
    page = await served.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert (await served.http.get("/openapi.json")).json()["openapi"].startswith("3.")


async def test_after_a_storm_of_clients_that_come_and_leave_nothing_is_left(serve: Any) -> None:
    async with serve(config=RuntimeConfig(max_live_runs=20), replies={"pour": "word " * 2_000}) as served:
        rnd = random.Random(7)
        await served.run("echo")
        await settled(served)
        before = len(asyncio.all_tasks())

        async def client(workflow: str, mode: str, patience: int) -> int:
            body = {"input": {"text": "a b"}, "mode": mode, "timeout": 5}
            async with served.http.stream("POST", f"/v1/workflows/{workflow}/runs", json=body) as response:
                async for _ in response.aiter_raw():
                    patience -= 1
                    if patience < 0:
                        break
                return int(response.status_code)

        async def impatient() -> int:
            try:
                async with asyncio.timeout(rnd.random() / 4):
                    return await client(rnd.choice(["echo", "each", "stuck", "firehose", "refusing"]), "wait", 1_000)
            except TimeoutError:
                return 0

        async def reader() -> int:
            return await client(rnd.choice(["each", "firehose", "dying"]), "stream", rnd.randrange(20))

        statuses = await asyncio.gather(*(rnd.choice([impatient, reader])() for _ in range(150)))
        assert set(statuses) <= {0, 200, 429, 502}
        assert {0, 200, 429} <= set(statuses)
        for run in served.runtime.runs(limit=1_000):
            run.cancel()
        await settled(served)
        assert served.door.stops.streams == 0
        assert not served.door._streams
        assert served.engine.status().running == 0
        assert len(asyncio.all_tasks()) <= before + 2  # connections that are kept open between requests
        assert (await served.run("echo")).status_code == 200


async def settled(served: Any) -> None:
    """Until what clients left behind has been cleared away."""
    async with asyncio.timeout(20):
        while served.door.metrics.live or served.door.stops.streams or served.engine.status().running:
            await served.http.get("/health")
