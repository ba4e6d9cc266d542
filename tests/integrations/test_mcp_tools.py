"""Tools of MCP servers as nodes: of the mcp package's own server, and of FlowServe's door."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import flowserve as fs
from flowserve.engines.fake import FakeEngine
from flowserve.errors import ConfigError, GraphError, RunFailed
from flowserve.runtime.runner import Runtime

pytest.importorskip("mcp", reason="the extra 'mcp' is not installed")

from mcp.server import MCPServer
from mcp.types import ToolAnnotations

from flowserve.mcp import tools
from tests.server.conftest import serving

server = MCPServer("shop")
sold: list[tuple[str, int]] = []


class Price(BaseModel):
    item: str
    cents: int


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def price(item: str, currency: str = "EUR") -> Price:
    """What an item costs."""
    return Price(item=f"{item} in {currency}", cents=3 * len(item))


@server.tool(structured_output=False)
def sell(item: str, amount: int) -> str:
    """Sell some."""
    if amount > 9:
        raise ValueError("that many are not in store")
    sold.append((item, amount))
    return f"sold {amount} of {item}"


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    ready = Runtime([FakeEngine()])
    await ready.start()
    yield ready
    await ready.aclose()


def declared() -> tuple[Any, Any]:
    first, second = tools(server)
    return first, second


async def test_nodes_have_the_servers_names_descriptions_and_schemas() -> None:
    asked, told = declared()
    assert [node.spec.name for node in (asked, told)] == ["price", "sell"]
    assert asked.spec.description == "What an item costs."
    assert asked.spec.params["required"] == ["item"]
    assert asked.spec.params["properties"]["currency"]["default"] == "EUR"
    assert asked.spec.returns["properties"]["cents"]["type"] == "integer"
    assert (asked.effects, told.effects) == (False, True), "read-only is without effects"


async def test_a_workflow_calls_them_and_reads_their_results(runtime: Runtime) -> None:
    asked, told = declared()

    @fs.workflow()
    def shopping(item: str) -> tuple[dict[str, Any], str]:
        return asked(item=item), told(item=item, amount=2)

    found, said = await (await runtime.submit(shopping.program, {"item": "bread"})).result()
    assert found == {"item": "bread in EUR", "cents": 15}
    assert said == "sold 2 of bread"
    assert sold[-1] == ("bread", 2)


async def test_an_error_of_the_server_fails_the_node_in_its_words(runtime: Runtime) -> None:
    _, told = declared()

    @fs.workflow()
    def greedy(item: str) -> str:
        return told(item=item, amount=99)

    with pytest.raises(RunFailed, match="node sell failed: MCP tool 'sell': Error executing tool sell"):
        await (await runtime.submit(greedy.program, {"item": "bread"})).result()


async def test_a_call_that_does_not_fit_is_found_when_it_is_declared() -> None:
    _, told = declared()

    @fs.workflow()
    def wrong(item: str) -> str:
        return told(item=item)

    with pytest.raises(GraphError, match="amount"):
        _ = wrong.program

    @fs.workflow()
    def wrongly_typed(item: str) -> str:
        return told(item=item, amount=item)

    with pytest.raises(GraphError, match="int"):
        _ = wrongly_typed.program


async def test_an_agent_is_shown_them_as_the_server_tells_them() -> None:
    asked, told = declared()
    agent = fs.agent(tools=[asked, told], instructions="Sell bread.")

    @fs.workflow()
    def shop(wish: str) -> str:
        return agent(wish)

    plan = shop.program.plan
    shown = {plan.tools[i].name: plan.tools[i] for i in plan.agents[0].tools}
    assert shown["sell"].params["required"] == ["item", "amount"]


def test_an_agent_calls_them_and_reads_what_they_answer() -> None:
    agent = fs.agent(tools=list(declared()), instructions="Sell bread.", output=str, name="seller")

    @fs.workflow()
    def shop(wish: str) -> str:
        return agent(wish)

    steps = [
        [{"tool": "price", "arguments": {"item": "rye"}}, {"tool": "sell", "arguments": {"item": "rye", "amount": 3}}],
        {"answer": "done"},
    ]
    with fs.testing.engine(replies={"seller": steps}) as session:
        assert shop.run("three rye") == "done"
    assert sold[-1] == ("rye", 3)
    assert '"cents": 9' in session.calls[1].prompt_text and "sold 3 of rye" in session.calls[1].prompt_text


async def test_some_are_chosen_by_name_and_unknown_ones_named() -> None:
    assert [node.spec.name for node in tools(server, only=["sell"])] == ["sell"]
    with pytest.raises(ConfigError, match="no tool 'steal'; it has: price, sell"):
        tools(server, only=["steal"])


async def test_a_server_that_is_not_there_is_told_when_the_workflow_is_declared() -> None:
    with pytest.raises(ConfigError, match="http://127.0.0.1:9/mcp"):
        tools("http://127.0.0.1:9/mcp", timeout_s=2)


async def test_workflows_of_another_flowserve_are_tools_here(tmp_path: Path, runtime: Runtime) -> None:
    async with serving(tmp_path) as other:
        [verdict] = await asyncio.to_thread(tools, f"{other.url}/mcp", only=["verdict"])

        @fs.workflow()
        def second_opinion(text: str) -> dict[str, Any]:
            return verdict(text=text)

        result = await (await runtime.submit(second_opinion.program, {"text": "x"})).result()
        assert result == {"text": "good", "score": 3}
