"""The MCP door, asked by the mcp package's own client over streamable HTTP."""

import asyncio

import pytest

from flowserve.server.errors import TABLE, Fault, Row, problem_body
from flowserve.server.mcp.convert import failed_of
from tests.server.conftest import Served

mcp = pytest.importorskip("mcp")


async def test_every_workflow_is_a_tool_with_schemas_of_both_sides(served: Served) -> None:
    async with mcp.Client(f"{served.url}/mcp") as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == set(served.runtime.workflows())
    assert tools["echo"].description == "Says what it is told."
    assert tools["echo"].input_schema["required"] == ["text"]
    assert tools["verdict"].output_schema["properties"]["score"]["type"] == "integer"
    assert tools["words"].output_schema["properties"]["result"]["type"] == "array"


async def test_a_call_answers_with_text_and_with_the_structured_result(served: Served) -> None:
    async with mcp.Client(f"{served.url}/mcp") as client:
        verdict = await client.call_tool("verdict", {"text": "x"})
        words = await client.call_tool("words", {"text": "a b"})
        said = await client.call_tool("echo", {"text": "x"})
    assert verdict.structured_content == {"text": "good", "score": 3}
    assert words.structured_content == {"result": ["a", "b"]}
    assert said.content[0].text == "one two three"


async def test_progress_counts_the_nodes_that_have_ended(served: Served) -> None:
    seen: list[float] = []

    async def note(done: float, total: float | None, message: str | None) -> None:
        seen.append(done)

    async with mcp.Client(f"{served.url}/mcp") as client:
        answer = await client.call_tool("each", {"text": "a b"}, progress_callback=note)
    assert answer.structured_content == {"result": ["one two three"] * 2}
    assert seen == sorted(set(seen)) and len(seen) >= 3


@pytest.mark.parametrize("progress", [False, True])
async def test_cancelling_a_call_cancels_its_run(served: Served, progress: bool) -> None:
    async def note(done: float, total: float | None, message: str | None) -> None: ...

    async with mcp.Client(f"{served.url}/mcp") as client:
        call = client.call_tool("stuck", {"text": "x"}, progress_callback=note if progress else None)
        waiting = asyncio.ensure_future(call)
        while not (runs := served.runtime.runs()):
            await asyncio.sleep(0)
        waiting.cancel()
        async with asyncio.timeout(10):
            await runs[0].wait()
        await client.list_tools()  # the session goes on; leaving at once would race the client's own reader
    assert runs[0].status.value == "cancelled"


async def test_a_cancel_notification_ends_the_named_call_of_its_session_only(served: Served) -> None:
    call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "stuck", "arguments": {"text": "x"}}}
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
    waiting = asyncio.ensure_future(served.http.post("/mcp", json=call, headers={"mcp-session-id": "one"}))
    while not (runs := served.runtime.runs()):
        await asyncio.sleep(0)
    assert (await served.http.post("/mcp", json=cancel, headers={"mcp-session-id": "two"})).status_code == 202
    assert not runs[0].done
    assert (await served.http.post("/mcp", json=cancel)).status_code == 202
    assert not runs[0].done
    assert (await served.http.post("/mcp", json=cancel, headers={"mcp-session-id": "one"})).status_code == 202
    told = (await waiting).json()["result"]
    assert told["isError"] and told["_meta"]["flowserve/error"]["code"] == "run_cancelled"


async def test_inputs_that_do_not_fit_and_runs_that_fail_are_errors_that_a_model_can_read(served: Served) -> None:
    async with mcp.Client(f"{served.url}/mcp") as client:
        wrong = await client.call_tool("echo", {"text": 3})
        failed = await client.call_tool("refusing", {"text": "x"})
    assert wrong.is_error and wrong.content[0].text.startswith("input_invalid") and "/text" in wrong.content[0].text
    assert failed.is_error and failed.content[0].text.startswith("tool_failed")


async def test_a_tool_that_is_not_there_and_a_method_that_is_not_are_protocol_errors(served: Served) -> None:
    for method, params, code in (
        ("tools/call", {"name": "nothing"}, -32602),
        ("tools/call", {"name": 3}, -32602),
        ("resources/read", {}, -32601),
    ):
        answer = await served.http.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        assert answer.json()["error"]["code"] == code


async def test_hostile_messages_end_at_the_door(served: Served) -> None:
    deep: object = 1
    for _ in range(100):
        deep = [deep]
    assert (await served.http.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "params": {"x": deep}})).status_code == 422
    assert (await served.http.post("/mcp", json={"jsonrpc": "2.0", "id": {}, "method": "ping"})).status_code == 400
    assert (await served.http.get("/mcp")).status_code == 405
    assert not served.runtime.runs()


@pytest.mark.parametrize("row", [row for _, row in TABLE], ids=lambda row: f"{row.status}-{row.code}")
def test_every_row_of_the_table_of_errors_is_told_with_the_code_and_status_of_the_native_door(row: Row) -> None:
    fault = Fault(row.status, row.code, row.title, row.title, run="run_1", problems=(("/text", "is required"),))
    native, told = problem_body(fault, "req_1"), failed_of(fault)
    assert told["_meta"]["flowserve/error"] == {"code": native["code"], "status": native["status"], "run": "run_1"}
    assert told["isError"] and "structuredContent" not in told
    assert native["detail"] in told["content"][0]["text"] and "/text: is required" in told["content"][0]["text"]


async def test_a_call_without_a_session_is_ended_by_nobody_else(served: Served) -> None:
    call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "stuck", "arguments": {"text": "x"}}}
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
    waiting = asyncio.ensure_future(served.http.post("/mcp", json=call))
    while not (runs := served.runtime.runs()):
        await asyncio.sleep(0)
    assert (await served.http.post("/mcp", json=cancel)).status_code == 202
    assert not runs[0].done
    runs[0].cancel()
    assert (await waiting).json()["result"]["isError"]
