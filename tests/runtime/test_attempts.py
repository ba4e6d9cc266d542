"""A second attempt begins with nothing that the first has left, whatever the kind of the node."""

import asyncio

import pytest

import flowserve as fs
from flowserve import errors

TWICE = fs.Retry(attempts=2, backoff_s=0.0)


@fs.tool
async def length(text: str) -> int:
    """Number of characters."""
    return len(text)


def test_an_agent_that_timed_out_does_not_remember_the_conversation_of_its_first_attempt() -> None:
    calls: list[str] = []

    @fs.tool
    async def hangs_once(text: str) -> int:
        """Waits for ever, the first time."""
        calls.append(text)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return len(text)

    worker = fs.agent(tools=[length, hangs_once], max_steps=3, name="worker", timeout=0.2, retry=TWICE)

    @fs.workflow()
    def work(task: str) -> str:
        return worker(task)

    def ask(tool: str, text: str) -> list[dict[str, object]]:
        return [{"tool": tool, "arguments": {"text": text}}]

    steps = [ask("length", "first"), ask("hangs_once", "second"), ask("length", "third"), "done"]
    with fs.testing.engine(replies={"worker": steps}) as session:
        assert work.run("go") == "done"
    prompts = [call.prompt_text for call in session.calls]
    assert '"first"' in prompts[1]
    assert prompts[2] == prompts[0]
    assert "third" in prompts[3]
    assert '"first"' not in prompts[3]


def test_a_dynamic_counts_its_calls_anew_in_each_attempt() -> None:
    seen: list[int] = []

    @fs.dynamic(calls=[length], max_calls=2, retry=TWICE)
    async def count(text: str) -> int:
        seen.append(await length.acall(text))
        seen.append(await length.acall(text + "!"))
        if len(seen) == 2:
            raise ValueError("once")
        return sum(seen)

    @fs.workflow()
    def flow(text: str) -> int:
        return count(text)

    with fs.testing.engine():
        assert flow.run("ab") == 2 + 3 + 2 + 3


@pytest.mark.parametrize("failures", [1, 2])
def test_a_dynamic_is_told_why_its_own_call_failed_and_not_an_earlier_one(failures: int) -> None:
    @fs.tool
    async def refuse(text: str) -> int:
        """Fails with what it got."""
        raise ValueError(f"refused {text}")

    @fs.dynamic(calls=[refuse], max_calls=failures)
    async def stubborn(text: str) -> list[str]:
        told = []
        for number in range(failures + 1):
            try:
                await refuse.acall(f"{text}{number}")
            except errors.FlowServeError as error:
                told.append(str(error))
        return told

    @fs.workflow()
    def flow(text: str) -> list[str]:
        return stubborn(text)

    with fs.testing.engine():
        *before, last = flow.run("x")
    assert [text.endswith(f"refused x{number}") for number, text in enumerate(before)] == [True] * failures
    assert last == f"it made more than {failures} calls; raise max_calls="


def test_a_node_that_fails_because_of_its_parts_says_which_failure_it_was() -> None:
    @fs.tool
    async def refuse(text: str) -> str:
        """Always fails."""
        raise ValueError("no luck")

    @fs.workflow()
    def flow(texts: list[str]) -> list[str]:
        return refuse.map(texts)

    with fs.testing.engine():
        handle = flow.submit(["a"])
        with pytest.raises(errors.RunFailed, match="no luck"):
            handle.result()
    (row,) = [node for node in handle.snapshot().nodes if node.kind == "map"]
    assert row.error is not None
    assert "no luck" in row.error


def test_the_bound_that_was_passed_is_named() -> None:
    @fs.workflow()
    def wide(texts: list[str]) -> list[int]:
        return length.map(texts, max_width=2)

    with fs.testing.engine(), pytest.raises(errors.RunFailed, match="more than 2 items; raise max_width="):
        wide.run(["a", "b", "c"])


def test_time_to_first_token_is_that_of_the_attempt_that_answered() -> None:
    @fs.llm(retry=TWICE)
    def number(text: str) -> int:
        fs.prompt("{{ text }}")

    @fs.workflow()
    def flow(text: str) -> int:
        return number(text)

    with fs.testing.engine(replies={"number": ["not a number", "7"]}):
        handle = flow.submit("x")
        assert handle.result() == 7
    (row,) = handle.snapshot().nodes
    assert row.attempt == 2
    assert row.first_token_s is not None and row.started_s is not None
    assert row.first_token_s >= row.started_s
