"""Specs: round trips, what is checked on the way in, and that hostile ones give GraphError only."""

import copy
import json
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import flowserve.graphs as fs
from flowserve.errors import GraphError, InputError, OutputInvalid, ToolError
from flowserve.graphs.codec import from_spec, to_spec
from flowserve.graphs.encode import canonical
from flowserve.graphs.program import Program

NAMES = ("rag", "summary", "research", "reason", "essay", "dyn", "route", "many", "chat", "votes")


def sent(document: Any) -> Any:
    """The document after a trip through JSON text, keys in another order."""
    return json.loads(canonical(document))


def load(snippets: ModuleType, document: Any) -> Program:
    return from_spec(document, tools=[snippets.split, snippets.search, snippets.calculate], dynamics=[snippets.plan_it])


@pytest.mark.parametrize("name", NAMES)
def test_a_spec_read_back_is_the_same_plan(snippets: ModuleType, name: str) -> None:
    program = getattr(snippets, name).program
    document = sent(to_spec(program))
    again = load(snippets, document)
    assert again.plan == program.plan
    assert to_spec(again) == to_spec(program)
    assert document["apiVersion"] == "flowserve/v1" and document["version"] == program.plan.digest


def test_every_setting_of_a_model_call_survives_the_round_trip(snippets: ModuleType) -> None:
    @fs.llm(
        temperature=0.5, top_p=0.9, top_k=7, seed=3, stop="x", grammar="start: /a/", thinking_budget=9, on_loss="fail"
    )
    def say(text: str) -> str:
        fs.prompt("{{ text }}")

    @fs.workflow()
    def flow(text: str) -> str:
        return say(text)

    again = load(snippets, sent(to_spec(flow.program)))
    assert again.plan.llms == flow.program.plan.llms
    assert again.plan.llms[0].on_loss == "fail"


def test_searches_of_one_index_under_different_filters_stay_apart_in_plan_and_spec(snippets: ModuleType) -> None:
    english, old = fs.Index("docs", where={"year": "1", "lang": "en"}), fs.Index("docs", where={"year": "1"}, rerank=20)

    @fs.workflow()
    def flow(text: str) -> list[list[fs.Doc]]:
        return [english.search(text), old.search(text), fs.Index("docs").search(text)]

    plan = flow.program.plan
    assert [spec.where for spec in plan.searches] == [(("lang", "en"), ("year", "1")), (("year", "1"),), ()]
    assert [spec.rerank for spec in plan.searches] == [0, 20, 0]
    assert len({node.target for node in plan.nodes}) == 3
    document = sent(to_spec(flow.program))
    assert load(snippets, document).plan == plan
    assert [node.get("where") for node in document["body"]["nodes"]] == [
        {"lang": "en", "year": "1"},
        {"year": "1"},
        None,
    ]


@pytest.mark.parametrize(
    "where", [{"a": 1}, {1: "a"}, [("a", "b")], {str(n): "" for n in range(17)}, {"a": "b" * 2049}]
)
def test_a_filter_of_another_form_is_a_problem_of_the_workflow(where: Any) -> None:
    @fs.workflow()
    def flow(text: str) -> list[fs.Doc]:
        return fs.Index("docs", where=where).search(text)

    with pytest.raises(GraphError, match="up to 16 pairs of text, name and value"):
        _ = flow.program


def test_a_list_in_any_order_survives_the_round_trip_and_is_checked_in_specs_too(snippets: ModuleType) -> None:
    @fs.llm(any_order="texts")
    def say(texts: list[str]) -> str:
        fs.prompt("{% for t in texts %}{{ t }}{% endfor %}")

    @fs.workflow()
    def flow(texts: list[str]) -> str:
        return say(texts)

    document = sent(to_spec(flow.program))
    del document["version"]
    assert load(snippets, document).plan == flow.program.plan
    assert flow.program.plan.llms[0].any_order == "texts"
    document["llms"]["say"]["prompt"]["user"] = "{% for t in texts %}{{ loop.index }}{{ t }}{% endfor %}"
    with pytest.raises(GraphError, match="items that are written alike at every place; got a body that reads 'loop'"):
        load(snippets, document)


def test_what_is_looked_up_while_writing_survives_the_round_trip_and_is_checked_in_specs_too() -> None:
    @fs.llm(retrieve_every=4, retrieve_from="docs", retrieve_mode="overlapped")
    def say(question: str) -> str:
        fs.prompt("{{ question }}")

    @fs.workflow()
    def flow(question: str) -> str:
        return say(question)

    document = to_spec(flow.program)
    assert from_spec(document).plan.llms == flow.program.plan.llms
    assert document["llms"]["say"]["retrieve_every"] == 4
    document["llms"]["say"]["retrieve_every"] = None
    with pytest.raises(GraphError, match="got retrieve_from= alone"):
        from_spec(document)


def test_an_early_exit_survives_the_round_trip_and_is_checked_in_specs_too(snippets: ModuleType) -> None:
    exit = fs.early_exit(answer="number", deliver="readout", think=("<think>", "</think>"), budget=64, must_close=True)

    @fs.llm(quality="balanced", exit=exit)
    def say(text: str) -> str:
        fs.prompt("{{ text }}")

    @fs.workflow()
    def flow(text: str) -> str:
        return say(text)

    document = sent(to_spec(flow.program))
    del document["version"]
    assert load(snippets, document).plan == flow.program.plan
    assert flow.program.plan.llms[0].exit == exit
    document["llms"]["say"]["quality"] = "exact"
    with pytest.raises(GraphError, match="a quality that allows approximation; got quality='exact'"):
        load(snippets, document)
    document["llms"]["say"]["exit"]["saving_effort"] = 3
    with pytest.raises(GraphError, match="saving_effort"):
        load(snippets, document)


def test_the_steps_of_an_agent_neither_end_early_nor_look_things_up_in_specs_either(snippets: ModuleType) -> None:
    agent = fs.agent(instructions="Think.", name="thinker")

    @fs.workflow()
    def flow(text: str) -> str:
        return agent(text)

    document = sent(to_spec(flow.program))
    del document["version"]
    document["agents"]["thinker"]["llm"] |= {"quality": "balanced", "exit": {"answer": "number"}}
    with pytest.raises(GraphError, match="an agent that writes each step to its end; got exit"):
        load(snippets, document)
    document["agents"]["thinker"]["llm"] |= {"exit": None, "retrieve_every": 4, "retrieve_from": "docs"}
    with pytest.raises(GraphError, match="an agent that looks things up by its tools; got retrieve_every"):
        load(snippets, document)


def test_a_spec_holds_no_code_and_no_import_paths(snippets: ModuleType) -> None:
    text = canonical(to_spec(snippets.dyn.program)) + canonical(to_spec(snippets.research.program))
    for word in ("snippets", "def ", "import", ".py", "lambda"):
        assert word not in text


@fs.llm
def shout(text: str) -> str:
    fs.prompt("{{ text }}!")


@fs.tool
def pick(texts: list[str], n: int = 0) -> str:
    return texts[n]


@st.composite
def programs(draw: st.DrawFn) -> Any:
    """A random workflow made of the forms of the language."""
    seed = draw(st.lists(st.integers(0, 99), min_size=1, max_size=12))

    def fn(q: str, flag: bool) -> str:
        values: list[Any] = [q]
        for number in seed:
            last, other = values[-1], values[number % len(values)]
            values.append(_grow(number % 8, last, other, flag, number))
        return str(values[-1]) if isinstance(values[-1], str) else values[-1]  # type: ignore[no-any-return]

    fn.__name__ = "random_workflow"
    return fs.workflow(fn)


def _grow(form: int, last: Any, other: Any, flag: Any, number: int) -> Any:
    match form:
        case 0:
            return shout(last)
        case 1:
            return pick([last, other, "constant"], n=number)
        case 2:
            return pick(shout.map([last, other], max_width=number + 2, concurrency=1 + number % 3))
        case 3:
            return fs.when(flag, then=lambda: shout(last), otherwise=lambda: other)
        case 4:
            return fs.loop(shout, last, until=lambda s: (s == other) | ~flag, max_iters=number + 1)
        case 5:
            return shout.sample(number + 1, vote="", stop=fs.certaindex(threshold=0.5))(last)
        case 6:
            return fs.match(last, {"a": lambda: other, "b": lambda: shout(other)}, otherwise=lambda: shout(last))
        case _:
            return fs.Index("docs").search(last, k=number + 1)[0].text


@settings(max_examples=60, deadline=None)
@given(programs())
def test_random_workflows_survive_the_round_trip(workflow: Any) -> None:
    program = workflow.program
    again = from_spec(sent(to_spec(program)), tools=[pick])
    assert again.plan == program.plan


def test_a_loaded_program_checks_values_by_schema(snippets: ModuleType) -> None:
    program = load(snippets, sent(to_spec(snippets.rag.program)))
    assert program.bind_input({"question": "q"}) == ("q",)
    with pytest.raises(InputError, match="/question"):
        program.bind_input({"question": 5})
    assert program.parse_output("answer", '{"text": "x", "citations": [1]}') == {"text": "x", "citations": [1]}
    for text in ('{"text": 1, "citations": []}', "{}", "no json", '{"text": NaN}'):
        with pytest.raises(OutputInvalid):
            program.parse_output("answer", text)


class Step(BaseModel):
    text: str
    weight: float = 0.5


class Route(BaseModel):
    steps: list[Step]
    first: Step | None = None
    tags: list[str] = []


@fs.llm
def route(q: str) -> Route:
    fs.prompt("{{ q }}")


@pytest.mark.parametrize(
    "text",
    [
        '{"steps": []}',
        '{"steps": [{"text": "a"}, {"text": "b", "weight": 1}], "first": {"text": "c"}}',
        '{"steps": [], "tags": ["x"]}',
    ],
)
def test_a_loaded_program_reads_a_models_text_as_the_declared_one_does(text: str) -> None:
    declared = route.alone.program
    loaded = from_spec(sent(to_spec(declared)))
    assert loaded.parse_output("route", text) == declared.dump(declared.parse_output("route", text))


def test_a_loaded_program_runs_the_registered_functions(snippets: ModuleType) -> None:
    program = load(snippets, sent(to_spec(snippets.summary.program)))
    assert program.functions["split"] is snippets.split.fn
    assert program.arguments("split", {"text": "a b"}) == {"text": "a b", "words": 800}
    with pytest.raises(ToolError):
        program.arguments("split", {"text": 1})


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the item at a slash-separated path replaced (or, for `...`, removed)."""
    document = copy.deepcopy(document)
    document.pop("version", None)
    at: Any = document
    *before, last = path.split("/")
    for part in before:
        at = at[int(part)] if isinstance(at, list) else at[part]
    key: Any = int(last) if isinstance(at, list) else last
    if value is ...:
        del at[key]
    else:
        at[key] = value
    return document


@pytest.mark.parametrize(
    ("name", "path", "value", "said"),
    [
        ("rag", "apiVersion", "flowserve/v9", "flowserve/v1"),
        ("rag", "kind", "Pod", "Workflow"),
        ("rag", "code", "import os", "additionalProperties"),
        ("rag", "body", ..., "'body' is a required property"),
        ("rag", "name", "a b", "a name of letters"),
        ("rag", "body/nodes/1/uses", "other", "uses: one of llms (answer)"),
        ("rag", "body/nodes/1/args/passages", {"output": "nosuch"}, "'nosuch'"),
        ("rag", "body/nodes/1/args/passages", {"param": "nosuch"}, "'nosuch'"),
        ("rag", "body/nodes/1/args/passages", ..., "an argument 'passages'; got none"),
        ("rag", "body/nodes/1/args/more", {"const": 1}, "arguments among"),
        ("rag", "body/nodes/1/args/question", {"const": 1}, "1 is not of type 'string'"),
        ("rag", "body/nodes/0/args/k", {"const": 0}, "argument 'k'"),
        ("rag", "body/nodes/0/args/query", {"output": "answer"}, "the cycle"),
        ("rag", "body/nodes/0/name", "answer", "a second node of that name"),
        ("rag", "body/nodes/0/index", ..., "the name of an index"),
        ("rag", "body/params", ["q"], "the parameters that input describes"),
        ("rag", "body/until", {"const": True}, "until in the bodies of loops and races only"),
        ("rag", "llms/answer/prompt/user", "{{ x }}", "{{ x }}, but there are: "),
        ("rag", "llms/answer/prompt/user", "{% for %}", "Jinja2 syntax"),
        ("rag", "llms/answer/prompt/history", "h", "history: the name of a parameter"),
        ("rag", "llms/answer/output", {"type": "nosuch"}, "a valid JSON Schema"),
        ("rag", "llms/answer/output", {"$ref": "http://example.org/x"}, "references inside the same schema"),
        ("rag", "llms/answer/output", {"type": "string", "pattern": "(a+)+$"}, "patterns without repeated groups"),
        ("rag", "llms/answer/output", {"properties": True}, "a valid JSON Schema"),
        ("rag", "input", {"properties": {"question": {"type": 5}}}, "a valid JSON Schema"),
        ("rag", "llms/answer/max_tokens", 0, "minimum"),
        ("summary", "tools/split/params", {"type": "object"}, "the signature of the registered tool"),
        ("summary", "tools/split/effects", False, "the signature of the registered tool"),
        ("summary", "body/nodes/1/limit", ..., "a limit (the work would be unbounded)"),
        ("summary", "body/nodes/1/bodies", [], "1 bodies; got 0"),
        ("summary", "body/nodes/1/bodies/0/params", ["x"], "the parameters (chunk)"),
        ("summary", "body/nodes/1/bodies/0/name", "summary", "a second block of that name"),
        ("essay", "body/nodes/1/bodies", [], "2 bodies; got 0"),
        ("essay", "body/nodes/1/bodies/0/nodes/0/bodies/0/until", {"output": "improve"}, "until over the state"),
        ("essay", "body/nodes/1/args/value", {"output": "improve"}, "of another body"),
        ("essay", "body/nodes/1/args/value", {"op": "eq", "args": []}, "2 arguments of 'eq'"),
        ("essay", "body/nodes/1/args/value", {"op": "exec", "args": []}, "enum"),
        ("route", "body/nodes/1/args/cases", {"const": ["x", "y", "z"]}, "4 bodies; got 2"),
        ("route", "body/nodes/1/args/cases", {"param": "question"}, "a constant list"),
        ("reason", "body/nodes/0/sample/rule", "nosuch", "a rule among adaptive_consistency, "),
        (
            "reason",
            "body/nodes/0/sample/rule_args",
            {"threshold": 1.5},
            "threshold: a number above 0, at most 1; got 1.5",
        ),
        ("reason", "body/nodes/0/sample/rule_args", {"min_samples": 2.5}, "min_samples: a number from 1"),
        (
            "reason",
            "body/nodes/0/sample/rule_args",
            {"window": 5},
            "rule_args of certaindex among threshold, min_samples, every",
        ),
        ("reason", "body/nodes/0/sample/rule", ..., "rule_args and wave beside a rule; got no rule"),
        ("reason", "body/nodes/0/sample/wave", -1, "minimum"),
        ("research", "agents/agent/tools", ["nosuch"], "tools that the spec describes"),
        ("dyn", "dynamics/plan_it/callees", ["answer"], "the signature of the registered function"),
    ],
)
def test_wrong_specs_say_what_is_wrong(snippets: ModuleType, name: str, path: str, value: Any, said: str) -> None:
    document = changed(sent(to_spec(getattr(snippets, name).program)), path, value)
    with pytest.raises(GraphError) as caught:
        load(snippets, document)
    assert said in str(caught.value), str(caught.value)


def test_all_problems_of_a_spec_are_reported_together(snippets: ModuleType) -> None:
    document = sent(to_spec(snippets.rag.program))
    document = changed(document, "body/nodes/1/uses", "other")
    document = changed(document, "llms/answer/prompt/user", "{{ x }}")
    document = changed(document, "body/nodes/0/args/query", {"param": "y"})
    with pytest.raises(GraphError) as caught:
        load(snippets, document)
    assert len(caught.value.problems) == 3


def test_unknown_tools_are_named_with_those_there_are(snippets: ModuleType) -> None:
    with pytest.raises(
        GraphError, match="split: expected a registered tool; got an unknown one; registered: calculate"
    ):
        from_spec(to_spec(snippets.summary.program), tools=[snippets.calculate])
    with pytest.raises(GraphError, match="a registered dynamic function"):
        from_spec(to_spec(snippets.dyn.program), tools=[snippets.split])


def test_a_changed_document_does_not_keep_its_version(snippets: ModuleType) -> None:
    document = sent(to_spec(snippets.rag.program))
    document["description"] = "changed"
    with pytest.raises(GraphError, match="hash of the content"):
        load(snippets, document)
    del document["version"]
    assert load(snippets, document).plan.digest != snippets.rag.program.plan.digest


def nested(depth: int) -> Any:
    value: Any = {"const": 1}
    for _ in range(depth):
        value = {"get": value, "key": "x"}
    return value


HOSTILE = [
    None,
    [],
    "spec",
    {1: 2},
    {"apiVersion": float("nan")},
    {"a": object()},
    {"a": [[]] * 500_000},
    {"apiVersion": "flowserve/v1", "kind": "Workflow", "name": "w", "input": {}, "output": {}, "body": nested(100_000)},
]


@pytest.mark.parametrize("document", HOSTILE, ids=range(len(HOSTILE)))
def test_documents_that_are_no_specs_are_refused(document: Any) -> None:
    with pytest.raises(GraphError):
        from_spec(document)


def test_bounds_of_specs_hold(snippets: ModuleType) -> None:
    document = sent(to_spec(snippets.rag.program))
    search = document["body"]["nodes"][0]
    many = changed(document, "body/nodes", [{**search, "name": f"n{i}"} for i in range(2_001)])
    with pytest.raises(GraphError, match="maxItems 2000; got 2,001 items"):
        load(snippets, many)
    edges = {"op": "list", "args": [{"param": "question"}] * 6_000}
    with pytest.raises(GraphError, match="at most 10,000 edges"):
        load(snippets, changed(changed(document, "body/result", edges), "body/nodes/1/args/question", edges))
    with pytest.raises(GraphError, match="expressions at most 64 deep"):
        load(snippets, changed(document, "body/result", nested(80)))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_a_damaged_spec_gives_graph_error_or_a_program(name: str, data: st.DataObject) -> None:
    import sys

    snippets = sys.modules["graphs_snippets"]
    document = sent(to_spec(getattr(snippets, name).program))
    document.pop("version")
    for _ in range(data.draw(st.integers(1, 2))):
        at: Any = document
        while True:
            keys: list[Any] = sorted(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.integers(0, 3)) == 0:
                action = data.draw(st.integers(0, 2))
                if action == 0:
                    del at[key]
                elif action == 1:
                    at[key] = data.draw(JUNK)
                elif isinstance(at, list):
                    at.append(copy.deepcopy(at[key]))
                else:
                    at[data.draw(st.sampled_from([*keys, "x"]))] = copy.deepcopy(at[key])
                break
            at = at[key]
    try:
        program = load(snippets, document)
    except GraphError as error:
        assert error.problems
    else:
        assert load(snippets, sent(to_spec(program))).plan == program.plan


@pytest.fixture(autouse=True)
def _loaded(snippets: ModuleType) -> None:
    """The property tests find the module in sys.modules."""


def test_a_binding_promise_is_part_of_the_spec_and_one_that_is_not_leaves_no_trace(snippets: ModuleType) -> None:
    @fs.workflow(slo=fs.SLO(e2e=5, binding=True))
    def held(text: str) -> list[str]:
        return snippets.split(text)

    @fs.workflow(slo=fs.SLO(ttft=1, binding=True))
    def vague(text: str) -> list[str]:
        return snippets.split(text)

    document = sent(to_spec(held.program))
    assert document["slo"] == {"e2e": 5.0, "tier": "standard", "binding": True}
    assert load(snippets, document).plan.slo == fs.SLO(e2e=5.0, binding=True)
    assert "binding" not in to_spec(snippets.rag.program)["slo"]
    with pytest.raises(GraphError, match="e2e= beside binding=True"):
        _ = vague.program
