"""Every form of the language, run on the scripted engine."""

import asyncio
import threading
from typing import Any

import pytest
from pydantic import BaseModel

import flowserve as fs
from flowserve import errors
from flowserve.engines.base import Call, Origin


class Answer(BaseModel):
    text: str
    citations: list[int]


class Draft(BaseModel):
    text: str
    score: int


@fs.llm(max_tokens=64)
def answer(question: str, passages: list[fs.Doc]) -> Answer:
    fs.prompt("{% for p in passages %}{{ p.text }}\n{% endfor %}Question: {{ question }}", system="Be brief.")


@fs.llm()
def say(text: str) -> str:
    fs.prompt("Say: {{ text }}")


@fs.tool
def words(text: str) -> list[str]:
    """Split a text."""
    return text.split()


@fs.tool
async def double(number: int) -> int:
    """Twice the number."""
    return 2 * number


@fs.tool
def broken(text: str) -> str:
    """Never works."""
    raise ValueError(f"no {text}")


def values(call: Call) -> list[str]:
    """The texts of a call that were known only at run time."""
    return [segment.text for segment in call.segments if segment.origin is Origin.VALUE]


def test_a_filter_reaches_the_search() -> None:
    @fs.workflow()
    def both(question: str) -> list[list[fs.Doc]]:
        return [fs.Index("notes").search(question), fs.Index("notes", where={"lang": "en"}).search(question)]

    with fs.testing.engine(indexes={"notes": ["the tide follows the moon"]}):
        found, filtered = both.run("moon")
    assert (len(found), filtered) == (1, [])


def test_a_retrieval_workflow_puts_each_passage_into_a_segment_of_its_own() -> None:
    index = fs.Index("notes")

    @fs.workflow()
    def rag(question: str) -> Answer:
        return answer(question, index.search(question, k=2))

    notes = ["the tide follows the moon", "bread needs yeast", "the moon is far"]
    with fs.testing.engine(
        replies={"answer": Answer(text="it does", citations=[0])}, indexes={"notes": notes}
    ) as session:
        result = rag.run("what follows the moon?")
    assert result == Answer(text="it does", citations=[0])
    chunks = [s.text for s in session.calls[0].segments if s.origin == "chunk"]
    assert len(chunks) == 2
    assert "the tide follows the moon\n" in chunks
    assert session.calls[0].schema is not None


def test_map_keeps_the_order_of_items_and_joins() -> None:
    @fs.llm()
    def join(parts: list[str]) -> str:
        fs.prompt("{% for p in parts %}{{ p }};{% endfor %}")

    @fs.workflow()
    def shout(text: str) -> str:
        return join(say.map(words(text)))

    with fs.testing.engine(
        replies={"say": lambda call: values(call)[0].upper(), "join": lambda call: call.prompt_text}
    ):
        assert "A;B;C;" in shout.run("a b c")


def test_a_map_over_nothing_is_an_empty_list() -> None:
    @fs.workflow()
    def nothing(text: str) -> list[str]:
        return say.map(words(text))

    with fs.testing.engine():
        assert nothing.run("") == []


def test_a_sample_is_decided_by_its_largest_class() -> None:
    @fs.workflow()
    def vote(text: str) -> str:
        return say.sample(5, vote="")(text)

    with fs.testing.engine(replies={"say": ["b", "a", "A ", "c", " a"]}):
        assert vote.run("x").strip().lower() == "a"


def test_sampling_stops_when_the_samples_agree_and_aborts_the_rest() -> None:
    @fs.workflow()
    def vote(text: str) -> str:
        return say.sample(12, vote="", stop=fs.certaindex(threshold=0.9, min_samples=3), concurrency=1)(text)

    with fs.testing.engine(replies={"say": lambda call: "same"}) as session:
        assert vote.run("x") == "same"
    assert 3 <= len(session.calls) < 12


@pytest.mark.parametrize(("strict", "expected"), [(True, "strictly"), (False, "loosely")])
def test_only_the_chosen_arm_runs(strict: bool, expected: str) -> None:
    @fs.llm(name="strictly")
    def first(text: str) -> str:
        fs.prompt("{{ text }}")

    @fs.llm(name="loosely")
    def second(text: str) -> str:
        fs.prompt("{{ text }}")

    @fs.workflow()
    def branch(text: str, strict: bool) -> str:
        return fs.when(strict, then=lambda: first(text), otherwise=lambda: second(text))

    with fs.testing.engine(replies={"strictly": "strictly", "loosely": "loosely"}) as session:
        assert branch.run("x", strict) == expected
    assert [call.meta["node"] for call in session.calls] == [expected]


def test_match_takes_the_equal_case_or_the_last_resort() -> None:
    @fs.workflow()
    def route(kind: str, text: str) -> str:
        return fs.match(
            kind,
            {
                "a": lambda: say(
                    text,
                ),
                "b": lambda: text,
            },
            otherwise=lambda: kind,
        )

    with fs.testing.engine(replies={"say": "said"}):
        assert route.run("a", "t") == "said"
        assert route.run("b", "t") == "t"
        assert route.run("zzz", "t") == "zzz"


@pytest.mark.parametrize(("scores", "calls"), [([9], 1), ([3, 5, 8, 9], 3), ([1, 1, 1, 1, 1, 1], 4)])
def test_a_loop_ends_when_content_or_at_its_bound(scores: list[int], calls: int) -> None:
    @fs.llm()
    def start(topic: str) -> Draft:
        fs.prompt("{{ topic }}")

    @fs.llm()
    def better(draft: Draft) -> Draft:
        fs.prompt("{{ draft.text }}")

    @fs.workflow()
    def essay(topic: str) -> Draft:
        return fs.loop(better, start(topic), until=lambda d: d.score >= 8, max_iters=3)

    drafts = [Draft(text=f"v{i}", score=score) for i, score in enumerate(scores)]
    with fs.testing.engine(replies={"start": drafts[0], "better": drafts[1:]}) as session:
        result = essay.run("tides")
    assert len(session.calls) == calls
    assert result == drafts[calls - 1]


def test_an_agent_calls_tools_and_reads_what_they_answer() -> None:
    agent = fs.agent(tools=[double], instructions="Think.", output=Draft, max_steps=4, name="worker")

    @fs.workflow()
    def work(task: str) -> Draft:
        return agent(task)

    steps = [[{"tool": "double", "arguments": {"number": 21}}], {"answer": {"text": "42", "score": 1}}]
    with fs.testing.engine(replies={"worker": steps}) as session:
        assert work.run("twice 21") == Draft(text="42", score=1)
    assert len(session.calls) == 2
    assert "42" in session.calls[1].prompt_text


def test_a_failing_tool_is_told_to_the_agent_and_does_not_end_the_run() -> None:
    agent = fs.agent(tools=[broken], instructions="Think.", output=Draft, max_steps=3, name="worker")

    @fs.workflow()
    def work(task: str) -> Draft:
        return agent(task)

    steps = [[{"tool": "broken", "arguments": {"text": "luck"}}], {"answer": {"text": "gave up", "score": 0}}]
    with fs.testing.engine(replies={"worker": steps}) as session:
        assert work.run("try").text == "gave up"
    assert "no luck" in session.calls[1].prompt_text


def test_the_last_step_of_an_agent_must_answer() -> None:
    agent = fs.agent(tools=[double], instructions="Think.", output=Draft, max_steps=2, name="worker")

    @fs.workflow()
    def work(task: str) -> Draft:
        return agent(task)

    call = [{"tool": "double", "arguments": {"number": 1}}]
    with fs.testing.engine(replies={"worker": [call, Draft(text="done", score=2)]}) as session:
        assert work.run("go") == Draft(text="done", score=2)
    schema = session.calls[-1].schema
    assert "tool" not in str(schema)


def test_a_dynamic_node_calls_declared_nodes_and_catches_their_failures() -> None:
    @fs.dynamic(calls=[say, broken], max_calls=5)
    async def plan(texts: list[str]) -> list[str]:
        first = await asyncio.gather(*(say.acall(text) for text in texts))
        try:
            await broken.acall("luck")
        except errors.ToolError as error:
            return [*first, "caught: " + str(error)]
        return list(first)

    @fs.workflow()
    def flow(texts: list[str]) -> list[str]:
        return plan(texts)

    with fs.testing.engine(replies={"say": ["one", "two"]}):
        result = flow.run(["a", "b"])
    assert sorted(result[:2]) == ["one", "two"]
    assert "no luck" in result[2]


def test_what_is_asked_tells_its_failure_and_its_tokens() -> None:
    """All prompts of `say` are equally long and its answers have three tokens; a refused answer counts, and so do calls below."""

    @fs.llm(retry=fs.Retry(attempts=2, backoff_s=0.001))
    def grade(text: str) -> Draft:
        fs.prompt("{{ text }}")

    @fs.workflow()
    def both(text: str) -> list[str]:
        return [say(text), say("z")]

    @fs.dynamic(calls=[say, grade, both], max_calls=4)
    async def plan(text: str) -> list[int]:
        one, gone, twice, two = [await node.ask(text) for node in (say, say, grade, both)]
        assert (one.value, one.error, gone.value, gone.tokens) == ("a b c", None, None, 0)
        assert isinstance(gone.error, errors.EngineError) and str(gone.error) == "gone"
        assert isinstance(twice.value, Draft) and two.value == ["a b c", "a b c"]
        return [one.tokens, twice.tokens, two.tokens]

    replies = {
        "say": ["a b c", errors.EngineError("gone"), "a b c", "a b c"],
        "grade": ["bad", Draft(text="x", score=1)],
    }
    with fs.testing.engine(replies) as session:
        one, twice, two = plan.run("q")
    taken = [sum(len(segment.ids) for segment in call.segments) for call in session.calls]
    assert one == taken[0] + 3 and two == 2 * one
    assert twice > taken[2] + taken[3], "both answers of grade"


def test_a_node_is_asked_only_from_a_running_function() -> None:
    with pytest.raises(errors.GraphError, match="a call from a running @fs.dynamic function"):
        say.ask("x")


def test_a_dynamic_node_is_held_to_its_number_of_calls() -> None:
    @fs.dynamic(calls=[say], max_calls=2)
    async def greedy(text: str) -> str:
        for _ in range(3):
            await say.acall(text)
        return text

    @fs.workflow()
    def flow(text: str) -> str:
        return greedy(text)

    with fs.testing.engine(replies={"say": "x"}), pytest.raises(errors.RunFailed, match="greedy"):
        flow.run("a")


def test_a_failed_node_is_named_with_its_cause() -> None:
    @fs.workflow()
    def flow(text: str) -> str:
        return broken(text)

    with (
        fs.testing.engine(),
        pytest.raises(errors.RunFailed, match="node broken failed: tool broken raised ValueError: no x"),
    ):
        flow.run("x")


def test_a_failed_call_is_tried_again_as_declared() -> None:
    @fs.llm(retry=fs.Retry(attempts=3, backoff_s=0.001))
    def flaky(text: str) -> Draft:
        fs.prompt("{{ text }}")

    @fs.workflow()
    def flow(text: str) -> Draft:
        return flaky(text)

    with fs.testing.engine(
        replies={"flaky": ["not json", errors.EngineError("hiccup"), Draft(text="ok", score=1)]}
    ) as session:
        assert flow.run("x") == Draft(text="ok", score=1)
        assert len(session.calls) == 3


def test_a_node_with_cache_is_computed_once_for_equal_arguments() -> None:
    counted: list[int] = []

    @fs.tool(cache=True)
    def slow(number: int) -> int:
        """Count the calls."""
        counted.append(number)
        return number + 1

    @fs.workflow()
    def flow(number: int) -> int:
        return slow(number)

    with fs.testing.engine():
        assert [flow.run(1), flow.run(1), flow.run(2)] == [2, 2, 3]
    assert counted == [1, 2]


def test_sync_tools_run_side_by_side_in_threads() -> None:
    barrier = threading.Barrier(3, timeout=10)

    @fs.tool
    def meet(number: int) -> int:
        """Waits until three are there."""
        barrier.wait()
        return number

    @fs.workflow()
    def flow(numbers: list[int]) -> list[int]:
        return meet.map(numbers)

    with fs.testing.engine():
        assert flow.run([1, 2, 3]) == [1, 2, 3]


def test_what_a_tool_emits_is_an_event_of_the_run() -> None:
    @fs.tool
    def chatty(text: str) -> str:
        """Tells what it does."""
        fs.emit({"at": 1})
        return text

    @fs.workflow()
    def flow(text: str) -> str:
        return chatty(text)

    with fs.testing.engine():
        events = list(flow.stream("x"))
    assert [e.data["value"] for e in events if e.type == "node.progress"] == [{"at": 1}]


def test_the_deltas_of_the_result_node_are_the_result() -> None:
    @fs.workflow()
    def flow(text: str) -> str:
        return say(say(text))

    with fs.testing.engine(
        replies={"say": ["first words", "and then the last words"], "say_2": "and then the last words"}
    ):
        events = list(flow.stream("x"))
    streamed = "".join(e.data["text"] for e in events if e.type == "node.delta" and e.data["result"])
    assert streamed == events[-1].data["result"] == "and then the last words"
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert [e.type for e in events if e.type.startswith("run.")] == ["run.created", "run.started", "run.completed"]


async def test_arun_works_inside_another_loop_and_cancelling_it_cancels_the_run() -> None:
    @fs.workflow()
    def flow(text: str) -> str:
        return say(text)

    with fs.testing.engine(replies={"say": "hello"}):
        assert await flow.arun("x") == "hello"

    started = threading.Event()

    @fs.tool
    async def forever(text: str) -> str:
        """Waits until it is cancelled."""
        started.set()
        await asyncio.Event().wait()
        return text

    @fs.workflow()
    def stuck(text: str) -> str:
        return forever(text)

    with fs.testing.engine() as session:
        task = asyncio.ensure_future(stuck.arun("x"))
        assert await asyncio.to_thread(started.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (run,) = session.runner.runtime.runs()
        await asyncio.wrap_future(session.runner.future(run.wait()))
        assert run.status == "cancelled"


def test_a_handle_tells_its_status_and_can_be_cancelled() -> None:
    @fs.tool
    async def forever(text: str) -> str:
        """Waits until it is cancelled."""
        await asyncio.Event().wait()
        return text

    @fs.workflow()
    def stuck(text: str) -> str:
        return forever(text)

    with fs.testing.engine():
        handle: Any = stuck.submit("x")
        assert handle.status in ("queued", "running")
        handle.cancel()
        with pytest.raises(errors.RunCancelled):
            handle.result(10)
        assert handle.status == "cancelled"


@pytest.mark.parametrize(
    ("texts", "shown"),
    [(["a" * 19_000], True), (["a" * 21_000], False), (["a"] * 4_000, True), (["a"] * 40_000, False)],
    ids=["a long text", "too long a text", "many texts", "too many texts"],
)
def test_an_output_is_shown_with_its_node_where_it_is_short(texts: list[str], shown: bool) -> None:
    @fs.tool
    async def same(texts: list[str]) -> list[str]:
        """Give back what came."""
        return texts

    @fs.workflow()
    def flow(texts: list[str]) -> list[str]:
        return same(texts)

    with fs.testing.engine():
        (event,) = [event for event in flow.stream(texts) if event.type == "node.completed"]
    assert ("output" in event.data) is shown
    assert ("output_omitted" in event.data) is not shown
