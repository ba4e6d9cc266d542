"""Every state of a run, brought about at every door, is called what the one table says; the page shows the same table."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from flowserve.config import RuntimeConfig
from flowserve.server.schemas import RunStatus
from flowserve.server.states import STATES

WORKFLOW = {"completed": "echo", "failed": "dying", "cancelled": "stuck", "timed_out": "stuck", "running": "stuck"}
CAUSE = "engine_failed"
"""Of what `dying` dies of."""


async def native(served: Any, workflow: str) -> tuple[str, Callable[[], Awaitable[str]]]:
    body = {"input": {"text": "x"}, "mode": "background"}
    run = (await served.http.post(f"/v1/workflows/{workflow}/runs", json=body)).json()["id"]

    async def status() -> str:
        return str((await served.http.get(f"/v1/runs/{run}")).json()["status"])

    return run, status


async def responses(served: Any, workflow: str) -> tuple[str, Callable[[], Awaitable[str]]]:
    body = {"model": workflow, "input": "x", "background": True}
    run = (await served.http.post("/v1/responses", json=body)).json()["id"]

    async def status() -> str:
        return str((await served.http.get(f"/v1/responses/{run}")).json()["status"])

    return run.removeprefix("resp_"), status


async def langgraph(served: Any, workflow: str) -> tuple[str, Callable[[], Awaitable[str]]]:
    run = (await served.http.post("/runs", json={"assistant_id": workflow, "input": {"text": "x"}})).json()

    async def status() -> str:
        return str((await served.http.get(f"/threads/{run['thread_id']}/runs/{run['run_id']}")).json()["status"])

    return run["run_id"], status


@pytest.mark.parametrize("state", WORKFLOW)
@pytest.mark.parametrize("door", [native, responses, langgraph])
async def test_a_state_is_called_what_the_table_says(serve: Any, door: Any, state: str) -> None:
    config = RuntimeConfig(default_timeout_s=0.2) if state == "timed_out" else None
    async with serve(config=config) as served:
        run, status = await door(served, WORKFLOW[state])
        if state == "cancelled":
            served.runtime.run(run).cancel()
        told = STATES[state]
        wanted = {native: state, responses: told.responses, langgraph: told.langgraph}[door]
        for _ in range(400):
            if await status() == wanted and served.runtime.run(run).status.value == state:
                break
            await asyncio.sleep(0.01)
        assert (await status(), served.runtime.run(run).status.value) == (wanted, state)
        served.runtime.run(run).cancel()


async def asked_chat(served: Any, workflow: str) -> str:
    body = {"model": workflow, "messages": [{"role": "user", "content": "x"}]}
    return str((await served.http.post("/v1/chat/completions", json=body)).json()["error"]["code"])


async def asked_response(served: Any, workflow: str) -> str:
    answer = await served.http.post("/v1/responses", json={"model": workflow, "input": "x"})
    return str(answer.json()["error"]["code"])


async def asked_native(served: Any, workflow: str) -> str:
    return str((await served.run(workflow, "x")).json()["code"])


async def asked_langgraph(served: Any, workflow: str) -> str:
    answer = await served.http.post("/runs/wait", json={"assistant_id": workflow, "input": {"text": "x"}})
    return str(answer.json()["__error__"]["error"])


async def asked_mcp(served: Any, workflow: str) -> str:
    call = {"name": workflow, "arguments": {"text": "x"}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    headers = {"accept": "application/json, text/event-stream"}
    result = (await served.http.post("/mcp", json=message, headers=headers)).json()["result"]
    assert result["isError"]
    return str(result["_meta"]["flowserve/error"]["code"])


@pytest.mark.parametrize("state", ["failed", "cancelled", "timed_out"])
@pytest.mark.parametrize("ask", [asked_native, asked_chat, asked_response, asked_langgraph, asked_mcp])
async def test_who_waits_for_it_is_told_the_code_of_the_table(serve: Any, ask: Any, state: str) -> None:
    config = RuntimeConfig(default_timeout_s=0.2) if state == "timed_out" else None
    async with serve(config=config) as served:
        asking = asyncio.create_task(ask(served, WORKFLOW[state]))
        while state == "cancelled" and not asking.done():
            for run in served.runtime.runs():
                run.cancel()
            await asyncio.sleep(0.01)
        assert await asking == (CAUSE if state == "failed" else STATES[state].code)


def test_the_table_has_every_state_and_stands_in_the_page() -> None:
    assert set(STATES) == set(get_args(RunStatus))
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
    for state, told in STATES.items():
        error = "-" if told.code is None else told.code if " " in told.code else f"`{told.code}`"
        assert f"| `{state}` | `{told.responses}` | `{told.langgraph}` | {error} |" in page
