"""What each form of the language compiles to."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import flowserve.graphs as fs
from flowserve.core.stopping.samples import RULES, Votes
from flowserve.errors import GraphError
from flowserve.graphs.plan import Arg, Const, Get, Kind, Node, Op, Output, Param, Plan
from flowserve.graphs.stopping import NUMBERS
from flowserve.ids import BlockId, NodeId


def plan_of(workflow: Any) -> Plan:
    plan = workflow.program.plan
    assert isinstance(plan, Plan)
    return plan


def node(plan: Plan, name: str) -> Node:
    return next(n for n in plan.nodes if n.name == name)


@fs.llm
def ask(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.tool
def add(a: int, b: int = 2) -> int:
    return a + b


def test_rag_is_a_search_and_a_model_call(snippets: ModuleType) -> None:
    plan = plan_of(snippets.rag)
    search, answer = plan.nodes
    assert (search.kind, answer.kind) == (Kind.SEARCH, Kind.LLM)
    assert search.args == (Arg("k", Const(0)), Arg("query", Param(BlockId(0), 0)))
    assert answer.args == (Arg("passages", Output(NodeId(0))), Arg("question", Param(BlockId(0), 0)))
    assert answer.deps == (0,) and plan.consts == (5,) and plan.searches[0].index == "handbook"
    assert plan.blocks[0].result == Output(NodeId(1)) and plan.blocks[0].dependents == ((1,), ())
    assert answer.timeout_s == 20.0 and plan.slo == fs.SLO(ttft=0.5, e2e=5.0)
    assert plan.llms[0].output is not None and plan.llms[0].template.system_source == "Answer from the passages only."
    assert plan.input["required"] == ["question"] and plan.output["title"] == "Answer"


def test_a_map_has_one_body_with_a_parameter_per_zipped_list(snippets: ModuleType) -> None:
    plan = plan_of(snippets.many)
    search, answer = node(plan, "search.map"), node(plan, "answer.map")
    assert [a.name for a in search.args] == ["query"] and search.limit == 50
    assert [a.name for a in answer.args] == ["question", "passages"] and answer.concurrency == 8
    body = plan.blocks[answer.bodies[0]]
    assert body.params == ("question", "passages") and body.parent == answer.id
    assert plan.nodes[body.nodes[0]].args == (Arg("passages", Param(body.id, 1)), Arg("question", Param(body.id, 0)))


def test_fixed_arguments_of_a_map_are_captured_from_outside() -> None:
    @fs.workflow
    def sums(items: list[int]) -> list[int]:
        return add.map(items, b=add(1))

    plan = plan_of(sums)
    outer, mapped = node(plan, "add"), node(plan, "add.map")
    assert mapped.deps == (outer.id,)
    inner = plan.nodes[plan.blocks[mapped.bodies[0]].nodes[0]]
    assert inner.args == (Arg("a", Param(BlockId(1), 0)), Arg("b", Output(outer.id))) and inner.deps == ()


def test_a_sample_captures_its_inputs_and_votes(snippets: ModuleType) -> None:
    plan = plan_of(snippets.reason)
    sample, solve = plan.nodes
    assert (sample.kind, sample.limit, sample.args) == (Kind.SAMPLE, 16, ())
    spec = plan.samples[0]
    assert (spec.vote, spec.rule) == ("final", "certaindex")
    assert spec.rule_args == (("min_samples", 4.0), ("threshold", 0.9))
    assert solve.block == sample.bodies[0]
    assert plan.blocks[0].result == Get(Output(sample.id), "final")
    assert plan_of(snippets.votes).samples[0].vote is None


def test_when_has_two_arms_and_a_loop_its_condition(snippets: ModuleType) -> None:
    plan = plan_of(snippets.essay)
    switch, loop = node(plan, "when"), node(plan, "loop")
    write = node(plan, "write")
    assert switch.deps == (write.id,) and len(switch.bodies) == 2
    assert plan.blocks[switch.bodies[1]].result == Output(write.id)
    assert loop.args == (Arg("init", Output(write.id)),) and loop.limit == 3
    body = plan.blocks[loop.bodies[0]]
    assert body.params == ("state",)
    assert body.until == Op("ge", (Get(Param(body.id, 0), "score"), Const(0)))


def test_match_keeps_its_cases_as_a_constant(snippets: ModuleType) -> None:
    plan = plan_of(snippets.route)
    match = node(plan, "match")
    cases = next(a.source for a in match.args if a.name == "cases")
    assert isinstance(cases, Const) and plan.consts[cases.index] == ["easy", "hard"]
    assert len(match.bodies) == 2


def test_an_agent_knows_its_tools_and_bound(snippets: ModuleType) -> None:
    plan = plan_of(snippets.research)
    agent = plan.agents[0]
    assert plan.nodes[0].limit == 6 and [plan.tools[i].name for i in agent.tools] == ["search", "calculate"]
    assert plan.tools[0].description == "Search the web."
    assert agent.llm.template.source == "{{ task }}" and agent.llm.output is not None


def test_a_dynamic_has_a_body_per_callee(snippets: ModuleType) -> None:
    plan = plan_of(snippets.dyn)
    dynamic = plan.nodes[0]
    assert plan.dynamics[0].callees == ("answer", "summary") and dynamic.limit == 10
    assert [plan.blocks[b].params for b in dynamic.bodies] == [("question", "passages"), ("text",)]
    assert node(plan, "plan_it/answer").block == dynamic.bodies[0]
    assert node(plan, "plan_it/summary/split").block == dynamic.bodies[1]


def test_a_chat_prompt_is_only_its_history(snippets: ModuleType) -> None:
    template = plan_of(snippets.chat).llms[0].template
    assert template.history == "messages" and template.user == ()


def test_nested_workflows_are_inlined_under_their_name(snippets: ModuleType) -> None:
    @fs.workflow
    def outer(q: str) -> list[str]:
        return [snippets.summary(q), snippets.summary(ask(q))]

    names = [n.name for n in plan_of(outer).nodes]
    assert "summary/split" in names and "summary_2/combine" in names and "ask" in names


def test_names_are_stable_and_can_be_given() -> None:
    @fs.workflow
    def three(q: str) -> list[str]:
        return [ask(q), ask(q), ask.options(name="last")(q)]

    assert [n.name for n in plan_of(three).nodes] == ["ask", "ask_2", "last"]


def test_settings_reach_the_plan() -> None:
    careful = ask.options(retry=2, timeout=3, cache=True, max_tokens=7, seed=1, temperature=0.5, stop="x")

    @fs.workflow
    def run(q: str) -> str:
        return careful(q)

    plan = plan_of(run)
    only = plan.nodes[0]
    assert (only.retry.attempts, only.timeout_s, only.cache) == (3, 3.0, True)
    assert (plan.llms[0].max_tokens, plan.llms[0].seed, plan.llms[0].stop) == (7, 1, ("x",))


def test_literal_lists_dicts_and_tuples_collect_values() -> None:
    @fs.tool
    def take(data: dict[str, list[int]]) -> int:
        return 1

    @fs.workflow
    def collect(n: int) -> tuple[int, str]:
        return take({"a": [n, 1]}), "done"

    plan = plan_of(collect)
    assert plan.nodes[0].args[0].source == Op("dict", (Const(0), Op("list", (Param(BlockId(0), 0), Const(1)))))
    assert plan.blocks[0].result == Op("tuple", (Output(NodeId(0)), Const(2)))


def test_tuples_of_fixed_length_can_be_unpacked() -> None:
    @fs.tool
    def pair(n: int) -> tuple[int, str]:
        return n, "x"

    @fs.workflow
    def unpack(n: int) -> str:
        _, text = pair(n)
        return text

    assert plan_of(unpack).blocks[0].result == Get(Output(NodeId(0)), 1)


def test_conditions_combine() -> None:
    @fs.workflow
    def decide(a: int, b: str, items: list[str]) -> str:
        fine = fs.all_of(a > 1, fs.contains(items, b), fs.negate(b == "x")) | (fs.length(items) == 0)
        return fs.when(fine, then=lambda: ask(b), otherwise=lambda: b)

    value = node(plan_of(decide), "when").args[0].source
    assert isinstance(value, Op) and value.name == "or"
    assert isinstance(value.args[0], Op) and [a.name for a in value.args[0].args if isinstance(a, Op)] == [
        "gt",
        "in",
        "not",
    ]


def test_a_workflow_may_have_no_nodes() -> None:
    @fs.workflow
    def echo(text: str) -> str:
        return text

    plan = plan_of(echo)
    assert plan.nodes == () and plan.blocks[0].result == Param(BlockId(0), 0)


def test_tools_stay_plain_functions_and_combinators_plain_python() -> None:
    assert add(1) == 3
    assert fs.when(True, then=lambda: 1, otherwise=lambda: 2) == 1
    assert fs.match("b", {"a": lambda: 1}, otherwise=lambda: 2) == 2
    assert fs.loop(lambda x: x + 1, 0, until=lambda x: x >= 3, max_iters=10) == 3
    assert fs.loop(lambda x: x + 1, 5, until=lambda x: x >= 3, max_iters=10) == 5
    assert fs.length([1]) == 1 and fs.contains([1], 1) and fs.all_of(True) and fs.any_of(True) and not fs.negate(True)


def test_a_template_may_come_from_a_file(tmp_path: Any) -> None:
    (tmp_path / "ask.j2").write_text("From a file: {{ q }}", encoding="utf-8")
    code = f"""
import flowserve.graphs as fs

@fs.llm
def filed(q: str) -> str:
    fs.prompt.file({str(tmp_path / "ask.j2")!r})

@fs.llm
def lost(q: str) -> str:
    fs.prompt.file("nosuch.j2")
"""
    space: dict[str, Any] = {}
    exec(compile(code, str(tmp_path / "app.py"), "exec"), space)  # noqa: S102 (a file in another folder)
    assert space["filed"].spec.template.source == "From a file: {{ q }}"
    assert "a readable template file" in str(space["lost"].problems()[0])


def test_two_definitions_of_one_name_stay_apart() -> None:
    other = ask.options(max_tokens=5)

    @fs.workflow
    def both(q: str) -> list[str]:
        return [ask(q), other(q), ask(q)]

    plan = plan_of(both)
    assert [(s.name, s.max_tokens) for s in plan.llms] == [("ask", 256), ("ask_2", 5)]
    assert [n.target for n in plan.nodes] == [0, 1, 0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: fs.certaindex(threshold=0), "threshold: expected a number above 0, at most 1; got 0"),
        (lambda: fs.certaindex(threshold=2), "threshold: expected"),
        (lambda: fs.certaindex(threshold=math.nan), "threshold: expected"),
        (
            lambda: fs.certaindex(threshold=0.5, min_samples=0),
            "min_samples: expected a number from 1 to 1,000,000; got 0",
        ),
        (lambda: fs.adaptive_consistency(threshold=True), "threshold: expected"),
        (lambda: fs.dirichlet(threshold=-1), "threshold: expected"),
        (lambda: fs.entropy(min_samples=1.5), "min_samples: expected"),  # type: ignore[arg-type]
        (lambda: fs.esc(window=0), "window: expected"),
        (lambda: fs.majority(threshold=1.01), "threshold: expected"),
        (lambda: fs.agreement(0), "agreeing: expected"),
        (lambda: fs.agreement("2"), "agreeing: expected"),  # type: ignore[arg-type]
    ],
)
def test_stopping_rules_check_their_numbers(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        make()
    assert said in str(caught.value)


def test_every_stopping_rule_is_declared_with_what_it_computes_with(snippets: ModuleType) -> None:
    stops = [
        fs.adaptive_consistency(),
        fs.agreement(),
        fs.certaindex(threshold=0.7),
        fs.decided(),
        fs.dirichlet(),
        fs.entropy(),
        fs.esc(),
        fs.majority(),
    ]
    assert [stop.rule for stop in stops] == list(NUMBERS)
    for stop in stops:
        defaults = {name: number.default for name, number in NUMBERS[stop.rule].items()}
        assert dict(stop.numbers).items() <= defaults.items()
        for count in range(9):
            for votes in (Votes([0] * count), Votes([0, 1] * count), Votes([0, 0, 0, 1] * count)):
                rule = RULES[stop.rule]
                assert rule(votes, {"left": 3}) == rule(votes, {**defaults, "left": 3}), "the same defaults"


@pytest.mark.parametrize("changes", [{"wave": -1}, {"wave": 2, "stop": None}, {"wave": 1.5}])
def test_a_wave_is_a_number_and_needs_a_rule(snippets: ModuleType, changes: dict[str, Any]) -> None:
    @fs.workflow
    def waves(problem: str) -> str:
        return snippets.solve.sample(8, **{"vote": "final", "stop": fs.esc(), **changes})(problem).final  # type: ignore[no-any-return]

    with pytest.raises(GraphError, match="wave= a number from 0 to 1,000,000, with stop="):
        plan_of(waves)


def test_workflows_samples_and_searches_can_be_mapped_and_sampled(snippets: ModuleType) -> None:
    @fs.workflow
    def all_forms(q: str, items: list[str]) -> tuple[str, str, str]:
        found = snippets.rag.map(items, max_width=2)
        voted = snippets.solve.sample(3, vote="final").map(items, max_width=2)
        reasons = snippets.reason.sample(3, vote="")(q)
        return found[0].text, voted[0].final, reasons

    text = all_forms.graph().text
    for line in (
        "rag.map  [map, up to 2]",
        "rag/answer  [llm, 256 tokens]  after rag/search",
        "solve.sample.map  [map, up to 2]",
        "reason.sample  [sample, 3 samples]",
        "= reason/solve.sample.final",
    ):
        assert line in text


def test_annotations_may_be_strings_that_name_later_types() -> None:
    code = """
from __future__ import annotations
from pydantic import BaseModel
import flowserve.graphs as fs

@fs.llm
def plan(q: str) -> Plan:
    fs.prompt("{{ q }}")

@fs.workflow
def first(q: str) -> str:
    return plan(q).steps[0].text

class Plan(BaseModel):
    steps: list[Step]

class Step(BaseModel):
    text: str
"""
    import sys
    from types import ModuleType as Module

    module = Module("later_types")
    sys.modules["later_types"] = module
    exec(compile(code, "later_types.py", "exec"), module.__dict__)  # noqa: S102 (a module of its own)
    result = plan_of(module.first).blocks[0].result
    assert result == Get(Get(Get(Output(NodeId(0)), "steps"), 0), "text")
