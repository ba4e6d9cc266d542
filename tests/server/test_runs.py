"""Native door, runs: the three modes, looking, following, cancelling, forgetting."""

import asyncio
import json
from typing import Any

import pytest

from flowserve.config import PoolConfig, RuntimeConfig
from flowserve.server.settings import ServerSettings


async def test_wait_answers_with_the_finished_run(served: Any) -> None:
    response = await served.run("echo", metadata={"who": "me"})
    assert response.status_code == 200
    body = response.json()
    assert (body["status"], body["result"], body["error"]) == ("completed", "one two three", None)
    assert body["usage"]["tokens_out"] > 0
    assert body["metadata"] == {"who": "me"}
    assert response.headers["location"] == f"/v1/runs/{body['id']}"


async def test_a_result_that_is_a_model_comes_as_json(served: Any) -> None:
    assert (await served.run("verdict")).json()["result"] == {"text": "good", "score": 3}


async def test_background_answers_at_once_and_the_result_is_waited_for(serve: Any) -> None:
    async with serve() as served:
        response = await served.run("stuck", mode="background")
        assert response.status_code == 202
        where = response.headers["location"]
        assert (await served.http.get(f"{where}/result?timeout=0")).status_code == 202
        waiting = asyncio.create_task(served.http.get(f"{where}/result?timeout=20"))
        await served.http.post(f"{where}/cancel")
        ended = await waiting
        assert ended.status_code == 409
        assert ended.json()["code"] == "run_cancelled"


async def test_stream_sends_every_event_in_order_and_ends_with_the_terminal_one(served: Any) -> None:
    response = await served.run("echo", mode="stream")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["location"].startswith("/v1/runs/run_")
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in response.text.strip().split("\n\n")]
    assert blocks[0] == {"retry": "2000"}
    events = [(int(b["id"]), b["event"], json.loads(b["data"])) for b in blocks[1:]]
    assert [seq for seq, _, _ in events] == list(range(1, len(events) + 1))
    assert all(data["seq"] == seq and data["type"] == kind for seq, kind, data in events)
    assert events[-1][1] == "run.completed"
    text = "".join(data["data"]["text"] for _, kind, data in events if kind == "node.delta" and data["data"]["result"])
    assert text == "one two three" == events[-1][2]["data"]["result"]
    assert all(data["node"] for _, kind, data in events if kind.startswith("node."))


async def test_accepting_an_event_stream_is_asking_for_one(served: Any) -> None:
    body = {"input": {"text": "x"}}
    response = await served.http.post("/v1/workflows/echo/runs", json=body, headers={"accept": "text/event-stream"})
    assert "event: run.completed" in response.text


async def test_a_reader_may_come_back_at_every_event_without_gap_or_repeat(served: Any) -> None:
    run = (await served.run("each", text="a b c")).json()
    path = f"/v1/runs/{run['id']}/events"
    async with served.follow(path) as events:
        whole = [event async for event in events if "id" in event]
    assert len(whole) == run["last_seq"]
    for cut in range(len(whole)):
        for asked in ({"headers": {"last-event-id": str(cut)}}, {"params": {"after": cut}}):
            async with served.follow(path, **asked) as events:
                assert [event async for event in events if "id" in event] == whole[cut:]


async def test_a_reader_that_has_everything_is_told_not_to_come_back(served: Any) -> None:
    run = (await served.run("echo")).json()
    response = await served.http.get(f"/v1/runs/{run['id']}/events", headers={"last-event-id": str(run["last_seq"])})
    assert response.status_code == 204


@pytest.mark.parametrize("last", ["x", "-1", "1.5", str(2**60), ""])
async def test_an_event_id_that_is_none_of_ours_is_refused(served: Any, last: str) -> None:
    run = (await served.run("echo")).json()
    response = await served.http.get(f"/v1/runs/{run['id']}/events", headers={"last-event-id": last})
    assert response.status_code == 422


async def test_a_live_run_is_followed_from_a_snapshot_on(serve: Any) -> None:
    async with serve() as served:
        run = (await served.run("stuck", mode="background")).json()
        async with served.follow(f"/v1/runs/{run['id']}/events?snapshot=true") as events:
            assert (await anext(events)) == {"retry": "2000"}
            first = await anext(events)
            assert first["event"] == "run.snapshot"
            assert first["data"]["nodes"][0]["label"] == "hang"
            await served.http.post(f"/v1/runs/{run['id']}/cancel")
            rest = [event async for event in events]
        assert int(rest[0]["id"]) == int(first["id"]) + 1
        assert rest[-1]["event"] == "run.cancelled"


async def test_cancel_aborts_the_call_at_the_engine_and_may_be_repeated(serve: Any) -> None:
    async with serve() as served:
        run = (await served.run("stuck", mode="background")).json()
        first = await served.http.post(f"/v1/runs/{run['id']}/cancel")
        assert first.status_code == 202
        await served.http.get(f"/v1/runs/{run['id']}/result")
        again = await served.http.post(f"/v1/runs/{run['id']}/cancel")
        assert (again.status_code, again.json()["status"]) == (200, "cancelled")
        await _aborted(served, 1)
        assert [call.id for call in served.engine.calls] == served.engine.aborted


async def test_a_client_that_leaves_a_plain_call_ends_its_run(serve: Any) -> None:
    async with serve() as served:
        _, writer = await served.connect()
        body = b'{"input": {"text": "x"}}'
        writer.write(
            b"POST /v1/workflows/stuck/runs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        run = await _only_run(served, "running")
        writer.close()
        await asyncio.wait_for(run.wait(), 10)
        assert run.snapshot().status == "cancelled"
        await _aborted(served, 1)


@pytest.mark.parametrize(("on_disconnect", "ends"), [("cancel", True), ("continue", False)])
async def test_leaving_a_stream_does_to_the_run_what_was_asked(serve: Any, on_disconnect: str, ends: bool) -> None:
    async with serve() as served:
        body = {"input": {"text": "x"}, "mode": "stream", "on_disconnect": on_disconnect}
        async with served.http.stream("POST", "/v1/workflows/stuck/runs", json=body) as response:
            async for line in response.aiter_lines():
                if line == "event: node.started":
                    break
        run = served.runtime.runs()[0]
        if ends:
            await asyncio.wait_for(run.wait(), 10)
            assert run.snapshot().status == "cancelled"
        else:
            await _streams_are_gone(served)
            assert run.snapshot().status == "running"


async def test_leaving_the_events_of_a_run_does_not_touch_it(serve: Any) -> None:
    async with serve() as served:
        run = (await served.run("stuck", mode="background")).json()
        async with served.follow(f"/v1/runs/{run['id']}/events") as events:
            await anext(events)
        await _streams_are_gone(served)
        assert (await served.http.get(f"/v1/runs/{run['id']}")).json()["status"] == "running"


async def test_a_run_has_only_so_many_readers_at_a_time(serve: Any) -> None:
    async with serve(settings=ServerSettings(port=0, max_streams_per_run=1)) as served:
        run = (await served.run("stuck", mode="background")).json()
        path = f"/v1/runs/{run['id']}/events"
        async with served.follow(path) as events:
            await anext(events)
            second = await served.http.get(path)
            assert (second.status_code, second.json()["code"]) == (429, "too_many_streams")
        await _streams_are_gone(served)
        async with served.follow(path) as events:
            await anext(events)


async def test_a_run_shows_its_nodes(served: Any) -> None:
    run = (await served.run("each", text="a b")).json()
    nodes = (await served.http.get(f"/v1/runs/{run['id']}")).json()["nodes"]
    labels = {node["label"]: node for node in nodes}
    assert {"say[0]", "say[1]"} <= set(labels)
    assert labels["say[1]"]["engine"] == "fake"
    assert labels["say[1]"]["ended_s"] >= labels["say[1]"]["started_s"] >= labels["say[1]"]["ready_s"] >= 0


async def test_a_run_of_many_nodes_shows_them_all(served: Any) -> None:
    run = (await served.run("each", text=" ".join("x" * 700))).json()
    detail = (await served.http.get(f"/v1/runs/{run['id']}")).json()
    assert len([node for node in detail["nodes"] if node["kind"] == "llm"]) == 700
    assert detail["usage"] == run["usage"]


async def test_runs_are_listed_page_by_page_newest_first(served: Any) -> None:
    made = [(await served.run("words", text=str(i))).json()["id"] for i in range(5)]
    await served.run("echo")
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = (await served.http.get("/v1/runs", params={"workflow": "words", "limit": 2, **after})).json()
        seen += [run["id"] for run in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["next"]}
    assert seen == made[::-1]
    assert (await served.http.get("/v1/runs?status=failed")).json()["data"] == []


async def test_a_misspelt_query_parameter_is_refused(served: Any) -> None:
    response = await served.http.get("/v1/runs?lmit=3")
    assert response.status_code == 422
    assert "limit" in response.json()["detail"]


async def test_a_forgotten_run_is_unknown(served: Any) -> None:
    run = (await served.run("echo")).json()
    assert (await served.http.delete(f"/v1/runs/{run['id']}")).status_code == 204
    assert (await served.http.get(f"/v1/runs/{run['id']}")).status_code == 404
    assert (await served.http.delete(f"/v1/runs/{run['id']}")).status_code == 404


async def test_forgetting_a_live_run_cancels_it_first(serve: Any) -> None:
    async with serve() as served:
        run = (await served.run("stuck", mode="background")).json()
        assert (await served.http.delete(f"/v1/runs/{run['id']}")).status_code == 204
        await _aborted(served, 1)
        assert (await served.http.get(f"/v1/runs/{run['id']}")).status_code == 404


async def test_a_wrong_input_points_into_the_body(served: Any) -> None:
    body = {"input": {"txt": "x"}}
    response = await served.http.post("/v1/workflows/echo/runs", json=body)
    assert response.status_code == 422
    assert {item["pointer"] for item in response.json()["errors"]} == {"/input/text", "/input/txt"}


async def test_a_wrong_override_points_into_the_body(served: Any) -> None:
    response = await served.run("echo", overrides={"sya": {"max_tokens": 1}})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/overrides/sya"


async def test_an_override_reaches_the_engine(served: Any) -> None:
    assert (await served.run("echo", overrides={"say": {"max_tokens": 1}})).json()["result"] == "one"
    assert served.engine.calls[0].sampling.max_tokens == 1


@pytest.mark.parametrize(
    "body",
    [
        {"mode": "later"},
        {"inptu": {}},
        {"timeout": 0},
        {"timeout": "1"},
        {"priority": 1.5},
        {"priority": True},
        {"seed": -1},
        {"slo": {"tier": "gold"}},
        {"metadata": {"a": 1}},
        {"overrides": {"*": {"max_tokens": 10**9}}},
        {"overrides": {"*": {"regex": "(a+)+"}}},
        {"mode": "background", "on_disconnect": "cancel"},
    ],
)
async def test_a_body_of_the_wrong_shape_is_refused_before_anything_starts(served: Any, body: dict[str, Any]) -> None:
    response = await served.run("echo", **body)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert served.runtime.runs() == []


async def test_an_unknown_workflow_is_answered_with_those_that_are_known(served: Any) -> None:
    response = await served.run("ecko")
    assert response.status_code == 404
    assert "echo" in response.json()["detail"]


async def test_a_tool_that_fails_is_told_with_its_node_and_run(served: Any) -> None:
    response = await served.run("refusing", text="budge")
    assert response.status_code == 502
    body = response.json()
    assert (body["code"], body["node"]) == ("tool_failed", "refuse")
    assert "will not budge" in body["detail"]
    assert body["instance"] == f"/v1/runs/{body['run_id']}"
    assert "Traceback" not in response.text


async def test_an_engine_that_fails_in_the_middle_of_a_stream_ends_it_with_the_failure(served: Any) -> None:
    response = await served.run("dying", mode="stream")
    assert response.status_code == 200
    assert response.text.rstrip().split("event: ")[-1].startswith("run.failed")


async def test_a_run_past_its_deadline_is_504(served: Any) -> None:
    response = await served.run("stuck", timeout=0.05)
    assert response.status_code == 504
    assert response.json()["code"] == "run_timed_out"
    await _aborted(served, 1)


async def test_overload_is_429_with_when_to_come_back(serve: Any) -> None:
    async with serve(config=RuntimeConfig(max_live_runs=1)) as served:
        await served.run("stuck", mode="background")
        response = await served.run("echo")
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["x-should-retry"] == "true"


async def test_without_an_engine_only_what_needs_one_is_503(serve: Any) -> None:
    async with serve(config=RuntimeConfig(pool=PoolConfig(outage_s=0.0))) as served:
        served.engine.startable = False
        await served.engine.close()
        response = await served.run("echo")
        assert response.status_code == 503
        assert "retry-after" in response.headers
        assert (await served.run("words", text="a b")).json()["result"] == ["a", "b"]
        assert (await served.http.get("/ready")).status_code == 503
        assert (await served.http.get("/health")).status_code == 200


async def test_a_short_outage_is_waited_out(served: Any) -> None:
    served.engine.startable = False
    await served.engine.close()
    asking = asyncio.create_task(served.run("echo", text="x"))
    await asyncio.sleep(0.05)
    assert not asking.done()
    served.engine.startable = True
    assert (await asking).json()["result"] == "one two three"


async def test_only_so_many_requests_are_at_work_but_operators_get_in(serve: Any) -> None:
    async with serve(settings=ServerSettings(port=0, max_requests=1)) as served:
        waiting = asyncio.create_task(served.run("stuck"))
        await _only_run(served, "running")
        response = await served.http.get("/v1/workflows")
        assert (response.status_code, response.json()["code"]) == (503, "too_many_requests_at_work")
        assert (await served.http.get("/health")).status_code == 200
        served.runtime.runs()[0].cancel()
        assert (await waiting).status_code == 409


async def _only_run(served: Any, status: str) -> Any:
    """The one run there is, once it has this status: told by its events, not by looking again and again."""
    while not served.runtime.runs():
        await served.http.get("/health")
    run = served.runtime.runs()[0]
    async for _ in run.events():
        if run.snapshot().status == status and served.engine.calls:
            break
    return run


async def _aborted(served: Any, calls: int) -> None:
    """Until the engine has let go of that many calls."""
    async with asyncio.timeout(10):
        while len(served.engine.aborted) < calls:
            await served.http.get("/health")
    assert len(served.engine.aborted) == calls


async def _streams_are_gone(served: Any) -> None:
    """Until the server has noticed that its readers left. It is asked over the network, which gives it turns."""
    async with asyncio.timeout(10):
        while served.door.stops.streams:
            await served.http.get("/health")
