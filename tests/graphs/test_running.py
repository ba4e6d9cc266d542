"""The seam to whatever runs workflows: runners, callers of dynamics, progress."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

import flowserve.graphs as fs
from flowserve.errors import ConfigError, GraphError
from flowserve.graphs import context, runner
from flowserve.graphs.program import Program


class Echo:
    """A runner that answers with what it was asked."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def run(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> Any:
        return (self.mark, program.name, dict(inputs), options)

    async def arun(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> Any:
        return self.run(program, inputs, **options)

    def stream(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> Iterator[Any]:
        yield self.run(program, inputs, **options)

    async def astream(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> AsyncIterator[Any]:
        yield self.run(program, inputs, **options)

    def submit(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> Any:
        return self.run(program, inputs, **options)


@contextmanager
def nothing_installed() -> Iterator[None]:
    before = runner._factory
    runner.set_runner(None)
    try:
        yield
    finally:
        runner.set_runner(before)


def test_without_a_runner_the_error_says_what_to_do(snippets: ModuleType) -> None:
    with nothing_installed(), pytest.raises(ConfigError, match="`import flowserve` installs one"):
        snippets.rag.run("q")


def test_the_innermost_override_runs_workflows_in_every_way(snippets: ModuleType) -> None:
    rag = snippets.rag
    with fs.override_runner(Echo("outer")), fs.override_runner(Echo("inner")):
        want = ("inner", "rag", {"question": "q"}, {})
        assert rag.run("q") == want
        assert asyncio.run(rag.arun(question="q")) == want
        assert list(rag.stream("q")) == [want]
        assert rag.submit("q") == want

        async def events() -> list[Any]:
            return [e async for e in rag.astream("q")]

        assert asyncio.run(events()) == [want]
    with nothing_installed():
        fs.set_runner(lambda: Echo("installed"))
        assert rag.run("q")[0] == "installed"


def test_options_of_runs_travel_with_a_copy_of_the_workflow(snippets: ModuleType) -> None:
    with fs.override_runner(Echo("x")):
        assert snippets.rag.options(timeout_s=5, seed=1).run("q")[3] == {"timeout_s": 5, "seed": 1}
        assert snippets.rag.run("q")[3] == {}
    assert snippets.rag.options(seed=1).program is snippets.rag.program


def test_wrong_arguments_are_told_before_anything_runs(snippets: ModuleType) -> None:
    with pytest.raises(TypeError, match=r"rag\(question: str\) -> Answer: got an unknown argument 'q'"):
        snippets.rag.run(q="x")


def test_a_single_node_runs_as_a_workflow_of_one_node(snippets: ModuleType) -> None:
    with fs.override_runner(Echo("x")):
        assert snippets.summarise.run("text") == ("x", "summarise", {"chunk": "text"}, {})
        assert snippets.researcher.run("task")[1] == "agent"
        assert snippets.split.run("a b")[2] == {"text": "a b", "words": 800}
        assert snippets.summarise.alone.options(seed=1).run("text")[3] == {"seed": 1}
        assert snippets.summarise.alone.options(name="other").run("text")[1] == "other"
    assert [n.name for n in snippets.solve.sample(3, vote="final").alone.program.plan.nodes] == [
        "solve.sample",
        "solve",
    ]


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    async def call(self, callee_name: str, kwargs: Mapping[str, Any]) -> Any:
        self.calls.append((callee_name, dict(kwargs)))
        return f"{callee_name}!"

    async def ask(self, callee_name: str, kwargs: Mapping[str, Any]) -> context.Answer[Any]:
        return context.Answer(await self.call(callee_name, kwargs), None, 0)


async def test_calls_of_a_dynamic_go_to_its_caller(snippets: ModuleType) -> None:
    recorder = Recorder()
    with context.calling(recorder):
        assert await snippets.summary.acall("t") == "summary!"
        assert await snippets.answer.acall("q", passages=[]) == "answer!"
        assert await asyncio.create_task(snippets.split.acall("t")) == "split!"
    assert recorder.calls == [
        ("summary", {"text": "t"}),
        ("answer", {"question": "q", "passages": []}),
        ("split", {"text": "t", "words": 800}),
    ]


async def test_a_call_from_elsewhere_or_with_wrong_arguments_is_refused(snippets: ModuleType) -> None:
    with pytest.raises(GraphError, match="a call from a running @fs.dynamic function"):
        await snippets.summary.acall("t")
    with context.calling(Recorder()), pytest.raises(TypeError, match="no argument 'text'"):
        await snippets.summary.acall()


def test_progress_goes_to_the_listener_and_nowhere_without_one() -> None:
    heard: list[Any] = []
    fs.emit("nobody hears")
    with context.listening(heard.append):
        fs.emit({"done": 1})
    fs.emit("nobody hears")
    assert heard == [{"done": 1}]


def test_a_bare_import_is_refused() -> None:
    import subprocess
    import sys
    from pathlib import Path

    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", "import graphs"], cwd=root, capture_output=True, text=True, check=False
    )
    assert "import flowserve.graphs, not graphs" in done.stderr


def test_importing_the_language_stays_light() -> None:
    import subprocess
    import sys

    code = "import sys, flowserve.graphs; print([m for m in ('torch', 'networkx', 'jinja2', 'jsonschema', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
