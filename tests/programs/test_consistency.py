"""Self-consistency: which samples are drawn, which answer wins, what is dropped, and what is told of it."""

import math
from typing import Any

import pytest
from pydantic import BaseModel

import flowserve as fs
from flowserve import errors, programs
from flowserve.engines.base import Call


class Solution(BaseModel):
    text: str
    final: str


@fs.llm(temperature=0.8, seed=7)
def solve(problem: str) -> Solution:
    fs.prompt("{{ problem }}")


@fs.llm()
def tell(why: str) -> str:
    fs.prompt("{{ why }}")


def solutions(*finals: str) -> list[Any]:
    return [Solution(text=f"{place}", final=final) for place, final in enumerate(finals)]


def test_five_equal_answers_of_sixteen_are_enough() -> None:
    program = programs.self_consistency(solve, n=16, vote="final")
    with fs.testing.engine({"solve": solutions("34", " 34", "34.0", "34", "34")}) as session:
        result = program.run("17 + 17")
    assert result.answer == Solution(text="0", final="34")
    assert (result.ended, result.why) == ("enough", "certaindex: 5 of 5 agree")
    assert (result.votes, result.certainty) == ({"34": 5}, 1.0)
    assert (result.drawn, result.dropped, result.failed, result.calls) == (5, 0, 0, len(session.calls))


def test_where_five_differ_all_are_drawn_at_once_and_the_majority_wins() -> None:
    program = programs.self_consistency(solve, n=8, vote="final")
    with fs.testing.engine({"solve": solutions("1", "2", "2", "3", "1", "3", "3", "3")}) as session:
        result = program.run("?")
    assert len(session.calls) == 8
    assert result.answer.final == "3" and result.answer.text == "3", "the first sample of the majority"
    assert result.votes == {"1": 2, "2": 2, "3": 4}
    assert (result.ended, result.why) == ("complete", "all 8 branches were drawn")
    assert result.certainty == pytest.approx(0.5)  # H = 1/2 log 4 + 1/2 log 2 = 1.5 log 2, of 3 log 2


def test_what_is_under_way_when_it_is_enough_is_aborted_at_the_engine() -> None:
    """Sixteen at once; four agree, and the others never answer."""
    program = programs.self_consistency(
        solve, n=16, vote="final", stop=fs.certaindex(threshold=1.0, min_samples=4), wave=16
    )
    arrived: list[str] = []

    @fs.workflow()
    def flow(problem: str) -> tuple[programs.Consensus[Solution], str]:
        result = program(problem)
        return result, tell(result.why)

    def delay(call: Call) -> float:
        if call.meta["node"] == "tell":
            return 0.0
        arrived.append(call.id)
        return 0.0 if len(arrived) <= 4 else math.inf

    with fs.testing.engine({"solve": lambda call: solutions("34")[0], "tell": "told"}, delays=delay) as session:
        result, _ = flow.run("?")
        assert (result.drawn, result.dropped, result.calls) == (16, 12, 4)
        assert sorted(session.engine.aborted) == sorted(arrived[4:])


def test_a_sample_that_is_late_holds_back_those_after_it_so_that_runs_repeat() -> None:
    program = programs.self_consistency(solve, n=3, vote="final", stop=None)
    for delays in ([0.0, 0.02, 0.0], [0.02, 0.0, 0.01]):
        turn = iter(delays)
        replies = {"solve": solutions("1", "2", "3")}
        with fs.testing.engine(replies, delays=lambda call, turn=turn: next(turn)):
            assert program.run("?").answer.final == "1", "of equal ones the earliest begun"


def test_samples_draw_differently_and_another_run_draws_the_same() -> None:
    program = programs.self_consistency(solve, n=6, vote="final", stop=None)
    seeds = []
    for _ in range(2):
        with fs.testing.engine({"solve": lambda call: solutions("1")[0]}) as session:
            program.run("?")
        seeds.append([call.sampling.seed for call in session.calls])
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 6


def test_a_sample_that_fails_gives_no_vote() -> None:
    program = programs.self_consistency(solve, n=5, vote="final")
    replies = [*solutions("1", "1"), errors.EngineError("broken"), *solutions("1", "1")]
    with fs.testing.engine({"solve": replies}):
        result = program.run("?")
    assert (result.answer.final, result.votes, result.failed) == ("1", {"1": 4}, 1)
    assert result.ended == "complete" and result.certainty < 0.7, "five that agree would have been enough"


def test_a_defect_is_not_taken_for_a_sample_that_failed() -> None:
    def reply(call: Call) -> Any:
        if call.id.split("/")[1] == "2":
            raise KeyError("ours")
        return solutions("1")[0]

    with fs.testing.engine({"solve": reply}), pytest.raises(errors.FlowServeError, match="KeyError"):
        programs.self_consistency(solve, n=5, vote="final").run("?")


def test_when_every_sample_fails_the_program_does_and_says_why() -> None:
    program = programs.self_consistency(solve, n=2)
    with (
        fs.testing.engine({"solve": "no JSON"}),
        pytest.raises(errors.RunFailed, match="none of 2 branches.*does not fit"),
    ):
        program.run("?")


def test_an_empty_answer_agrees_with_nobody() -> None:
    program = programs.self_consistency(solve, n=4, vote="final")
    with fs.testing.engine({"solve": solutions("", "", "", "7")}):
        result = program.run("?")
    assert (result.answer.final, result.votes) == ("7", {"7": 1})


def test_a_budget_of_calls_ends_it_with_the_best_so_far() -> None:
    program = programs.self_consistency(solve, n=16, vote="final", budget_calls=7)
    with fs.testing.engine({"solve": solutions("1", "2", "3", "2", "4", "2", "5")}) as session:
        result = program.run("?")
    assert len(session.calls) == 7
    assert (result.answer.final, result.ended, result.why) == ("2", "budget", "budget: 7 of 7 calls")


def test_a_budget_of_tokens_grants_what_samples_take_on_average() -> None:
    """A sample takes 1 token of prompt and a fixed number of output; five are begun before anything is known."""
    program = programs.self_consistency(solve, n=40, vote="final", stop=None)
    with fs.testing.engine({"solve": lambda call: solutions("1")[0]}):
        each = program.run("?").tokens // 40
    bounded = programs.self_consistency(solve, n=40, vote="final", budget_tokens=12 * each)
    with fs.testing.engine({"solve": lambda call: solutions(f"{len(session.calls)}")[0]}) as session:
        result = bounded.run("?")
    assert (result.calls, result.tokens, result.ended) == (12, 12 * each, "budget")
    assert result.why == f"budget: {12 * each} of {12 * each} tokens"


def test_a_rule_by_name_decides_between_waves() -> None:
    program = programs.self_consistency(solve, n=7, vote="final", stop=fs.decided())
    with fs.testing.engine({"solve": lambda call: solutions("1")[0]}) as session:
        result = program.run("?")
    assert len(session.calls) == 4 and result.why == "decided: 4 of 4 agree"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": 0}, "n= a number from 1"),
        ({"wave": True}, "wave= a number from 1"),
        ({"vote": "finale"}, "vote= a field of Solution; got 'finale', but Solution has: text, final"),
        ({"budget_calls": 0}, "budget_calls= a number from 1"),
        ({"budget_tokens": 1.5}, "budget_tokens= a number from 1"),
    ],
)
def test_a_wrong_declaration_is_told_when_it_is_used(change: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {"n": 4, "vote": "final"} | change
    program = programs.self_consistency(solve, **arguments)
    with pytest.raises(errors.GraphError) as error:
        program.alone.program  # noqa: B018
    assert said in str(error.value) and "solve.self_consistency" in str(error.value)


def test_samples_that_cannot_differ_are_refused() -> None:
    with pytest.raises(errors.GraphError, match="with a temperature, so that its samples differ"):
        programs.self_consistency(solve.options(temperature=0.0), n=4).alone.program  # noqa: B018


def test_what_is_no_node_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="self_consistency: expected nodes .* got len"):
        programs.self_consistency(len, n=4)  # type: ignore[arg-type]
