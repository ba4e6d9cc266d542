"""Passes: what each does, where it must not, and that results stay on random workflows."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from random import Random
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

import flowserve as fs
from flowserve.config import RuntimeConfig
from flowserve.engines.base import Call
from flowserve.graphs.compile import compile_declaration
from flowserve.graphs.draw import outline
from flowserve.graphs.passes import PASSES, rewrite
from flowserve.graphs.passes.lift import declaration_of
from flowserve.graphs.plan import Kind, Plan

EFFECTS: list[str] = []


@fs.llm(max_tokens=32)
def say(text: str) -> str:
    fs.prompt("Say {{ text }}")


@fs.llm(max_tokens=32)
def weigh(text: str, unread: str) -> str:
    fs.prompt("Weigh {{ text }}")


@fs.llm(max_tokens=32, temperature=0.7)
def invent(text: str) -> str:
    fs.prompt("Invent from {{ text }}")


@fs.llm(max_tokens=64)
def several(text: str) -> list[str]:
    fs.prompt("Parts of {{ text }}")


class Parts(BaseModel):
    about: str
    items: list[str]


@fs.llm(max_tokens=64)
def outlined(text: str) -> Parts:
    fs.prompt("Outline of {{ text }}")


@fs.llm(max_tokens=32)
def join(parts: list[str]) -> str:
    fs.prompt("{% for p in parts %}{{ p }};{% endfor %}")


@fs.tool(effects=False, cache=True)
def shout(text: str) -> str:
    return text.upper()


@fs.llm(max_tokens=64)
def nested(text: str) -> list[list[str]]:
    fs.prompt("Parts of parts of {{ text }}")


@fs.tool(effects=False)
def letters(text: str) -> list[str]:
    return list(text)


@fs.tool(effects=False)
def roll(text: str) -> str:
    return text[::-1]


@fs.tool
def note(text: str) -> str:
    EFFECTS.append(text)
    return f"noted {text}"


shelf = fs.Index("shelf")


def plan_of(fn: Callable[..., Any]) -> Plan:
    return fs.workflow()(fn).program.plan


def changes(plan: Plan, *names: str) -> list[str]:
    return [str(change) for change in rewrite(plan, names or tuple(PASSES)).changes]


def names(plan: Plan) -> list[str]:
    return [node.name for node in plan.nodes]


# --- lifting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rag", "summary", "research", "reason", "essay"])
def test_a_plan_that_was_lifted_compiles_to_itself(snippets: ModuleType, name: str) -> None:
    plan = getattr(snippets, name).program.plan
    assert compile_declaration(declaration_of(plan)) == plan


# --- each pass --------------------------------------------------------------------------------------------------------


def test_an_item_of_a_written_list_is_taken_at_once() -> None:
    @fs.workflow()
    def both(text: str) -> tuple[str, str]:
        return say(text), invent(text)

    def w(text: str) -> str:
        first, second = both(text)
        return join([say(first), second])

    plan = plan_of(w)
    (reader,) = (i for i, node in enumerate(plan.nodes) if node.kind is Kind.LLM and node.deps and node.name != "join")
    assert len(plan.nodes[reader].deps) == 2  # of the pair, its reader waits for both
    assert len(rewrite(plan, ["project"]).plan.nodes[reader].deps) == 1


def test_a_prompt_does_not_wait_for_what_it_does_not_read() -> None:
    def w(text: str) -> str:
        return weigh(text, invent(text))

    plan = plan_of(w)
    assert changes(plan) == [
        "prune: weigh does not wait for 'unread', which its prompt does not read",
        "prune: invent is not called: nothing reads its result",
    ]
    assert names(rewrite(plan).plan) == ["weigh"]


def test_what_may_have_effects_is_called_though_nothing_reads_it() -> None:
    def w(text: str) -> str:
        note(text)
        roll(text)
        return say(text)

    assert names(rewrite(plan_of(w)).plan) == ["note", "say"]


def test_equal_calls_are_one() -> None:
    def w(text: str) -> str:
        return join([say(say(text)), say(say(text)), say(text)])

    plan = plan_of(w)
    assert names(rewrite(plan, ["merge"]).plan) == ["say", "say_2", "join"]
    assert changes(plan, "merge") == [
        "merge: say_3 is say: equal calls",
        "merge: say_4 is say_2: equal calls",
        "merge: say_5 is say: equal calls",
    ]


def test_calls_that_may_differ_are_not_one() -> None:
    def w(text: str) -> str:
        return join(
            [
                invent(text),
                invent(text),
                roll(text),
                roll(text),
                note(text),
                note(text),
                say(text),
                say.options(retry=2)(text),
            ]
        )

    plan = plan_of(w)
    assert rewrite(plan) == type(rewrite(plan))(plan, ())


def test_equal_maps_are_one() -> None:
    def w(text: str) -> str:
        parts = several(text)
        return join([join(say.map(parts)), join(say.map(parts))])

    after = rewrite(plan_of(w), ["merge"]).plan
    assert [node.kind for node in after.nodes].count(Kind.MAP) == 1


def test_equal_calls_of_two_arms_stay_two() -> None:
    def w(text: str, loud: bool) -> str:
        return fs.when(loud, then=lambda: shout(say(text)), otherwise=lambda: say(text))

    assert changes(plan_of(w)) == []


def test_what_is_the_same_in_every_round_is_done_once_before_the_first() -> None:
    def w(text: str) -> str:
        return fs.loop(lambda s: join([shelf.search(text, k=1)[0].text, s]), text, max_iters=3)

    after = rewrite(plan_of(w), ["hoist"])
    assert [change.what for change in after.changes] == ["search is called once, before loop"]
    search, loop = (after.plan.nodes[i] for i in after.plan.blocks[0].nodes)
    assert (search.kind, loop.kind, loop.deps) == (Kind.SEARCH, Kind.LOOP, (search.id,))


def test_a_search_leaves_samples_and_a_model_call_does_not() -> None:
    @fs.workflow()
    def attempt(text: str, whole: str) -> str:
        return invent(join([shelf.search(whole, k=1)[0].text, text]))

    def w(text: str) -> list[str]:
        return attempt.sample(3)(text, text)

    def greedy(text: str) -> list[str]:
        return say.sample(3)(text)

    assert len(changes(plan_of(w), "hoist")) == 1
    assert changes(plan_of(greedy), "hoist") == []


def test_what_the_rest_does_not_wait_for_stays_where_it_is() -> None:
    def w(text: str) -> str:
        return fs.loop(lambda s: join([shelf.search(text, k=1)[0].text, say(s)]), text, max_iters=3)

    assert changes(plan_of(w), "hoist") == []


def test_nothing_is_moved_out_of_what_may_not_run() -> None:
    def until(text: str) -> str:
        return fs.loop(lambda s: join([shout(text), s]), text, until=lambda s: s == "done", max_iters=3)

    def item(text: str) -> str:
        return join(fs.workflow()(_loud).map(several(text), whole=text))

    assert changes(plan_of(until), "hoist") == []
    assert changes(plan_of(item), "hoist") == []


def _loud(part: str, whole: str) -> str:
    return join([shout(whole), part])


def test_a_map_over_a_map_goes_item_by_item() -> None:
    def w(text: str) -> str:
        return join(say.map(shout.map(several(text))))

    plan = plan_of(w)
    assert [node.kind for node in plan.nodes].count(Kind.MAP) == 2
    after = rewrite(plan, ["fuse"])
    assert len(after.changes) == 1
    (whole,) = [node for node in after.plan.nodes if node.kind is Kind.MAP]
    body = after.plan.blocks[whole.bodies[0]]
    first, second = (after.plan.nodes[i] for i in body.nodes)
    assert first.kind is Kind.TOOL and second.kind is Kind.LLM and second.deps == (first.id,)


def test_maps_stay_apart_where_somebody_else_reads_the_first_or_the_second_has_effects() -> None:
    def read_twice(text: str) -> str:
        loud = shout.map(several(text))
        return join([join(loud), join(say.map(loud))])

    def effects(text: str) -> str:
        return join(note.map(say.map(several(text))))

    def later(text: str) -> str:
        return join(weigh.map(shout.map(several(text)), unread=invent(text)))

    def widths(text: str) -> str:
        return join(say.map(shout.map(several(text), concurrency=2)))

    for w in (read_twice, effects, later, widths):
        assert changes(plan_of(w), "fuse") == [], w.__name__


def test_results_that_are_written_out_are_not_multiplied_by_joining_maps() -> None:
    """Sixty of these would make an expression of 2 ** 60 items."""

    @fs.workflow()
    def double(item: Any) -> list[Any]:
        return [item, item]

    def w(items: list[Any]) -> list[Any]:
        found: Any = items
        for _ in range(60):
            found = double.map(found)
        return found

    assert changes(fs.workflow()(w).program.plan, "fuse") == []


def test_a_path_of_fields_does_not_grow_without_end() -> None:
    @fs.workflow()
    def inner(item: list[Any]) -> Any:
        return item[0]

    def w(items: list[Any]) -> list[Any]:
        found: Any = items
        for _ in range(100):
            found = inner.map(found)
        return found

    after = rewrite(fs.workflow()(w).program.plan, ["fuse"]).plan
    assert 10 < len(after.nodes) < 20, "eight at a time"


def test_a_map_over_what_a_call_writes_takes_its_items_while_they_are_written() -> None:
    def whole(text: str) -> list[str]:
        return say.map(several(text))

    def field(text: str) -> list[str]:
        return say.map(outlined(text).items)

    def inside(text: str) -> list[list[str]]:
        return fs.workflow()(whole).map([text, text])

    for w, writer in ((whole, "several"), (field, "outlined"), (inside, "whole/several")):
        after = rewrite(plan_of(w), ["stream"])
        (change,) = after.changes
        assert change.what.endswith(f"takes items of {writer} while they are written"), w.__name__
        (map,) = [node for node in after.plan.nodes if node.streams is not None]
        assert after.plan.nodes[map.streams or 0].name == writer and map.streams in map.deps
        assert compile_declaration(declaration_of(after.plan)) == after.plan
        assert after.plan.digest != plan_of(w).digest
        assert "as they are written" in outline(after.plan)


def test_maps_wait_for_the_whole_list_where_beginning_early_could_be_noticed() -> None:
    def effects(text: str) -> list[str]:
        return note.map(several(text))

    def zipped(text: str) -> list[str]:
        return weigh.map(several(text), several(text))

    def tool(text: str) -> list[str]:
        return say.map(letters(text))

    def before(text: str) -> list[str]:
        parts = several(text)
        return fs.loop(lambda s: say.map(parts), parts, max_iters=2)

    def item(text: str) -> list[str]:
        return say.map(nested(text)[0])

    def more(text: str) -> list[str]:
        parts = outlined(text)
        return weigh.map(parts.items, unread=parts.about)

    for w in (effects, zipped, tool, before, item, more):
        assert changes(plan_of(w), "stream") == [], w.__name__


@pytest.mark.parametrize("shape", ["chain", "loop", "maps"])
def test_a_plan_of_hundreds_of_nodes_is_rewritten_whole(shape: str) -> None:
    """What takes a step per pair of nodes or worse would hold up a server that is sent such a spec."""
    count = 400

    def w(text: str) -> str:
        if shape == "loop":
            return fs.loop(lambda s: join([chained(text), s]), text, max_iters=2)
        if shape == "maps":
            items: Any = several(text)
            for _ in range(count):
                items = say.map(items)
            return join(items)
        chained(text)
        return say(text)

    def chained(value: str) -> str:
        for _ in range(count):
            value = shout(value)
        return value

    found = rewrite(fs.workflow()(w).program.plan)
    assert len(found.changes) == count  # of the maps all but one are joined, and what is left streams


# --- all together -----------------------------------------------------------------------------------------------------


class Writer:
    """A random workflow, written as a person would write one."""

    def __init__(self, seed: int) -> None:
        self.rnd = Random(seed)

    def workflow(self) -> fs.Workflow[..., Any]:
        def w(text: str, other: str) -> list[str]:
            have: list[Any] = [text, other, "fixed"]
            for _ in range(self.rnd.randint(1, 7)):
                have.append(self.value(have, 2))
            return [self.rnd.choice(have) for _ in range(self.rnd.randint(1, 3))]

        return fs.workflow()(w)

    def value(self, have: list[Any], depth: int) -> Any:
        """A call on some of what there is."""
        rnd, one = self.rnd, lambda: self.rnd.choice(have)
        kinds: list[Callable[[], Any]] = [
            lambda: say(one()),
            lambda: shout(one()),
            lambda: roll(one()),
            lambda: note(one()),
            lambda: self.twice(one()),
            lambda: weigh(one(), one()),
            lambda: join([one(), one(), one()]),
            lambda: shelf.search(one(), k=1)[0].text,
            lambda: [one(), one()][rnd.randint(0, 1)],
            lambda: say(self.pair(one(), one())[rnd.randint(0, 1)]),
        ]
        if depth:
            kinds += [lambda: self.mapped(have, depth), lambda: self.looped(have, depth), lambda: self.sampled(have)]
            kinds.append(lambda: self.branch(have, depth))
        return rnd.choice(kinds)()

    def twice(self, value: Any) -> Any:
        node = self.rnd.choice([say, shout, roll, invent, note])
        return join([node(value), node(value)])

    def pair(self, a: Any, b: Any) -> Any:
        return fs.workflow()(_pair)(a, b)

    def mapped(self, have: list[Any], depth: int) -> Any:
        rnd = self.rnd
        lists: list[Callable[[], Any]] = [
            lambda: several(rnd.choice(have)),
            lambda: outlined(rnd.choice(have)).items,
            lambda: [rnd.choice(have) for _ in range(2)],
        ]
        items = rnd.choice(lists)()
        wide = self.rnd.choice([None, 1, 3])
        for _ in range(self.rnd.randint(1, 3)):
            node = self.rnd.choice([say, shout, roll, note, self.body(have)])
            items = node.map(items, concurrency=wide)
        return join(items)

    def body(self, have: list[Any]) -> Any:
        first, second = self.rnd.choice([say, shout]), self.rnd.choice([say, roll])
        outer = self.rnd.choice(have)
        free = self.rnd.random() < 0.5

        def inside(item: str) -> str:
            base = first(outer) if free else first(item)
            return join([second(base), item, base])

        return fs.workflow()(inside)

    def looped(self, have: list[Any], depth: int) -> Any:
        outer = self.rnd.choice(have)
        until = self.rnd.choice([None, lambda s: s == "x"])
        return fs.loop(
            lambda s: join([say(shout(outer)), s, self.value([s, outer], depth - 1)]),
            self.rnd.choice(have),
            until=until,
            max_iters=2,
        )

    def sampled(self, have: list[Any]) -> Any:
        return join(self.rnd.choice([say, invent]).sample(3)(self.rnd.choice(have)))

    def branch(self, have: list[Any], depth: int) -> Any:
        return fs.when(
            self.rnd.choice(have) == "a",
            then=lambda: self.value(have, depth - 1),
            otherwise=lambda: self.value(have, depth - 1),
        )


def _pair(a: str, b: str) -> tuple[str, str]:
    return say(a), shout(b)


def scripted(call: Call) -> Any:
    """An answer that the prompt alone decides."""
    text = call.meta["prompt"] if "prompt" in call.meta else " ".join(map(str, call.prompt_ids))
    mark = hashlib.sha256(f"{text} {call.sampling.seed if call.sampling.temperature else ''}".encode()).hexdigest()
    if call.schema is not None:
        items = [mark[i : i + 4] for i in range(0, 4 * (int(mark[0], 16) % 4), 4)]
        return json.dumps(items if call.schema["type"] == "array" else {"about": mark, "items": items})
    return mark[:6]


def outcome(workflow: fs.Workflow[..., Any], passes: bool) -> tuple[Any, Counter[str], int, set[Any]]:
    EFFECTS.clear()
    texts = {"shelf": ["one thing", "another thing", "a third"]}
    with fs.testing.engine(scripted, indexes=texts, config=RuntimeConfig(passes=passes)) as session:
        result = workflow.options(seed=7).run("a", "b")
        asked = {call.prompt_ids for call in session.calls}
        return result, Counter(EFFECTS), len(session.calls), asked


def test_random_workflows_give_the_same_results_from_no_more_calls() -> None:
    found: Counter[str] = Counter()
    saved = 0
    for seed in range(150):
        workflow = Writer(seed).workflow()
        program = workflow.program
        assert compile_declaration(declaration_of(program.plan)) == program.plan
        found.update(change.name for change in program.rewriting.changes)
        if not program.rewriting.changes:
            continue
        declared, rewritten = outcome(workflow, False), outcome(workflow, True)
        assert rewritten[:2] == declared[:2], seed
        assert rewritten[2] <= declared[2] and rewritten[3] <= declared[3], seed
        saved += declared[2] - rewritten[2]
    assert all(found[name] >= 3 for name in PASSES), found
    assert saved > 100


def test_a_run_tells_the_version_of_what_was_declared_and_overrides_see_the_declared_nodes() -> None:
    @fs.workflow()
    def twice(text: str) -> str:
        return join([say(text), say(text)])

    with fs.testing.engine(scripted) as session:
        twice.run("a")
        assert len(session.calls) == 2
        twice.options(overrides={"say_2": {"temperature": 0.5}}).run("a")
        assert len(session.calls) == 5
    assert twice.program.rewritten.version == twice.program.version == twice.program.plan.digest
