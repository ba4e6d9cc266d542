"""Advice: each kind is given where it is true, and not where it would be wrong."""

from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

import flowserve.graphs as fs

RULES = "Answer from the passages only, name the passage that says it, and say so when none of them does. " * 3


def advice(workflow: Any) -> str:
    return "\n".join(map(str, workflow.check()))


@fs.llm
def ask(question: str, passages: list[fs.Doc]) -> str:
    fs.prompt("{% for p in passages %}{{ p.text }}\n{% endfor %}{{ question }}", system="Be brief.")


@fs.llm
def say(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.llm(temperature=0.9)
def draw(text: str) -> str:
    fs.prompt("{{ text }}")


handbook = fs.Index("handbook")


# --- prompts ------------------------------------------------------------------------------------------------------


def test_shared_text_after_a_variable_is_advised_against() -> None:
    @fs.llm
    def late(question: str, passages: list[fs.Doc]) -> str:
        fs.prompt("{{ question }}{% for p in passages %}{{ p.text }}{% endfor %}")

    @fs.workflow
    def w(q: str) -> str:
        return late(q, handbook.search(q))

    assert "Move {{ question }} after the passages of 'passages'" in advice(w)


def test_what_is_the_same_in_every_call_is_no_variable() -> None:
    @fs.llm
    def styled(style: str, question: str) -> str:
        fs.prompt("{{ question }}", system="Write like {{ style }}. " + RULES)

    @fs.workflow
    def constant(q: str) -> str:
        return styled("a sailor", q)

    @fs.workflow
    def given(q: str, style: str) -> str:
        return styled(style, q)

    assert advice(constant) == ""
    assert "Move {{ style }} after a long constant text" in advice(given)


def test_results_of_this_run_are_not_called_shared() -> None:
    @fs.llm
    def judge(question: str, answers: list[str]) -> str:
        fs.prompt("{{ question }}{% for a in answers %}{{ a }}{% endfor %}")

    @fs.workflow
    def w(q: str) -> str:
        return judge(q, say.map([q, q], max_width=2))

    assert "shared text" not in advice(w)


def test_passages_outside_of_a_loop_and_unread_parameters_are_found() -> None:
    @fs.llm
    def lump(question: str, passages: list[fs.Doc], unread: int) -> str:
        fs.prompt("{{ passages }}{{ question }}")

    @fs.workflow
    def w(q: str) -> str:
        return lump(q, handbook.search(q), 1)

    text = advice(w)
    assert "passages 'passages' in a top-level {% for %}" in text
    assert "'unread' is never read" in text


@pytest.mark.parametrize("over", ["passages", "passages[:3]", "passages|reverse"])
def test_any_top_level_loop_over_passages_will_do(over: str) -> None:
    node = fs.llm(_prompting(f"{{% for p in {over} %}}{{{{ p.text }}}}{{% endfor %}}"))

    @fs.workflow
    def w(q: str) -> str:
        return node(handbook.search(q))

    assert advice(w) == ""


def _prompting(source: str) -> Any:
    def asked(passages: list[fs.Doc] | None) -> str:
        fs.prompt(source)

    return asked


def test_passages_that_may_be_missing_are_passages_too() -> None:
    node = fs.llm(_prompting("{% if passages %}{% for p in passages %}{{ p.text }}{% endfor %}{% endif %}"))

    @fs.workflow
    def w(q: str) -> str:
        return node(handbook.search(q))

    assert "passages 'passages' in a top-level {% for %}" in advice(w)


@pytest.mark.parametrize(
    ("system", "told"),
    [
        ("Today is {{ today }}. Answer in the language of the question.", True),
        ("Answer in the language of the question. Today is {{ today }}.", False),
        ("Answer in the language of the question.", False),
    ],
)
def test_a_date_in_front_of_the_rules_is_told(system: str, told: bool) -> None:
    @fs.llm
    def dated(today: str, question: str) -> str:
        fs.prompt("{{ today }}: {{ question }}", system=system)

    @fs.workflow
    def w(today: str, q: str) -> str:
        return dated(today, q)

    assert ("dated: expected a system prompt that is always the same; got 'today' inside it" in advice(w)) == told


# --- prompts together ----------------------------------------------------------------------------------------------


def pair(first: dict[str, str], other: dict[str, str]) -> Any:
    """Two calls about the same passages; each with its own prompt."""

    def reader(name: str, texts: dict[str, Any]) -> Any:
        def read(q: str, docs: list[fs.Doc]) -> str:
            fs.prompt(**texts)

        return fs.llm(name=name)(read)

    one, two = reader("one", first), reader("two", other)

    @fs.workflow
    def w(q: str) -> list[str]:
        found = handbook.search(q)
        return [one(q, found), two(q, found)]

    return w


LOOP = "{% for d in docs %}{{ d.text }}\n{% endfor %}"
PARTED = "expected prompts that begin alike where they read the result of search; got one and two, which differ in"


@pytest.mark.parametrize(
    ("first", "other", "where"),
    [
        ({"user": LOOP + "A {{ q }}"}, {"user": LOOP + "B {{ q }}"}, None),
        ({"user": LOOP, "system": "A"}, {"user": LOOP + "{{ q }}", "system": "B"}, "the system prompt"),
        ({"user": LOOP}, {"user": LOOP, "system": "B"}, "the system prompt"),
        ({"user": "Read:\n" + LOOP}, {"user": LOOP}, "the text before them"),
        ({"user": LOOP}, {"user": LOOP.replace("\n", "\n\n")}, "how each is written"),
        ({"user": LOOP}, {"user": "{% for x in docs %}{{ x.text }}\n{% endfor %}"}, None),
        ({"user": "{{ q }}" + LOOP}, {"user": "{{ q }}" + LOOP}, None),
    ],
)
def test_calls_on_the_same_passages_should_begin_alike(
    first: dict[str, str], other: dict[str, str], where: str | None
) -> None:
    text = advice(pair(first, other))
    assert (f"{PARTED} {where}" in text) if where is not None else PARTED not in text


def test_names_of_parameters_do_not_part_prompts_but_their_values_do() -> None:
    @fs.llm
    def renamed(query: str, found: list[fs.Doc]) -> str:
        fs.prompt("The question:\n{% for p in found %}{{ p.text }}\n{% endfor %}Now: {{ query }}", system="Be brief.")

    @fs.llm
    def styled(style: str, docs: list[fs.Doc]) -> str:
        fs.prompt("{% for p in docs %}{{ p.text }}\n{% endfor %}", system="Like {{ style }}.")

    @fs.llm
    def original(question: str, passages: list[fs.Doc]) -> str:
        fs.prompt("The question:\n{% for p in passages %}{{ p.text }}\n{% endfor %}{{ question }}", system="Be brief.")

    @fs.workflow
    def alike(q: str) -> list[str]:
        found = handbook.search(q)
        return [original(q, found), renamed(q, found)]

    @fs.workflow
    def parted(q: str) -> list[str]:
        found = handbook.search(q)
        return [styled("a sailor", found), styled("a poet", found)]

    assert advice(alike) == ""
    assert "got styled and styled_2, which differ in the system prompt" in advice(parted)


def test_computed_values_are_not_said_to_differ() -> None:
    @fs.llm
    def counted(count: int, docs: list[fs.Doc]) -> str:
        fs.prompt("{{ count }}\n{% for p in docs %}{{ p.text }}\n{% endfor %}")

    @fs.workflow
    def w(q: str) -> list[str]:
        found = handbook.search(q)
        return [counted(fs.length(found), found), counted(fs.length([q, q]), found)]

    assert "begin alike" not in advice(w)


def test_only_what_one_run_sends_to_one_model_can_be_shared() -> None:
    other_model = ask.options(model="small", name="small_ask")

    @fs.llm
    def longer(question: str, passages: list[fs.Doc]) -> str:
        fs.prompt("{% for p in passages %}{{ p.text }}\n{% endfor %}{{ question }}", system="Be thorough.")

    @fs.workflow
    def models(q: str) -> list[str]:
        found = handbook.search(q)
        return [other_model(q, found), longer(q, found)]

    @fs.workflow
    def arms(q: str, brief: bool) -> str:
        found = handbook.search(q)
        return fs.when(brief, then=lambda: ask(q, found), otherwise=lambda: longer(q, found))

    @fs.workflow
    def searches(q: str) -> list[str]:
        return [ask(q, handbook.search(q)), longer(q, handbook.search(q, k=9))]

    assert [advice(w) for w in (models, arms, searches)] == ["", "", ""]


# --- the graph ------------------------------------------------------------------------------------------------------


def test_unused_results_open_widths_and_long_chains_are_found(snippets: ModuleType) -> None:
    @fs.workflow
    def w(items: list[str]) -> str:
        snippets.combine(items)
        return snippets.combine(snippets.summarise.map(items))

    text = advice(w)
    assert "combine: expected a result that something uses" in text
    assert "summarise.map: expected a width that is known; got no max_width (up to 10,000 calls)" in text
    assert "2 one after the other at most: summarise.map, combine_2 (about" in text


def test_a_tool_that_is_called_for_its_effect_has_no_result_to_use() -> None:
    @fs.tool
    def note(text: str) -> None:
        """Write it down."""

    @fs.tool
    def count(text: str) -> int:
        """Count the words."""
        return len(text.split())

    @fs.workflow
    def w(q: str) -> str:
        note(q)
        count(q)
        return say(q)

    assert (
        advice(w)
        == "count: expected a result that something uses; got one that nothing reads. Remove the call, or return its result."
    )


def test_a_width_that_follows_from_the_list_needs_no_bound() -> None:
    @fs.workflow
    def known(q: str) -> list[list[str]]:
        read = _prompting("{% for p in passages %}{{ p.text }}{% endfor %}")
        found = handbook.search.map([q, q], k=4)
        return [say.map(say.map([q, q, q])), fs.llm(read).map(found), say.map(say.sample(3)(q))]

    @fs.workflow
    def unknown(texts: list[str]) -> list[str]:
        return say.map(say.map(texts))

    assert "max_width" not in advice(known)
    assert advice(unknown).count("no max_width") == 2


def test_inputs_that_nothing_reads_are_found() -> None:
    @fs.workflow
    def w(q: str, style: str, strict: bool) -> str:
        return say(q)

    assert "w: expected inputs that are used; got style, strict read by nothing" in advice(w)


@pytest.mark.parametrize(("rounds", "told"), [(100, False), (101, True)])
def test_a_bound_of_more_calls_than_anybody_waits_for_is_told(rounds: int, told: bool) -> None:
    @fs.workflow
    def w(q: str) -> str:
        return fs.loop(say, q, until=lambda s: s == "done", max_iters=rounds)

    text = advice(w)
    assert (
        "loop: expected a bound that ends a run which goes astray; got max_iters=101: up to 101 model calls" in text
    ) == told


@pytest.mark.parametrize(("outer", "inner", "told"), [(5, 30, "loop"), (5, 200, "loop_2"), (5, 20, None)])
def test_of_nested_bounds_the_one_is_told_that_makes_them_too_large(outer: int, inner: int, told: str | None) -> None:
    @fs.workflow
    def w(q: str) -> str:
        def body(s: str) -> str:
            return fs.loop(say, s, max_iters=inner)

        return fs.loop(body, q, max_iters=outer)

    assert [problem.where for problem in w.check() if "astray" in problem.expected] == ([told] if told else [])


def test_agents_dynamics_and_loops_of_tools_have_bounds_too() -> None:
    @fs.tool
    def poll(state: str) -> str:
        """Ask again."""
        return state

    @fs.dynamic(calls=[say], max_calls=500)
    async def free(q: str) -> str:
        return await say.acall(q)

    worker = fs.agent(tools=[poll], max_steps=200, name="worker")

    @fs.workflow
    def w(q: str) -> list[str]:
        return [worker(q), free(q), fs.loop(poll, q, max_iters=5_000)]

    text = advice(w)
    for part in ("max_steps=200: up to 200", "max_calls=500: up to 500", "max_iters=5,000 rounds"):
        assert part in text


class Draft(BaseModel):
    text: str
    score: int


def test_rounds_that_do_not_need_each_other_are_told() -> None:
    @fs.workflow
    def drawn(q: str) -> str:
        return fs.loop(lambda _: draw(q), q, until=lambda s: s == "good", max_iters=4)

    @fs.workflow
    def same(q: str) -> str:
        return fs.loop(lambda _: say(q), q, until=lambda s: s == "good", max_iters=4)

    @fs.workflow
    def building(q: str) -> str:
        return fs.loop(draw, q, until=lambda s: s == "good", max_iters=4)

    assert "loop: expected rounds that build on each other; got a body that does not read the state" in advice(drawn)
    assert "loop: expected rounds that can differ; got a body that does not read the state" in advice(same)
    assert "rounds" not in advice(building)


def test_rounds_that_a_pass_takes_out_or_that_have_effects_are_not_told() -> None:
    @fs.tool
    def poll(name: str) -> str:
        """Whether it is ready."""
        return name

    @fs.workflow
    def hoisted(q: str) -> str:
        return fs.loop(lambda _: say(q), q, max_iters=4)

    @fs.workflow
    def polling(q: str) -> str:
        return fs.loop(lambda _: say(poll(q)), q, until=lambda s: s == "ready", max_iters=4)

    assert [change.name for change in hoisted.program.rewriting.changes] == ["hoist"]
    assert "rounds" not in advice(hoisted) and "rounds" not in advice(polling)


@pytest.mark.parametrize(("node", "told"), [(say, True), (draw, False)])
def test_greedy_samples_are_told(node: Any, told: bool) -> None:
    @fs.workflow
    def w(q: str) -> str:
        return node.sample(5, vote="")(q)

    assert ("samples that can differ; got temperature=0 in all that is sampled: 5 times the same" in advice(w)) == told


def test_samples_of_what_a_tool_gives_may_differ() -> None:
    @fs.tool
    def dice(text: str) -> str:
        """Roll them."""
        return text

    @fs.workflow
    def inner(q: str) -> str:
        return say(dice(q))

    @fs.workflow
    def w(q: str) -> str:
        return inner.sample(5, vote="")(q)

    assert "samples" not in advice(w)


def test_a_call_that_waits_for_a_whole_map_to_read_one_item_is_told() -> None:
    @fs.workflow
    def w(items: list[str]) -> list[str]:
        parts = say.map(items, max_width=9)
        return [draw(parts[0]), ask(parts[1], handbook.search(parts[2]))]

    text = advice(w)
    assert "draw: expected a call that begins when its inputs are there; got one item of 'say.map' read" in text
    assert "ask: expected a call that begins" not in text, "it waits for the search as well, which may wait for the map"


def test_a_call_that_reads_the_whole_map_waits_for_it_rightly(snippets: ModuleType) -> None:
    @fs.workflow
    def w(items: list[str]) -> str:
        return snippets.combine(say.map(items, max_width=9))

    assert "begins when" not in advice(w)


# --- all of it ------------------------------------------------------------------------------------------------------


def test_good_workflows_get_no_advice(snippets: ModuleType) -> None:
    assert snippets.rag.check() == ()
    assert snippets.chat.check() == ()


def test_the_estimate_names_loops_with_their_calls_and_stops_after_a_few_names() -> None:
    @fs.workflow
    def w(q: str) -> str:
        for _ in range(8):
            q = say(q)
        return fs.loop(say, q, max_iters=3)

    assert "11 one after the other at most: say, say_2, say_3, say_4, say_5, say_6 and 3 more (about" in advice(w)


def test_hundreds_of_calls_that_differ_are_one_piece_of_advice_or_none() -> None:
    """What compares each with each would hold up a server that is sent such a spec."""

    @fs.llm
    def styled(style: str, docs: list[fs.Doc]) -> str:
        fs.prompt("{% for p in docs %}{{ p.text }}\n{% endfor %}", system="Like {{ style }}.")

    styles = [f"style {n}" for n in range(400)]

    @fs.workflow
    def together(q: str) -> list[str]:
        found = handbook.search(q)
        return [styled(style, found) for style in styles]

    @fs.workflow
    def either(q: str) -> str:
        found = handbook.search(q)
        arms = {style: lambda style=style: styled(style, found) for style in styles}
        return fs.match(q, arms, otherwise=lambda: styled("none", found))

    assert advice(together).count("begin alike") == 1
    assert advice(either) == ""
