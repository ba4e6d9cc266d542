"""Free items of prompts: only their order changes, by the tenant's own past, and what is shared with it is longest."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowserve as fs
from flowserve.engines.base import Call
from flowserve.engines.fake import FakeEngine
from flowserve.graphs.template import Piece, RenderedPrompt
from flowserve.runtime.orders import PromptOrders, RecentOrders
from flowserve.runtime.runner import Runtime

HEAD = b"head"
ITEMS = st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "e", ""]), max_size=6)


def proposed(orders: RecentOrders, items: Sequence[str], head: bytes = HEAD) -> tuple[int, ...]:
    return orders.proposed(head, [item.encode() for item in items], [len(item) for item in items])


def laid(orders: RecentOrders, items: Sequence[str], head: bytes = HEAD) -> list[str]:
    """The items as they are written, which is remembered."""
    found = [items[place] for place in proposed(orders, items, head)]
    orders.remember(head, [item.encode() for item in found])
    return found


def shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many of their first elements are equal."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def test_a_first_prompt_keeps_its_order() -> None:
    assert laid(RecentOrders(), ["b", "a", "c"]) == ["b", "a", "c"]


def test_known_items_come_first_in_the_order_they_had_and_new_ones_in_the_order_given() -> None:
    orders = RecentOrders()
    laid(orders, ["a", "b", "c"])
    assert laid(orders, ["x", "b", "y", "a"]) == ["a", "b", "x", "y"]


def test_an_item_that_began_no_prompt_cannot_be_shared() -> None:
    orders = RecentOrders()
    laid(orders, ["a", "b", "c"])
    assert laid(orders, ["c", "x", "b"]) == ["c", "x", "b"]


def test_the_longest_text_wins_before_the_latest() -> None:
    orders = RecentOrders()
    laid(orders, ["long " * 9, "b"])
    laid(orders, ["c", "d"])
    assert laid(orders, ["c", "d", "long " * 9]) == ["long " * 9, "c", "d"]


def test_of_equally_long_beginnings_the_latest_wins() -> None:
    orders = RecentOrders()
    laid(orders, ["a", "x"])
    laid(orders, ["b", "y"])
    assert laid(orders, ["a", "b"]) == ["b", "a"]


def test_what_stands_before_the_list_separates() -> None:
    orders = RecentOrders()
    laid(orders, ["a", "b"], b"one")
    assert laid(orders, ["b", "a"], b"two") == ["b", "a"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"x", b"y"]), ITEMS), max_size=12), st.integers(1, 9))
def test_every_order_is_a_permutation_and_the_tree_stays_within_its_bound(
    history: list[tuple[bytes, list[str]]], entries: int
) -> None:
    orders = RecentOrders(entries)
    for head, items in history:
        order = proposed(orders, items, head)
        assert sorted(order) == list(range(len(items)))
        assert len(laid(orders, items, head)) == len(items)
        assert len(orders) <= entries
        _check(orders)


def _check(orders: RecentOrders) -> None:
    """What is remembered hangs together: every place is reached from a head, and a parent is used after its children."""
    reached = 0
    stack = list(orders._heads.values())
    while stack:
        place = stack.pop()
        reached += 1
        assert place in orders._recent
        assert all(child.parent is place and child.used < place.used for child in place.children.values())
        stack += place.children.values()
    assert reached == len(orders)


@settings(max_examples=200, deadline=None)
@given(st.lists(ITEMS, max_size=8), ITEMS)
def test_no_permutation_shares_more_text_with_an_earlier_prompt(history: list[list[str]], items: list[str]) -> None:
    orders = RecentOrders()
    known = [laid(orders, earlier) for earlier in history]

    def gain(order: Sequence[str]) -> int:
        return max((sum(map(len, order[: shared(order, earlier)])) for earlier in known), default=0)

    assert gain(laid(orders, items)) == max(map(gain, itertools.permutations(items)))


@settings(max_examples=100, deadline=None)
@given(st.lists(ITEMS, max_size=8))
def test_a_prompt_made_again_at_once_is_the_same(history: list[list[str]]) -> None:
    orders = RecentOrders()
    for items in history:
        assert laid(orders, items) == laid(orders, items)


@pytest.mark.parametrize(("lookups", "written"), [(1, ["b", "long"]), (9, ["long", "b"])])
def test_a_walk_that_was_not_found_in_time_is_not_taken(lookups: int, written: list[str]) -> None:
    orders = RecentOrders(lookups=lookups)
    laid(orders, ["long"])
    laid(orders, ["b"])
    assert laid(orders, ["b", "long"]) == written


def test_forgetting_begins_with_what_was_used_longest_ago() -> None:
    orders = RecentOrders(entries=5)
    laid(orders, ["a", "b"])
    laid(orders, ["c", "d"])
    assert laid(orders, ["d", "c"]) == ["c", "d"], "five places: the head and four items"
    laid(orders, ["e"])
    assert laid(orders, ["b", "a"]) == ["a", "b"], "the end of the oldest order went, its beginning is known"


# --- prompts ------------------------------------------------------------------------------------------------------


def prompt(*free: str, system: str = "s", tail: str = "q") -> RenderedPrompt:
    user = (Piece("Use:", "template"), *(Piece(text, "chunk", free=True) for text in free), Piece(tail, "value"))
    return RenderedPrompt((Piece(system, "template"),), (), user)


def texts(rendered: RenderedPrompt) -> list[str]:
    return [piece.text for piece in rendered.user]


def test_only_the_free_pieces_move() -> None:
    orders = PromptOrders()
    orders.arranged("t", ("m",), prompt("a", "b"))
    moved = orders.arranged("t", ("m",), prompt("c", "b", "a", tail="another"))
    assert texts(moved) == ["Use:", "a", "b", "c", "another"]
    assert moved.system == prompt().system


@pytest.mark.parametrize(
    ("tenant", "model", "system"),
    [("u", "m", "s"), ("t", "n", "s"), ("t", "m", "other")],
    ids=["tenant", "model", "text"],
)
def test_another_tenant_another_model_and_other_text_before_it_share_nothing(
    tenant: str, model: str, system: str
) -> None:
    orders = PromptOrders()
    orders.arranged("t", ("m",), prompt("a", "b"))
    assert texts(orders.arranged(tenant, (model,), prompt("b", "a", system=system))) == ["Use:", "b", "a", "q"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), ITEMS), max_size=20))
def test_what_a_tenant_gets_does_not_depend_on_others(calls: list[tuple[bool, list[str]]]) -> None:
    together, alone = PromptOrders(), PromptOrders()
    for mine, items in calls:
        found = together.arranged("me" if mine else "you", ("m",), prompt(*items))
        if mine:
            assert found == alone.arranged("me", ("m",), prompt(*items))


def test_a_list_in_the_system_text_is_ordered_by_what_stands_before_it_there() -> None:
    orders = PromptOrders()

    def system(*items: str) -> RenderedPrompt:
        free = tuple(Piece(text, "chunk", free=True) for text in items)
        return RenderedPrompt(free, (), (Piece(f"about {items}", "value"),))

    orders.arranged("t", ("m",), system("a", "b"))
    assert [piece.text for piece in orders.arranged("t", ("m",), system("b", "a")).system] == ["a", "b"]


def test_a_prompt_without_free_pieces_is_left_alone() -> None:
    plain = RenderedPrompt((), (), (Piece("a", "chunk"), Piece("b", "chunk")))
    assert PromptOrders().arranged("t", ("m",), plain) is plain


# --- whole runs ---------------------------------------------------------------------------------------------------

HANDBOOK = [
    f"{subject} is kept in room {n}, on the shelf to the left. " * 4 for n, subject in enumerate(["Bread", "Salt"])
]


def asking(any_order: str | None, **options: Any) -> Any:
    @fs.llm(max_tokens=8, any_order=any_order, **options)
    def answer(question: str, passages: list[fs.Doc]) -> str:
        fs.prompt("{% for p in passages %}{{ p.text }}\n{% endfor %}Question: {{ question }}", system="Be brief.")

    @fs.workflow()
    def ask(question: str, passages: list[fs.Doc]) -> str:
        return answer(question, passages)

    return ask


def ids(call: Call) -> list[int]:
    return [i for segment in call.segments for i in segment.ids]


def reused(calls: Sequence[Call]) -> int:
    """Tokens that each call has in common with the beginning of an earlier one, all calls together."""
    found = [ids(call) for call in calls]
    return sum(max((shared(one, earlier) for earlier in found[:n]), default=0) for n, one in enumerate(found))


def calls_of(workflow: Any, searches: Sequence[Sequence[str]]) -> list[Call]:
    with fs.testing.engine(replies="ok") as session:
        for n, passages in enumerate(searches):
            workflow.run(f"number {n}", [fs.Doc(text) for text in passages])
        return session.calls


def test_two_searches_with_overlapping_passages_share_them_where_their_order_is_free() -> None:
    bread, salt = HANDBOOK
    searches = [[bread, salt], [salt, "Rice is out of stock.", bread]]
    fixed, free = calls_of(asking(None), searches), calls_of(asking("passages"), searches)
    assert fixed[1].prompt_text.index(salt) < fixed[1].prompt_text.index(bread), "as it was found"
    assert free[1].prompt_text.index(bread) < free[1].prompt_text.index(salt), "as the first search had it"
    assert Counter(ids(fixed[1])) == Counter(ids(free[1])), "the same tokens in another order"
    assert reused(fixed) < 20 and reused(free) > 100


def test_tokens_reused_in_a_hundred_searches_of_a_skewed_collection() -> None:
    chance = random.Random(7)
    passages = [f"Passage {n}: " + " ".join(f"word{n}x{i}" for i in range(30)) + "." for n in range(40)]
    weights = [1 / (n + 1) for n in range(40)]
    searches = [list(dict.fromkeys(chance.choices(passages, weights, k=8)))[:5] for _ in range(100)]
    given, free = calls_of(asking(None), searches), calls_of(asking("passages"), searches)
    by_text = calls_of(asking(None), [sorted(found) for found in searches])
    assert sum(len(ids(call)) for call in given) == 18_340
    assert [reused(given), reused(by_text), reused(free)] == [4_536, 7_055, 8_765]


@pytest.mark.parametrize("on_loss", ["continue", "restart"])
async def test_a_call_that_lost_its_engine_is_sent_again_as_it_was(
    on_loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = [FakeEngine("one two three four five six", id=name, token_delay_s=0.005) for name in "ab"]
    made: list[RenderedPrompt] = []

    def watched(
        orders: PromptOrders, tenant: str, for_whom: tuple[str, ...], rendered: RenderedPrompt
    ) -> RenderedPrompt:
        made.append(arranged(orders, tenant, for_whom, rendered))
        return made[-1]

    arranged = PromptOrders.arranged
    monkeypatch.setattr(PromptOrders, "arranged", watched)
    program = asking("passages", on_loss=on_loss).program
    runtime = Runtime(engines)
    await runtime.start()
    async with aclosing(runtime):
        for passages in (["Salt.", "Bread."], ["Bread.", "Salt."]):
            run = await runtime.submit(program, {"question": "q", "passages": [fs.Doc(text) for text in passages]})
            async for event in run.events():
                if event.type == "node.delta" and passages[0] == "Bread.":
                    break
        [busy] = [engine for engine in engines if engine.status().running]
        busy.crash()
        await run.result()
        [other] = [engine for engine in engines if engine is not busy]
        begun, again = busy.calls[-1], other.calls[-1]
    assert ids(begun) == ids(again) and begun.id != again.id
    assert "Salt.\nBread.\n" in again.prompt_text, "as the first prompt had it, not as it was given"
    assert len(made) == 2, "one per call, not per attempt"


def test_a_kept_answer_is_found_by_the_inputs_as_they_were_given() -> None:
    workflow = asking("passages", cache=True)
    docs = [fs.Doc("Bread is here."), fs.Doc("Salt is there.")]
    with fs.testing.engine(replies=lambda call: call.prompt_text) as session:
        first = workflow.run("q", docs)
        assert workflow.run("q", docs) == first
        assert len(session.calls) == 1
        assert workflow.run("q", docs[::-1]) == first, "another input: asked anew, with the prompt that it shares"
        assert len(session.calls) == 2
