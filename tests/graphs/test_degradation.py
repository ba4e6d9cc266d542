"""Degradations as authors write them: in the Plan, in specs, in pictures, through the passes, and what is wrong with them."""

import json
from collections.abc import Callable
from typing import Any

import pytest

import flowserve as fs
from flowserve.errors import GraphError
from flowserve.graphs.codec import from_spec, to_spec
from flowserve.graphs.compile import compile_declaration
from flowserve.graphs.passes import rewrite
from flowserve.graphs.passes.lift import declaration_of
from flowserve.graphs.plan import Degradation, Kind, Plan

handbook = fs.Index("handbook")


@fs.llm(max_tokens=64)
def answer(question: str, passages: list[fs.Doc]) -> str:
    fs.prompt("{% for p in passages %}{{ p.text }}\n{% endfor %}Question: {{ question }}")


@fs.llm(max_tokens=64)
def critic(draft: str) -> str:
    fs.prompt("Improve {{ draft }}")


@fs.llm(max_tokens=64)
def judge(draft: str) -> int:
    fs.prompt("Score {{ draft }}")


@fs.llm(max_tokens=64)
def weigh(question: str, draft: str) -> str:
    fs.prompt("Of {{ question }}: {{ draft }}")


@fs.workflow()
def careful(question: str) -> str:
    passages = handbook.search(question, k=8, least=4, harm=0.1)
    draft = answer.sample(8, vote="", least=3, harm=0.2)(question, passages)
    draft = fs.optional(critic, draft, harm=0.5)
    return fs.loop(critic, draft, max_iters=3, least=1, harm=1)


def declared(plan: Plan) -> dict[str, tuple[int, Degradation]]:
    return {node.name: (node.limit, node.degrade) for node in plan.nodes if node.degrade is not None}


def workflow(fn: Callable[..., Any]) -> Any:
    return fs.workflow()(fn)


def problem_of(fn: Callable[..., Any]) -> str:
    with pytest.raises(GraphError) as raised:
        workflow(fn).program  # noqa: B018  (it is traced when it is asked for)
    return str(raised.value)


def test_what_may_be_given_up_stands_in_the_plan() -> None:
    assert declared(careful.program.plan) == {
        "search": (8, Degradation(4, 0.1)),
        "answer.sample": (8, Degradation(3, 0.2)),
        "critic.optional": (1, Degradation(0, 0.5)),
        "loop": (3, Degradation(1, 1.0)),
    }


def test_a_spec_read_back_is_the_same_plan() -> None:
    plan = careful.program.plan
    spec = json.loads(json.dumps(to_spec(careful.program)))
    assert from_spec(spec).plan == plan
    assert compile_declaration(declaration_of(plan)) == plan


def test_another_degradation_is_another_version_and_without_any_a_spec_does_not_speak_of_it() -> None:
    def with_(**settings: Any) -> str:
        def draw(question: str) -> str:
            return critic.sample(8, vote="", **settings)(question)

        return str(workflow(draw).program.version)

    versions = [with_(), with_(least=3, harm=0.2), with_(least=4, harm=0.2), with_(least=3, harm=0.3)]
    assert len(dict.fromkeys(versions)) == 4
    assert "degrade" not in json.dumps(to_spec(workflow(_plain).program))


def test_pictures_say_how_little_will_do() -> None:
    text = careful.graph().text
    for words in (
        "handbook, 8 passages, at least 4",
        "8 samples, at least 3",
        "up to 1, or none",
        "up to 3, at least 1",
    ):
        assert words in text


def test_an_optional_step_may_read_other_values_too() -> None:
    def w(question: str) -> str:
        draft = critic(question)
        return fs.optional(lambda d: weigh(question, d), draft, harm=0.5)

    plan = workflow(w).program.plan
    assert declared(plan) == {"optional": (1, Degradation(0, 0.5))}


def test_outside_of_a_declaration_an_optional_step_is_made() -> None:
    assert fs.optional(lambda text: text + "!", "x", harm=0.5) == "x!"


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"least": 8, "harm": 0.2}, "least= a number from 1, below 8"),
        ({"least": 0, "harm": 0.2}, "least= a number from 1, below 8"),
        ({"least": True, "harm": 0.2}, "least= a number from 1, below 8"),
        ({"least": 2.5, "harm": 0.2}, "least= a number from 1, below 8"),
        ({"least": 3, "harm": 0.0}, "harm= a number above 0, at most 1"),
        ({"least": 3, "harm": 1.1}, "harm= a number above 0, at most 1"),
        ({"least": 3, "harm": float("nan")}, "harm= a number above 0, at most 1"),
        ({"least": 3, "harm": "much"}, "harm= a number above 0, at most 1"),
        ({"least": 3}, "least= without harm="),
        ({"harm": 0.2}, "harm= without least="),
    ],
)
def test_numbers_that_cannot_be_are_told(settings: dict[str, Any], words: str) -> None:
    def samples(text: str) -> str:
        return critic.sample(8, vote="", **settings)(text)

    def passages(text: str) -> str:
        return answer(text, handbook.search(text, k=8, **settings))

    assert words in problem_of(samples)
    assert words in problem_of(passages)


def test_a_loop_needs_a_round_less_than_all_and_may_do_without_any() -> None:
    def all_of_them(text: str) -> str:
        return fs.loop(critic, text, max_iters=3, least=3, harm=0.2)

    def none(text: str) -> str:
        return fs.loop(critic, text, max_iters=3, least=0, harm=0.2)

    assert "least= a number from 0, below 3" in problem_of(all_of_them)
    assert declared(workflow(none).program.plan) == {"loop": (3, Degradation(0, 0.2))}


def test_a_step_that_gives_another_type_than_it_takes_cannot_be_left_out() -> None:
    def w(text: str) -> int:
        return fs.optional(judge, text, harm=0.5)  # type: ignore[arg-type, return-value]

    assert "a body that gives str, as it takes; got int" in problem_of(w)


def test_a_step_that_does_not_take_what_would_be_passed_on_is_told() -> None:
    def w(text: str) -> str:
        return fs.optional(critic, 7, harm=0.5)  # type: ignore[arg-type, return-value]

    assert "init, as critic takes it, of type str" in problem_of(w)


def test_the_scheduler_cannot_lower_a_bound_that_is_known_only_in_the_run() -> None:
    def w(text: str, many: int) -> str:
        return answer(text, handbook.search(text, k=many, least=4, harm=0.1))

    assert "k= a constant where least= is given" in problem_of(w)


def test_a_workflow_may_declare_so_many() -> None:
    def w(text: str) -> list[str]:
        return [fs.optional(critic, text, harm=0.5) for _ in range(17)]

    assert "at most 16 degradations; got 17" in problem_of(w)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda node: node["degrade"].update(least=8), "least= a number from 1, below 8"),
        (lambda node: node["degrade"].update(least=0), "least= a number from 1, below 8"),
        (lambda node: node["degrade"].update(harm=0), "exclusiveMinimum"),
        (lambda node: node["degrade"].update(harm=2), "maximum 1"),
        (lambda node: node["degrade"].update(harms=2), "additionalProperties"),
        (lambda node: node["degrade"].pop("harm"), "required"),
        (lambda node: node["args"].update(k={"param": "question"}), "k: a constant where there is a degrade"),
        (lambda node: node["args"].pop("k"), "k: a constant where there is a degrade"),
    ],
)
def test_a_spec_that_says_it_wrongly_is_refused(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    spec = to_spec(careful.program)
    del spec["version"]
    search = next(node for node in spec["body"]["nodes"] if node["kind"] == "search")
    change(search)
    with pytest.raises(GraphError, match=words):
        from_spec(spec)


def test_a_spec_may_not_degrade_a_single_call() -> None:
    spec = to_spec(workflow(_plain).program)
    del spec["version"]
    spec["body"]["nodes"][0]["degrade"] = {"least": 1, "harm": 0.5}
    with pytest.raises(GraphError, match="degrade in samples, searches and loops only; got one in a llm"):
        from_spec(spec)


def _plain(text: str) -> str:
    return critic(text)


# --- passes -----------------------------------------------------------------------------------------------------------


def test_passes_keep_what_may_be_given_up() -> None:
    assert declared(rewrite(careful.program.plan).plan) == declared(careful.program.plan)


def test_a_call_is_not_moved_out_of_a_step_that_may_be_left_out() -> None:
    def sure(text: str) -> str:
        return fs.loop(lambda d: weigh(critic(text), d), text, max_iters=2)

    def unsure(text: str) -> str:
        return fs.loop(lambda d: weigh(critic(text), d), text, max_iters=2, least=0, harm=0.5)

    def once(text: str) -> str:
        return fs.loop(lambda d: weigh(critic(text), d), text, max_iters=2, least=1, harm=0.5)

    moved = {fn.__name__: rewrite(workflow(fn).program.plan).plan.nodes[0].name for fn in (sure, unsure, once)}
    assert moved == {"sure": "critic", "unsure": "loop", "once": "critic"}


def test_equal_calls_are_one_only_where_the_same_may_be_given_up() -> None:
    def w(text: str) -> list[str]:
        whole = answer(text, handbook.search(text, k=8))
        return [whole, *(answer(text, handbook.search(text, k=8, least=4, harm=0.1)) for _ in range(2))]

    plan = rewrite(workflow(w).program.plan).plan
    assert [node.degrade for node in plan.nodes if node.kind is Kind.SEARCH] == [None, Degradation(4, 0.1)]
