"""What `/metrics` counts."""

import asyncio
import re
from dataclasses import asdict
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

import flowserve as fs
from flowserve.cachestore.segments import Provenance


async def samples(served: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    response = await served.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_runs_are_counted_by_workflow_and_outcome(served: Any) -> None:
    await served.run("echo")
    await served.run("echo")
    await served.run("refusing")
    found = await samples(served)
    assert found["flowserve_runs_total", (("status", "completed"), ("workflow", "echo"))] == 2
    assert found["flowserve_runs_total", (("status", "failed"), ("workflow", "refusing"))] == 1
    assert found["flowserve_run_seconds_count", (("workflow", "echo"),)] == 2
    assert found["flowserve_node_seconds_count", (("kind", "llm"), ("workflow", "echo"))] == 2
    assert found["flowserve_tokens_total", (("direction", "out"), ("workflow", "echo"))] > 0
    assert found["flowserve_runs_live", ()] == 0


@fs.llm(max_tokens=64)
def parts(text: str) -> list[str]:
    fs.prompt("Parts of {{ text }}")


@fs.llm(max_tokens=16)
def tell(part: str) -> str:
    fs.prompt("Tell {{ part }}")


@fs.workflow()
def told(text: str) -> list[str]:
    return tell.map(parts(text))


async def test_items_that_were_begun_before_their_list_was_whole_are_counted(served: Any) -> None:
    served.runtime.register(told.program)
    items = (await served.run("told")).json()["result"]
    found = await samples(served)
    assert found["flowserve_early_frames_total", (("outcome", "begun"),)] == len(items) > 0
    assert found["flowserve_early_frames_total", (("outcome", "dropped"),)] == 0


async def test_gauges_tell_what_is_true_now(served: Any) -> None:
    run = (await served.run("stuck", mode="background")).json()
    async with asyncio.timeout(10):
        while not served.engine.calls:
            await served.http.get("/health")
    found = await samples(served)
    assert found["flowserve_runs_live", ()] == 1
    assert found["flowserve_engine_inflight", (("engine", "fake"),)] == 1
    assert found["flowserve_engine_up", (("engine", "fake"),)] == 1
    await served.http.delete(f"/v1/runs/{run['id']}")
    await served.engine.close()
    found = await samples(served)
    assert found["flowserve_runs_total", (("status", "cancelled"), ("workflow", "stuck"))] == 1
    assert found["flowserve_engine_up", (("engine", "fake"),)] == 0


async def test_no_label_holds_text_of_a_client(served: Any) -> None:
    await served.run("echo", text="MARKER", metadata={"a": "MARKER"}, session_id="MARKER")
    await served.run("MARKER")
    assert "MARKER" not in (await served.http.get("/metrics")).text


async def test_every_metric_is_ours_or_the_process_s_and_explained(served: Any) -> None:
    text = (await served.http.get("/metrics")).text
    names = re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE)
    assert names
    assert all(name.startswith(("flowserve_", "process_")) and len(help_text) > 10 for name, help_text in names)


async def test_the_error_of_predicted_lengths_is_shown_once_there_is_one(served: Any) -> None:
    label = (("predictor", "mean"),)
    for _ in range(4):
        await served.run("echo")
    assert ("flowserve_length_error_tokens", label) not in await samples(served)
    await served.run("echo")
    found = await samples(served)
    assert found["flowserve_length_error_tokens", label] == 0
    assert found["flowserve_length_tokens", label] > 0
    assert found["flowserve_length_p90_coverage", label] == 1


async def test_prompt_tokens_are_counted_by_where_their_kv_came_from(serve: Any) -> None:
    told = Provenance(exact=3, pasted=2, recomputed=9, policy="first_k")
    async with serve(replies="ok", provenance=told) as served:
        answer = (await served.run("echo")).json()
        await served.run("echo")
        found = await samples(served)
    assert answer["usage"]["reuse"] == asdict(told), "the native door tells it too"
    rows = {origin: (("origin", origin), ("policy", "first_k"), ("workflow", "echo")) for origin in ("exact", "pasted")}
    assert found["flowserve_prompt_tokens_total", rows["exact"]] == 6
    assert found["flowserve_prompt_tokens_total", rows["pasted"]] == 4
