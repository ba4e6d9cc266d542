"""Votes over HTTP: the response, the table of nodes and the events tell how they went."""

from typing import Any

import flowserve as fs
from flowserve.server import schemas as s

VOTES = {"asked": 8, "drawn": 2, "counts": [2], "unusable": 0, "certainty": 1.0, "stopped_by": "agreement"}


@fs.llm(temperature=0.8)
def guess(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.workflow()
def voted(text: str) -> str:
    return guess.sample(8, vote="", stop=fs.agreement(2), wave=1)(text)


async def test_the_response_the_table_and_the_events_say_how_samples_voted(serve: Any) -> None:
    async with serve(replies=lambda call: "same") as served:
        served.runtime.register(voted.program)
        body = (await served.run("voted")).json()
        assert (body["result"], body["votes"]) == ("same", [{"node": "guess.sample", **VOTES}])
        s.RunResult.model_validate(body)
        detail = (await served.http.get(f"/v1/runs/{body['id']}")).json()
        s.RunDetail.model_validate(detail)
        assert [(node["label"], node["votes"]) for node in detail["nodes"] if node["kind"] == "sample"] == [
            ("guess.sample", VOTES)
        ]
        assert all(node["votes"] is None for node in detail["nodes"] if node["kind"] != "sample")
        async with served.follow(f"/v1/runs/{body['id']}/events") as events:
            told = [event["data"] async for event in events if "data" in event]
        assert [event["data"]["votes"] for event in told if "votes" in event["data"]] == [VOTES]


async def test_a_run_without_votes_has_none(served: Any) -> None:
    assert (await served.run("echo")).json()["votes"] == []
