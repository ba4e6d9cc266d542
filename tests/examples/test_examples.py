"""Every example runs on the scripted engine; what each shows is asserted."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import flowserve as fs
from flowserve.assemble import load_workflows
from flowserve.cachestore.segments import Provenance, Quality
from flowserve.clock import ManualClock
from flowserve.engines.base import Call, Origin

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples"
DEMO = ROOT / "flowserve" / "demo" / "workflow.py"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_compiles_and_says_what_it_shows(file: Path) -> None:
    (workflow,) = load_workflows(file)
    assert workflow.program.plan.nodes
    assert (load(file.stem).__doc__ or "").strip()


@pytest.mark.parametrize("file", [*sorted(FOLDER.glob("*.py")), DEMO], ids=lambda path: path.stem)
def test_no_example_gets_other_advice_than_the_estimate_of_its_length(file: Path) -> None:
    (workflow,) = load_workflows(file)
    assert {problem.expected for problem in workflow.check()} <= {"few model calls on the critical path"}
    assert workflow.program.rewriting.changes == (), "nothing to repair either"


def test_rag_answers_from_the_passages_it_found() -> None:
    example = load("rag")
    texts = ["Krekol is led by Mudi.", "Bread needs yeast."]
    with fs.testing.engine(replies={"answer": "Krekol is led by Mudi."}, indexes={"handbook": texts}) as session:
        assert example.rag.run("Who leads Krekol?") == "Krekol is led by Mudi."
    assert "Krekol is led by Mudi.\n" in [segment.text for segment in session.calls[0].segments]


def test_map_reduce_summarises_each_part_and_merges_in_order() -> None:
    example = load("map_reduce")
    text = " ".join(f"word{i}" for i in range(2000))
    summaries = ["first", "second", "third"]
    with fs.testing.engine(replies={"summarise": summaries, "combine": lambda call: call.prompt_text}) as session:
        result = example.summary.run(text)
    assert sorted(call.meta["node"] for call in session.calls) == ["combine", *["summarise"] * 3]
    assert "- first\n- second\n- third" in result


def test_rag_with_reuse_sends_the_prompt_of_rag_and_allows_its_passages_to_be_pasted() -> None:
    sent = []
    told = Provenance(exact=3, pasted=4, recomputed=20, policy="first_k")
    for name, workflow in (("rag", "rag"), ("rag_reuse", "rag_reuse")):
        with fs.testing.engine("ok", indexes={"handbook": ["Krekol is led by Mudi."]}, provenance=told) as session:
            run = getattr(load(name), workflow).submit("Who leads Krekol?")
            assert run.result() == "ok" and run.snapshot().provenance == told
            sent += session.calls
    exact, balanced = sent
    assert (exact.reuse, balanced.reuse) == (Quality.EXACT, Quality.BALANCED)
    assert exact.segments == balanced.segments
    assert [s.document for s in balanced.segments if s.origin is Origin.CHUNK] == ["doc0"]


def test_less_is_done_rather_than_late_and_what_harms_least_goes_first() -> None:
    """Every call takes a second, one at a time: nine of them in a whole run."""
    example = load("less_rather_than_late")
    clock = ManualClock()

    def reply(call: Call) -> str:
        clock.advance(1.0)
        return str(call.meta["node"])

    with fs.testing.engine(reply, indexes={"handbook": ["Krekol is led by Mudi."]}, clock=clock, window=1) as session:
        for _ in range(8):
            example.careful.run("Who leads Krekol?")
        before = len(session.calls)
        run = example.careful.options(timeout_s=8).submit("Who leads Krekol?")
        assert run.result() == "improve" and len(session.calls) - before == 4
        assert [taken["node"] for taken in run.snapshot().degraded] == ["answer.sample"]
        run = example.careful.options(timeout_s=3.5).submit("Who leads Krekol?")
        assert run.result() == "answer"
        assert [taken["node"] for taken in run.snapshot().degraded] == ["answer.sample", "improve.optional"]


def test_the_agent_searches_calculates_and_answers() -> None:
    example = load("agent")
    steps: list[Any] = [
        [
            {"tool": "search", "arguments": {"query": "what is FlowServe"}},
            {"tool": "calculate", "arguments": {"expression": "6 * 7"}},
        ],
        {"answer": {"text": "It schedules workflows; 42.", "sources": ["flowserve"]}},
    ]
    with fs.testing.engine(replies={"researcher": steps}) as session:
        finding = example.research.run("explain and compute")
    assert finding == example.Finding(text="It schedules workflows; 42.", sources=["flowserve"])
    assert "schedules whole workflows" in session.calls[1].prompt_text
    assert "42.0" in session.calls[1].prompt_text


def test_self_consistency_takes_the_majority_and_stops_early() -> None:
    example = load("self_consistency")

    def sample(call: Any) -> dict[str, str]:
        return {"reasoning": "17 + 25 = 42; 42 - 8 = 34", "final": "34"}

    with fs.testing.engine(replies={"solve": sample}, window=2) as session:
        run = example.reason.submit("Compute 17 + 25 - 8.")
        assert run.result() == "34"
        [votes] = [node.votes for node in run.snapshot().nodes if node.votes is not None]
    assert (votes.asked, votes.drawn, votes.certainty, votes.stopped_by) == (16, 4, 1.0, "adaptive_consistency")
    assert 4 <= len(session.calls) < 7


def test_reasoning_grows_lines_where_rewards_are_and_stops_when_answers_agree() -> None:
    """Four lines: one first step of four is promising and all go on from there; the four second steps answer alike."""
    example = load("reasoning_programs")
    first = [example.Step(text=f"step {i}") for i in range(4)]
    second = [example.Step(text="so", final="34") for _ in range(4)]

    def reward(call: Call) -> float:
        return 0.9 if "step 2" in call.prompt_text else 0.0

    with fs.testing.engine({"think": [*first, *second], "reward": reward}) as session:
        result = example.prove.run("Compute 17 + 25 - 8.")
    assert (result.answer.final, result.path[0], result.votes) == ("34", first[2], {"34": 4})
    assert (result.why, len(session.calls)) == ("certainty 1 >= 0.75 at 4", 16)


@pytest.mark.parametrize(("strict", "calls"), [(False, 1), (True, 3)])
def test_the_essay_is_improved_only_when_asked_to_be_strict(strict: bool, calls: int) -> None:
    example = load("branch_and_loop")
    drafts = [example.Draft(text=f"draft {i}", score=score) for i, score in enumerate((4, 6, 8))]
    with fs.testing.engine(replies={"write": drafts[0], "improve": drafts[1:]}) as session:
        result = example.essay.run("tides", strict)
    assert len(session.calls) == calls
    assert result == drafts[calls - 1]
