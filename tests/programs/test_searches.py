"""Searches over lines of steps: tree of thoughts, Rebase and MCTS on small trees whose every value is known."""

from typing import Any

import pytest
from pydantic import BaseModel

import flowserve as fs
from flowserve import errors, programs
from flowserve.engines.base import Call
from flowserve.programs import Certaindex


class Step(BaseModel):
    text: str
    final: str = ""


def is_final(step: Step) -> bool:
    return step.final != ""


@fs.llm(temperature=0.8, seed=5)
def think(problem: str, path: list[Step]) -> Step:
    fs.prompt("{{ problem }}:{% for s in path %} {{ s.text }}{% endfor %}")


@fs.llm(temperature=0.8)
def suggest(problem: str, path: list[str]) -> list[str]:
    fs.prompt("{{ problem }}:{% for s in path %} {{ s }}{% endfor %}")


@fs.llm()
def judge(path: list[str], problem: str) -> float:
    fs.prompt("{{ problem }}={% for s in path %} {{ s }}{% endfor %}")


@fs.llm()
def reward(problem: str, path: list[Step]) -> float:
    fs.prompt("{{ problem }}={% for s in path %} {{ s.text }}{% endfor %}")


def words(call: Call, sign: str) -> str:
    """The texts of the path in a prompt of the nodes above."""
    return call.prompt_text.rpartition(sign)[2].partition("<|end|>")[0].strip()


def kinds(session: Any) -> dict[str, int]:
    names = [call.meta["node"].rpartition("/")[2] for call in session.calls]
    return {name: names.count(name) for name in sorted(set(names))}


# --- tree of thoughts -----------------------------------------------------------------------------------------

LETTERS = {
    "": 0.0,
    "a": 0.5,
    "b": 0.9,
    "c": 0.7,
    "a a": 1.0,
    "b a": 0.2,
    "b b": 0.3,
    "b c": 0.1,
    "c a": 0.4,
    "c b": 0.8,
    "c c": 0.0,
}


def letters(**changes: Any) -> dict[str, Any]:
    return {"suggest": ["a", "b", "c"], "judge": lambda call: LETTERS[words(call, "=")]} | changes


def always(value: Any) -> Any:
    return lambda call: value


def test_the_best_thoughts_go_on_and_the_best_line_is_the_answer() -> None:
    tree = programs.tree_of_thoughts(suggest, judge, breadth=3, depth=2, keep=2)
    with fs.testing.engine(letters(suggest=always(["a", "b", "c"]))) as session:
        result = tree.run(problem="p")
    assert (result.path, result.answer, result.score, result.finished) == (["c", "b"], "b", 0.8, True)
    assert result.levels == [[0.9, 0.7]], "'a a' would have been better, but 'a' was not kept"
    assert result.rewards == [0.2, 0.3, 0.1, 0.4, 0.8, 0.0]
    assert kinds(session) == {"judge": 9, "suggest": 3} and (result.calls, result.drawn) == (12, 3)
    assert (result.ended, result.why) == ("complete", "all 3 branches were drawn")


def test_a_list_of_thoughts_counts_up_to_the_breadth() -> None:
    tree = programs.tree_of_thoughts(suggest, judge, breadth=1, depth=1, keep=5)
    with fs.testing.engine(letters(suggest=always(["a", "b", "c"]))) as session:
        result = tree.run(problem="p")
    assert (result.path, result.rewards, result.calls) == (["a"], [0.5], 2)
    assert kinds(session) == {"judge": 1, "suggest": 1}


def test_single_thoughts_are_asked_for_as_often_as_the_tree_is_broad_and_answers_end_a_line() -> None:
    tree = programs.tree_of_thoughts(think, reward, breadth=2, depth=3, keep=1, done=is_final)
    steps = [Step(text="x"), Step(text="y"), Step(text="z", final="42"), Step(text="w"), Step(text="u"), Step(text="v")]
    worth = {"x": 0.6, "y": 0.2, "x z": 0.7, "x w": 0.5, "x w u": 0.9, "x w v": 0.1}
    with fs.testing.engine({"think": steps, "reward": lambda call: worth[words(call, "=")]}):
        result = tree.run(problem="p")
    assert [step.text for step in result.path] == ["x", "z"], (
        "a line without an answer is no solution, whatever its score"
    )
    assert (result.finished, result.votes, result.calls) == (True, {'{"text": "z", "final": "42"}': 1}, 12)
    assert result.rewards == [0.7, 0.9, 0.1], "lines of full length ended too"


def test_a_good_enough_answer_ends_the_tree() -> None:
    stop = Certaindex(1, max_reward=0.2, every=1)
    tree = programs.tree_of_thoughts(suggest, judge, breadth=3, depth=2, keep=2, stop=stop)
    with fs.testing.engine(letters(suggest=always(["a", "b", "c"]))):
        result = tree.run(problem="p")
    assert (result.ended, result.why, result.path) == ("enough", "reward 0.2 >= 0.2 at 1", ["b", "a"])
    assert (result.drawn, result.dropped) == (3, 1)


def test_a_thought_that_cannot_be_judged_is_left_out_and_a_state_without_thoughts_fails() -> None:
    tree = programs.tree_of_thoughts(suggest, judge, breadth=3, depth=1, keep=2)
    broken = lambda call: errors.EngineError("no") if words(call, "=") == "b" else LETTERS[words(call, "=")]
    with fs.testing.engine(letters(suggest=always(["a", "b", "c"]), judge=broken)):
        assert tree.run(problem="p").path == ["c"]
    with fs.testing.engine(letters(suggest=errors.EngineError("gone"))), pytest.raises(errors.RunFailed, match="gone"):
        tree.run(problem="p")


def test_a_budget_leaves_the_best_part_of_a_line() -> None:
    tree = programs.tree_of_thoughts(suggest, judge, breadth=3, depth=2, keep=2, budget_calls=7)
    with fs.testing.engine(letters(suggest=always(["a", "b", "c"]))):
        result = tree.run(problem="p")
    assert (result.path, result.finished, result.score) == (["b"], False, 0.9)
    assert (result.ended, result.why) == ("budget", "budget: 4 of 7 calls")


def test_a_tree_of_single_thoughts_fits_its_path() -> None:
    with pytest.raises(errors.GraphError, match="with the steps so far as its last parameter, a list"):
        programs.tree_of_thoughts(judge.options(temperature=1.0), judge, breadth=1, depth=1, keep=1).alone.program  # noqa: B018


# --- Rebase ---------------------------------------------------------------------------------------------------


def test_a_width_goes_where_reward_is_and_lines_vote_with_their_rewards() -> None:
    """Two first steps, of 0.9 and 0.1: at temperature 0.2 weights are 54.6 : 1, and of 4 lines all 4 go on from the first."""
    search = programs.rebase(think, reward, width=4, most=4, depth=2, vote="final", stop=None)
    first = [Step(text="good"), Step(text="bad"), Step(text="bad"), Step(text="bad")]
    second = [
        Step(text="1", final="1"),
        Step(text="2", final="2"),
        Step(text="1", final="1"),
        Step(text="2", final="2"),
    ]
    worth = {"good": 0.9, "bad": 0.1, "good 1": 0.5, "good 2": 0.6}
    with fs.testing.engine({"think": [*first, *second], "reward": lambda call: worth[words(call, "=")]}) as session:
        result = search.run(problem="p")
    assert [words(call, ":") for call in session.calls if call.meta["node"].endswith("think")] == [""] * 4 + [
        "good"
    ] * 4
    assert (result.answer.final, result.score, result.votes) == ("2", 0.6, {"1": 2, "2": 2})
    assert (result.rewards, result.certainty) == ([0.5, 0.6, 0.5, 0.6], 0.5)
    assert (result.drawn, result.calls, result.ended) == (8, 16, "complete")


def test_a_sum_of_rewards_beats_one_great_reward() -> None:
    search = programs.rebase(think, reward, width=3, most=3, depth=1, vote="final", stop=None)
    steps = [Step(text="1", final="1"), Step(text="2", final="2"), Step(text="3", final="2")]
    with fs.testing.engine({"think": steps, "reward": lambda call: {"1": 0.9, "2": 0.5, "3": 0.6}[words(call, "=")]}):
        result = search.run(problem="p")
    assert (result.answer.text, result.score) == ("3", 0.6)


def test_lines_that_ended_leave_their_width_to_nobody() -> None:
    """Four lines: two answers at once, so two go on."""
    search = programs.rebase(
        think, reward, width=4, most=4, depth=2, vote="final", stop=None, done=is_final, temperature=10
    )
    steps = [Step(text="a", final="1"), Step(text="b"), Step(text="c", final="1"), Step(text="d")]
    more = [Step(text="e", final="2"), Step(text="f", final="1")]
    with fs.testing.engine({"think": [*steps, *more], "reward": always(0.5)}):
        result = search.run(problem="p")
    assert (result.votes, result.drawn, len(result.rewards)) == ({"1": 3, "2": 1}, 6, 4)


def test_the_published_rule_is_asked_at_sixteen_lines_and_another_sixteen_follow_if_it_is_not_content() -> None:
    search = programs.rebase(think, reward, width=16, most=32, depth=1, vote="final")
    same = always(Step(text="s", final="7"))
    with fs.testing.engine({"think": same, "reward": always(0.99)}):
        result = search.run(problem="p")
    assert (result.drawn, result.why) == (16, "certainty 1 >= 0.85, reward 0.99 >= 0.99 at 16")
    with fs.testing.engine({"think": same, "reward": always(0.98)}):
        result = search.run(problem="p")
    assert (result.drawn, result.ended, result.votes) == (32, "complete", {"7": 32})


def test_a_line_that_breaks_off_gives_no_vote() -> None:
    search = programs.rebase(think, reward, width=3, most=3, depth=1, vote="final", stop=None)
    steps = [errors.EngineError("gone"), Step(text="1", final="1"), Step(text="2", final="1")]
    with fs.testing.engine({"think": steps, "reward": always(0.5)}):
        result = search.run(problem="p")
    assert (result.votes, result.failed, result.calls) == ({"1": 2}, 1, 5)


def test_a_reward_outside_its_range_is_told() -> None:
    search = programs.rebase(think, reward, width=2, most=2, depth=1)
    with (
        fs.testing.engine({"think": always(Step(text="s")), "reward": always(7)}),
        pytest.raises(errors.RunFailed, match="expected 'reward' to give a reward from 0 to 1; got 7"),
    ):
        search.run(problem="p")


def test_a_budget_in_the_middle_of_a_search_leaves_the_longest_line() -> None:
    search = programs.rebase(think, reward, width=2, most=2, depth=3, stop=None, budget_calls=7, done=is_final)
    texts = [Step(text=text) for text in "abcdefgh"]
    with fs.testing.engine({"think": texts, "reward": lambda call: 1 / len(words(call, "="))}):
        result = search.run(problem="p")
    assert (len(result.path), result.finished, result.ended, result.calls) == (2, False, "budget", 6)
    assert result.votes == {}


# --- MCTS -----------------------------------------------------------------------------------------------------

TREE = {"L": 0.2, "R": 0.8}
"""By first step; the second does not matter."""


def in_turn(call: Call) -> Step:
    """First steps L, R, L, ...; second steps by what was written already in that place."""
    path = words(call, ":")
    turns[path] = turns.get(path, -1) + 1
    text = "LR"[turns[path] % 2] if not path else str(turns[path])
    return Step(text=text, final=text if path else "")


turns: dict[str, int] = {}


def tree(**changes: Any) -> Any:
    turns.clear()
    arguments: dict[str, Any] = {"iterations": 6, "depth": 2, "breadth": 2, "stop": None, "vote": "final"}
    return programs.mcts(think, reward, **(arguments | changes))


def worth(call: Call) -> float:
    return TREE[words(call, "=").split()[0]]


def test_roll_outs_go_where_the_bounds_are_greatest() -> None:
    """After L 0.2 and R 0.8: R (two visits in all, exploration 0.5: 0.8 + 0.42 over 0.2 + 0.42) until it is closed, then L."""
    with fs.testing.engine({"think": in_turn, "reward": worth}) as session:
        result = tree(exploration=0.5).run(problem="p")
    firsts = [words(call, "=").split()[0] for call in session.calls if call.meta["node"].endswith("reward")]
    assert firsts == ["L", "R", "R", "R", "L", "L"]
    assert result.score == 0.8 and result.path[0].text == "R" and result.rewards == [0.2, 0.8, 0.8, 0.8, 0.2, 0.2]
    assert (result.drawn, result.calls) == (6, 14), "2 of 2 steps and a reward, then 4 of one step and a reward"


def test_what_was_followed_to_its_end_is_not_followed_again() -> None:
    with fs.testing.engine({"think": in_turn, "reward": worth}):
        result = tree(iterations=20).run(problem="p")
    assert (result.drawn, result.ended) == (6, "complete"), (
        "two first steps with two second steps each, tried on first visits too"
    )


def test_equal_first_steps_are_one_place_in_the_tree() -> None:
    """Two tries at the root give one child, and two tries there end the search; two children would have had two each."""
    with fs.testing.engine({"think": always(Step(text="R")), "reward": worth}):
        assert tree(iterations=20).run(problem="p").drawn == 4


def test_the_published_rule_stops_after_three_roll_outs_that_agree() -> None:
    with fs.testing.engine({"think": always(Step(text="R", final="7")), "reward": always(0.4)}) as session:
        result = tree(iterations=20, breadth=3, stop=programs.PUBLISHED["mcts"], done=is_final).run(problem="p")
    assert (result.why, result.drawn) == ("certainty 1 >= 0.99, mean reward 0.4 >= 0.4 at 3", 3)
    assert (result.votes, len(session.calls)) == ({"7": 3}, 6)


def test_roll_outs_side_by_side_repeat_themselves() -> None:
    results = []
    for _ in range(2):
        with fs.testing.engine({"think": in_turn, "reward": worth}):
            results.append(tree(parallel=2, iterations=3).run(problem="p"))
    assert results[0] == results[1] and results[0].drawn == 6


def test_a_roll_out_that_fails_is_not_counted_on_and_none_is_tried_for_ever() -> None:
    gone = "none of 2 branches gave an answer; the last failed with: gone"
    replies = {"think": errors.EngineError("gone")}
    with fs.testing.engine(replies) as session, pytest.raises(errors.RunFailed, match=gone):
        tree().run(problem="p")
    assert len(session.calls) == 2


def test_a_budget_has_room_for_whole_roll_outs_only() -> None:
    with fs.testing.engine({"think": in_turn, "reward": worth}):
        result = tree(budget_calls=7).run(problem="p")
    assert (result.calls, result.drawn, result.ended, result.score) == (6, 2, "budget", 0.8)
    with pytest.raises(errors.GraphError, match="budget_calls= a number from 3"):
        tree(budget_calls=2).alone.program  # noqa: B018


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"depth": 0}, "depth= a number from 1"),
        ({"exploration": -1}, "exploration= a number above 0"),
        ({"parallel": 0}, "parallel= a number from 1"),
        ({"vote": "nothing"}, "vote= a field of Step"),
    ],
)
def test_a_wrong_declaration_is_told(change: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.GraphError, match=said):
        tree(**change).alone.program  # noqa: B018
