"""Wrong programs: every problem at once, each with a name, what was expected, what came and a remedy."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportReturnType=false
# (wrong on purpose)

from typing import Any, Literal

import pytest
from pydantic import BaseModel

import flowserve.graphs as fs
from flowserve.errors import GraphError


class Solution(BaseModel):
    reasoning: str
    final: str
    score: int
    note: str | None = None


@fs.llm
def solve(problem: str) -> Solution:
    fs.prompt("{{ problem }}")


@fs.llm
def answer(question: str, passages: list[fs.Doc]) -> str:
    fs.prompt("{% for p in passages %}{{ p.text }}{% endfor %}{{ question }}")


@fs.tool
def words(text: str) -> list[str]:
    return text.split()


@fs.tool
def count(number: int) -> int:
    return number


def problems_of(fn: Any) -> str:
    with pytest.raises(GraphError) as caught:
        _ = fs.workflow(fn).program
    return str(caught.value)


def test_a_wrong_workflow_shows_all_its_errors_on_one_screen() -> None:
    @fs.llm
    def typo(question: str) -> str:
        fs.prompt("Answer {{ qestion }}")

    @fs.workflow
    def wrong(question: str, strict: bool) -> Solution:
        solution = solve(question)
        if solution.score > 3:
            solve(solution.finel)
        total = solution.score + 1
        answer(question, words(question))
        count(total)
        solve.map(question)
        solve(problm=question)
        typo(question)
        fs.loop(solve, question, until=lambda s: s, max_iters=0)
        return solution.reasoning

    with pytest.raises(GraphError) as caught:
        _ = wrong.program
    text = str(caught.value)
    print(text)
    for part in (
        "workflow 'wrong' has ",
        "fs.when",
        "solve.score > 3: expected a value that is known",
        ".finel, but Solution has: reasoning, final, score, note",
        "arithmetic with it",
        "argument 'passages' of type list[Doc]; got list[str] from words",
        "argument 'problem', a list of type Sequence[str]; got str from parameter 'question'",
        "no argument 'problem'",
        "an unknown argument 'problm'",
        "{{ qestion }}, but the function has: question",
        "max_iters= a number from 1 to 1,000,000; got none (the work would be unbounded)",
        "wrong: expected a result of type Solution; got str from solve.reasoning",
    ):
        assert part in text, part
    assert len(text.splitlines()) <= 24, "one screen"
    assert all(p.where and p.expected and p.came and p.remedy for p in caught.value.problems)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (lambda s: s.note or "x", "`if`, `while`, `and`, `or` or `not` on it"),
        (lambda s: f"{s.final}!", "an f-string"),
        (lambda s: str(s.final), "str()"),
        (lambda s: [w for w in s.final], "Use node.map(items)"),
        (lambda s: len(s.final), "Use fs.length(items)"),
        (lambda s: "a" in s.final, "Use fs.contains(items, item)"),
        (lambda s: s.final + "a", "arithmetic with it"),
        (lambda s: -s.score, "arithmetic with it"),
        (lambda s: 1 - s.score, "arithmetic with it"),
        (lambda s: range(s.score), "arithmetic with it"),
        (lambda s: float(s.score), "arithmetic with it"),
        (lambda s: s.final.upper(), ".upper, but str has no fields"),
        (lambda s: s.final[1:], "a slice"),
        (lambda s: s["final"], "Solution cannot be indexed with 'final'"),
        (lambda s: setattr(s, "final", "x"), "an assignment to .final"),
        (lambda s: s(), "a call of a value"),
        (lambda s: s.score < s.final, "int compared with str"),
        (lambda s: s.score & True, "a bool; got int"),
    ],
)
def test_code_that_needs_the_value_says_what_to_use_instead(body: Any, said: str) -> None:
    def wrong(problem: str) -> Any:
        return body(solve(problem))

    assert said in problems_of(wrong)


def test_a_while_on_a_value_ends_and_is_reported_once() -> None:
    def wrong(problem: str) -> Solution:
        s = solve(problem)
        while s.score < 3:
            s = solve(s.final)
        return s

    text = problems_of(wrong)
    assert "has 1 problem\n" in text and "fs.loop" in text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (lambda q, s: solve(s.note), "It may be None"),
        (lambda q, s: count(s), "Did you mean the field .score?"),
        (lambda q, s: count(words(q)), "expected argument 'number' of type int; got list[str]"),
        (lambda q, s: solve(words(q)), "use node.map(items)"),
        (lambda q, s: count("five"), "Input should be a valid integer"),
        (lambda q, s: solve(object()), "a constant that can be written as JSON; got builtins.object"),
        (lambda q, s: solve(float("nan")), "a constant that can be written as JSON"),
        (lambda q, s: solve(q, q), "2 positional arguments"),
        (lambda q, s: solve(q, problem=q), "'problem' given twice"),
        (lambda q, s: fs.when(s.score, then=lambda: q, otherwise=lambda: q), "a condition of type bool; got int"),
        (lambda q, s: fs.when(s.score > 1, then=q, otherwise=lambda: q), "arms that are functions"),
        (lambda q, s: fs.match(s.final, {"a": lambda: q}), "Add otherwise=lambda"),
        (lambda q, s: fs.match(s.final, {}, otherwise=lambda: q), "at least one case"),
        (lambda q, s: fs.loop(lambda x: words(x), q, max_iters=2), "a body that gives str, as it takes"),
        (lambda q, s: fs.loop(solve, 5, max_iters=2), "init, as solve takes it, of type str"),
        (lambda q, s: fs.loop(lambda x: x, q, until=lambda x: count(1) == 1, max_iters=2), "a call of a node in it"),
        (
            lambda q, s: fs.loop(lambda x: x, q, until=lambda x: x, max_iters=2),
            "until= a condition of type bool; got str",
        ),
        (lambda q, s: fs.loop(lambda x: x, q, max_iters=-1), "max_iters=-1"),
        (lambda q, s: solve.sample(0)(q), "solve.sample: expected n= a number from 1"),
        (lambda q, s: solve.sample(3, vote="finl")(q), "'finl', but Solution has"),
        (lambda q, s: solve.map([q], concurrency=0), "concurrency= a number from 1"),
        (lambda q, s: solve.map([q], max_width=10**9), "max_width=1000000000"),
        (lambda q, s: fs.Index("").search(q), "the name of an index"),
        (lambda q, s: fs.Index("i").search(q, k=0), "k= a number from 1"),
        (lambda q, s: fs.agent(tools=[solve], max_steps=0)(q), "functions decorated with @fs.tool; got solve"),
        (lambda q, s: fs.agent(max_steps=0)(q), "max_steps= a number from 1"),
        (lambda q, s: fs.agent(instructions="{{ x }}")(q), "{{ x }}, but the function has: task"),
        (lambda q, s: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_wrong_calls_name_what_was_expected_and_what_came(body: Any, said: str) -> None:
    def wrong(question: str) -> Any:
        return body(question, solve(question))

    assert said in problems_of(wrong)


def test_a_value_of_a_branch_cannot_be_used_outside_of_it() -> None:
    def wrong(q: str, strict: bool) -> str:
        kept: list[Any] = []
        fs.when(strict, then=lambda: kept.append(solve(q)) or q, otherwise=lambda: q)
        return str(kept) and words(kept[0].final) and kept[0].final

    assert "which exists only inside when/then" in problems_of(wrong)


def test_a_value_kept_from_an_earlier_declaration_is_refused() -> None:
    kept: list[Any] = []

    @fs.workflow
    def first(q: str) -> Solution:
        kept.append(solve(q))
        return kept[0]

    _ = first.program

    def second(q: str) -> Solution:
        return kept[0]

    assert "exists only inside first" in problems_of(second)
    with pytest.raises(GraphError, match="outside any workflow"):
        bool(kept[0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_tokens": 0}, "max_tokens= a number from 1"),
        ({"temperature": float("nan")}, "temperature= a number from 0 to 10"),
        ({"top_p": 2}, "top_p="),
        ({"stop": [""]}, "stop= up to 16 texts"),
        ({"quality": "good"}, "one of exact, balanced, fast"),
        ({"timeout": -1}, "a positive number of seconds; got timeout=-1"),
        ({"retry": 1000}, "a number of retries from 0 to 100"),
        ({"retry": fs.Retry(attempts=0)}, "attempts from 1 to 101"),
        ({"name": "two words"}, "a name of letters, digits, _ and -"),
        ({"cache": True, "temperature": 1.0}, "an answer that is always the same"),
        ({"regex": ""}, "regex= a regular expression or None"),
        ({"thinking_budget": -1}, "thinking_budget= a number of tokens or None"),
        ({"on_loss": "panic"}, "one of restart, continue, fail"),
        ({"exit": "yes"}, "exit= fs.early_exit(...) or None"),
        ({"exit": fs.early_exit(answer="essay")}, "exit= answer: one of boxed, number, choice, line; got 'essay'"),
        ({"exit": fs.early_exit(answer="number", rule="deer")}, "exit= rule: one of default, certified; got 'deer'"),
        ({"exit": fs.early_exit(answer="number", think=("<think>",))}, "exit= think: two marks"),  # type: ignore[arg-type]
        ({"exit": fs.early_exit(answer="number", budget=0)}, "exit= budget: a number of tokens or None; got 0"),
        ({"exit": fs.early_exit(answer="number")}, "exit= with text of free form; got a typed result"),
        ({"exit": fs.early_exit(answer="number")}, "a quality that allows approximation; got quality='exact'"),
        ({"retrieve_every": 4}, "retrieve_every= and retrieve_from= together; got retrieve_every= alone"),
        ({"retrieve_from": "docs"}, "retrieve_every= and retrieve_from= together; got retrieve_from= alone"),
        (
            {"retrieve_every": 0, "retrieve_from": "d"},
            "retrieve_every= a number of tokens from 1 to 1,024 or None; got 0",
        ),
        ({"retrieve_mode": "lucky"}, "retrieve_mode= None or one of sequential, speculative, overlapped; got 'lucky'"),
        ({"retrieve_mode": "overlapped"}, "retrieve_mode= with retrieve_every= and retrieve_from=; got neither"),
        (
            {"retrieve_every": 4, "retrieve_from": "d"},
            "text of free form where passages are looked up; got a typed result",
        ),
        (
            {"exit": fs.early_exit(answer="number", budget=9), "thinking_budget": 9},
            "one thinking budget; got thinking_budget= and exit= with a budget",
        ),
        ({"any_order": ""}, "any_order= the name of a list parameter or None"),
        ({"reuse": "always"}, "reuse= None or one of exact, balanced, fast; got 'always'"),
        ({"any_order": "problem"}, "one top-level {% for item in problem %} in the prompt; got 0 of them"),
        ({"regex": "a+"}, "one form of the output at most; got a typed result and regex="),
        (
            {"on_loss": "continue"},
            "text that another engine can go on with; got on_loss='continue' with a typed result",
        ),
    ],
)
def test_wrong_settings_are_reported_with_the_workflow(settings: dict[str, Any], said: str) -> None:
    node = solve.options(**settings)

    def wrong(q: str) -> Solution:
        return node(q)

    assert said in problems_of(wrong)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ question", "Jinja2 syntax"),
        ("{% if question %}", "Jinja2 syntax"),
        ("{{ question|nosuch }}", "nosuch"),
        ("{% include 'x' %}", "{% include %} is not available"),
        ("{% macro f() %}{% endmacro %}", "{% macro %} is not available"),
        ("{{ other }}", "{{ other }}, but the function has: question"),
        ("", "a prompt; got an empty one"),
    ],
)
def test_wrong_templates_are_reported(source: str, said: str) -> None:
    @fs.llm
    def ask(question: str) -> str:
        fs.prompt(source)

    def wrong(q: str) -> str:
        return ask(q)

    assert said in problems_of(wrong)


def test_a_template_that_reads_a_field_that_does_not_exist_is_reported() -> None:
    @fs.llm
    def ask(draft: Solution, passages: list[fs.Doc]) -> str:
        fs.prompt("{{ draft.finel }} {% for p in passages %}{{ p.txt }}{% endfor %}")

    def wrong(d: Solution) -> str:
        return ask(d, [])

    text = problems_of(wrong)
    assert "{{ draft.finel }}, but Solution has: reasoning" in text
    assert "{{ p.txt }}, but Doc has: text, id" in text


def test_prompt_bodies_that_do_something_else_are_reported() -> None:
    @fs.llm
    def silent(question: str) -> str:
        return question

    @fs.llm
    def formatted(question: str) -> str:
        fs.prompt(f"Answer {question}")

    @fs.llm
    def old(question: str, messages: str) -> str:
        fs.prompt(question, history=messages)

    def wrong(q: str) -> list[str]:
        return [silent(q), formatted(q), old(q, q)]

    text = problems_of(wrong)
    assert "a body that calls fs.prompt(...)" in text
    assert 'Write the name into the template, "{{ name }}"' in text
    assert "a prompt that is a string; got Value" in text
    assert "parameter 'messages' of type str" in text


def test_functions_without_annotations_are_reported() -> None:
    @fs.tool
    def bare(a, *rest):
        return a

    def wrong(q: str):
        return bare(q)

    text = problems_of(wrong)
    assert "a type for parameter 'a'" in text
    assert "parameters that can be passed by name; got '*rest'" in text
    assert "wrong: expected a return type" in text
    assert "bare: expected a return type" in text


def test_types_that_json_cannot_hold_are_reported() -> None:
    class Socket:
        pass

    @fs.tool
    def connect(address: str) -> Socket:
        return Socket()

    def wrong(q: str) -> Socket:
        return connect(q)

    assert "Socket cannot be written as JSON" in problems_of(wrong)


def test_names_that_are_given_twice_are_reported() -> None:
    def wrong(q: str) -> list[Solution]:
        return [solve.options(name="first")(q), solve.options(name="first")(q)]

    assert "a name of its own for every node; got a second node of that name" in problems_of(wrong)


def test_a_node_named_once_may_be_called_twice_and_is_numbered() -> None:
    @fs.llm(name="greeter")
    def greet(name: str) -> str:
        fs.prompt("Greet {{ name }}")

    @fs.llm(name="greeter")
    def insult(name: str) -> str:
        fs.prompt("Insult {{ name }}")

    helper = fs.agent(name="helper")

    @fs.workflow()
    def right(q: str) -> list[str]:
        return [greet(q), greet(q), helper(q), helper(q)]

    assert [node.name for node in right.program.plan.nodes] == ["greeter", "greeter_2", "helper", "helper_2"]

    def wrong(q: str) -> list[str]:
        return [greet(q), insult(q)]

    assert "greeter: expected a name of its own for every node" in problems_of(wrong)


def test_two_functions_of_one_tool_name_are_reported() -> None:
    @fs.tool(name="words")
    def other(text: str) -> list[str]:
        return [text]

    def wrong(q: str) -> list[list[str]]:
        return [words(q), other(q)]

    assert "one function per tool name" in problems_of(wrong)


def test_recursion_is_a_cycle_with_its_path() -> None:
    @fs.workflow
    def ping(q: str) -> str:
        return pong(q)

    @fs.workflow
    def pong(q: str) -> str:
        return ping(q)

    with pytest.raises(GraphError, match="the cycle ping -> pong -> ping"):
        _ = ping.program


def test_a_match_on_closed_values_checks_its_cases() -> None:
    @fs.llm
    def classify(q: str) -> Literal["easy", "hard"]:
        fs.prompt("{{ q }}")

    def wrong(q: str) -> str:
        return fs.match(classify(q), {"easy": lambda: q, "hart": lambda: q})

    text = problems_of(wrong)
    assert "cases among 'easy', 'hard'; got 'hart'" in text
    assert "none for 'hard'" in text


def test_dynamic_functions_declare_async_bounds_and_callees() -> None:
    @fs.dynamic(calls=[solve, solve, len])
    def sync(q: str) -> str:
        return q

    def wrong(q: str) -> str:
        return sync(q)

    text = problems_of(wrong)
    assert "an async function" in text
    assert "max_calls= a number from 1 to 1,000,000; got none (the work would be unbounded)" in text
    assert "'solve' twice" in text
    assert "calls= nodes; got len" in text


def test_a_node_called_outside_a_workflow_says_how_to_run_it() -> None:
    with pytest.raises(GraphError, match=r"\.run\(\.\.\.\)"):
        solve("x")
    with pytest.raises(GraphError, match=r"\.run\(\.\.\.\)"):
        solve.map(["x"])
    with pytest.raises(GraphError, match="a call in the body of an @fs.llm function"):
        fs.prompt("x")


def test_wrong_slos_and_names_of_workflows_are_reported() -> None:
    @fs.workflow(slo=fs.SLO(e2e=-1, tier="fast"), name="no name")
    def wrong(q: str) -> str:
        return q

    with pytest.raises(GraphError) as caught:
        _ = wrong.program
    text = str(caught.value)
    assert "e2e= a positive number" in text and "tier= one of" in text and "name='no name'" in text


def test_a_workflow_is_a_plain_function() -> None:
    async def wrong(q: str) -> str:
        return q

    assert "a plain function; got 'async def'" in problems_of(wrong)


def test_both_ways_of_an_if_on_a_value_are_looked_at() -> None:
    @fs.tool
    def count(text: str) -> int:
        """How long a text is."""
        return len(text)

    @fs.workflow()
    def wrong(text: str) -> int:
        if count(text) > 3:
            return count(count(text))  # type: ignore[arg-type]
        return count(text) + 1

    with pytest.raises(GraphError) as error:
        _ = wrong.program
    said = [str(problem) for problem in error.value.problems]
    assert len(said) == 3
    assert any("`if`" in line for line in said)
    assert any("got int" in line for line in said)
    assert any("arithmetic" in line for line in said)


def test_a_forgotten_return_a_method_and_a_model_of_values_get_a_remedy_that_helps() -> None:
    class Pair(BaseModel):
        left: str

    @fs.tool
    def up(text: str) -> str:
        """Capitals."""
        return text.upper()

    def forgot(q: str) -> str:  # type: ignore[return]
        up(q)

    def method(q: str) -> str:
        return up(q).lower()

    def model(q: str) -> Pair:
        return Pair(left=up(q))

    assert "got None. Has the function a `return`?" in problems_of(forgot)
    assert "str has no fields. Methods and other code belong in a @fs.tool" in problems_of(method)
    assert "got Pair(...) made of values that are not known yet. Write a @fs.tool function" in problems_of(model)
