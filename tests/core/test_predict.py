"""Predictors of lengths: what each makes of what it has seen, and what the scheduler makes of that."""

import math
from itertools import pairwise
from random import Random
from types import ModuleType
from typing import Any

import pytest

from flowserve.core.config import Config
from flowserve.core.events import TaskFinished
from flowserve.core.learning import lessons
from flowserve.core.log import LogWriter, replay
from flowserve.core.predict import bins, quantile, ranker, recent, shares
from flowserve.core.predict.base import Call, Prediction, Predictor
from flowserve.core.predict.bins import Bins, bin_of
from flowserve.core.predict.quantile import Quantile
from flowserve.core.predict.ranker import Ranker, isotonic
from flowserve.core.predict.recent import WINDOW, Recent, Table
from flowserve.core.predict.shares import Mean, Prior
from flowserve.core.predict.table import PREDICTORS
from flowserve.core.state import SchedulerState
from flowserve.errors import ConfigError
from flowserve.graphs.output_length import Length
from flowserve.graphs.plan import Plan
from flowserve.ids import NodeId, RunId, TaskId, Tokens


def call(prompt: Tokens = 100, node: int = 0, tenant: str = "", limit: Tokens = 1000, **fields: Any) -> Call:
    return Call("plan", NodeId(node), tenant, prompt, limit, **fields)


def predicted(predictor: Predictor, asked: Call) -> Prediction:
    found = predictor.predict(asked)
    assert found is not None
    return found


def some_calls(seed: int, count: int) -> list[tuple[Call, Tokens]]:
    """Lengths that depend on everything, with noise."""
    rnd = Random(seed)
    made = []
    for _ in range(count):
        node, tenant, step = rnd.randrange(3), rnd.choice("ab"), rnd.randrange(4)
        prompt, siblings = rnd.randrange(1, 5000), rnd.choice([0, 50, 500])
        mean = 20 * (node + 1) * (1 + (tenant == "b")) + step * 10 + prompt // 50 + siblings // 4
        made.append(
            (call(prompt, node, tenant, step=step, siblings=siblings), min(1000, int(mean * rnd.uniform(0.5, 1.5))))
        )
    return made


# --- all of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREDICTORS)
def test_equal_answers_in_equal_order_give_equal_predictions(name: str) -> None:
    made = some_calls(1, 400)
    one, other = PREDICTORS[name](), PREDICTORS[name]()
    for asked, tokens in made:
        one.predict(asked)  # asking changes nothing
        one.predict(call(7, 2))
        one.observe(asked, tokens)
        other.observe(asked, tokens)
    assert [one.predict(asked) for asked, _ in made] == [other.predict(asked) for asked, _ in made]


@pytest.mark.parametrize("name", PREDICTORS)
def test_what_is_predicted_ascends_and_stays_within_the_limit(name: str) -> None:
    predictor = PREDICTORS[name]()
    for asked, tokens in some_calls(2, 600):
        found = predictor.predict(asked)
        if found is not None:
            assert 0 <= found.p50 <= found.p90 <= 1000 and 0 <= found.mean <= 1000
        predictor.observe(asked, tokens)


@pytest.mark.parametrize("name", PREDICTORS)
def test_nine_of_ten_answers_are_no_longer_than_their_p90(name: str) -> None:
    predictor, covered = PREDICTORS[name](), []
    for asked, tokens in some_calls(3, 3000):
        found = predictor.predict(asked)
        if found is not None:
            covered.append(tokens <= found.p90)
        predictor.observe(asked, tokens)
    assert sum(covered) / len(covered) == pytest.approx(0.9, abs=0.04)


@pytest.mark.parametrize("name", [name for name in PREDICTORS if name != "prior"])
def test_a_node_that_writes_ten_times_as_much_is_expected_to(name: str) -> None:
    predictor = PREDICTORS[name]()
    for number in range(200):
        predictor.observe(call(node=number % 2), 50 if number % 2 else 500)
    assert predicted(predictor, call(node=1)).mean == pytest.approx(50, rel=0.3)
    assert predicted(predictor, call(node=0)).mean == pytest.approx(500, rel=0.3)


@pytest.mark.parametrize("name", PREDICTORS)
def test_calls_without_a_limit_and_empty_answers_are_no_trouble(name: str) -> None:
    predictor = PREDICTORS[name]()
    for _ in range(40):
        predictor.observe(call(0, limit=0), 0)
        predictor.observe(call(0), 0)
    assert predicted(predictor, call(0)).mean == pytest.approx(0, abs=8)


# --- each ---------------------------------------------------------------------------------------------


def test_prior_expects_half_of_the_limit_and_then_the_share_that_calls_write() -> None:
    prior = Prior()
    assert prior.predict(call(limit=200)) == Prediction(100, 100, 100)
    for _ in range(200):
        prior.observe(call(limit=1000), 100)
    assert predicted(prior, call(node=9, limit=200)).mean == pytest.approx(20)
    assert prior.predict(call(limit=0)) is None


def test_prior_expects_what_a_schema_lets_expect_and_then_as_much_more_or_less_as_calls_write() -> None:
    prior, answer = Prior(), Length(10, 40, 120)
    asked = call(limit=120, answer=answer)
    assert prior.predict(asked) == Prediction(40, 40, 40)
    for _ in range(200):
        prior.observe(asked, 60)
    assert predicted(prior, call(limit=900, node=9, answer=Length(1, 100, None))).mean == pytest.approx(150)
    assert predicted(prior, call(limit=100, node=9, answer=Length(1, 100, None))).mean == 100, "no more than the limit"
    assert predicted(prior, call(limit=200)).mean == 100, "says nothing of calls without a schema"
    for _ in range(200):
        prior.observe(asked, 0)
    assert predicted(prior, asked).mean == 10, "no less than the schema asks for"


def test_mean_is_the_share_of_its_node_once_enough_were_seen() -> None:
    mean = Mean()
    for _ in range(shares.ENOUGH - 1):
        mean.observe(call(limit=1000), 100)
    assert mean.predict(call()) is None
    mean.observe(call(limit=1000), 100)
    assert predicted(mean, call(limit=200)).mean == pytest.approx(20)
    assert mean.predict(call(node=1)) is None


def test_quantile_backs_off_from_tenant_to_size_to_node() -> None:
    predictor = Quantile()
    for _ in range(quantile.ENOUGH):
        predictor.observe(call(100, tenant="a"), 10)
    for _ in range(quantile.ENOUGH):
        predictor.observe(call(100, tenant="b"), 30)
    for _ in range(2 * quantile.ENOUGH):
        predictor.observe(call(4000, tenant="b"), 100)
    means = [predicted(predictor, asked).mean for asked in (call(100, tenant="a"), call(127, tenant="new"), call(9999))]
    assert means == [10, 20, 60]
    assert predictor.predict(call(node=1)) is None


def test_bins_ask_the_second_stage_for_what_looks_long_alone() -> None:
    """Who has what tenant decides the length; prompts of 100 tokens look short, those of 4,000 long."""
    predictor = Bins()
    for number in range(bins.KEPT):
        first = number % 2 == 0
        predictor.observe(call(100, tenant="a" if first else "b"), 10 if first else 14)
        predictor.observe(call(4000, tenant="a" if first else "b"), 400 if first else 800)
    short = [predicted(predictor, call(100, tenant=tenant)).mean for tenant in "ab"]
    long = [predicted(predictor, call(4000, tenant=tenant)).mean for tenant in "ab"]
    assert short == [12, 12]
    assert long == pytest.approx([400, 800], rel=0.05)


def test_bins_count_the_latest_calls_and_nothing_else() -> None:
    predictor = Bins()
    for _ in range(bins.KEPT):
        predictor.observe(call(siblings=5), 900)
    for _ in range(bins.KEPT):
        predictor.observe(call(), 10)
    assert predicted(predictor, call()).mean == 10
    node = predictor._nodes.find(("plan", NodeId(0)))
    assert node is not None and sum(node.calls) == bins.KEPT and (3, 3) not in node.by_trait


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 8, 11, 12, 100, 4095, 4096, 10**6])
def test_two_bins_make_a_doubling(tokens: Tokens) -> None:
    assert bin_of(tokens) == math.floor(2 * math.log2(tokens))


def test_the_ranker_learns_the_order_from_pairs() -> None:
    rnd = Random(5)
    predictor = Ranker()
    for _ in range(600):
        step = rnd.randrange(8)
        predictor.observe(call(rnd.randrange(1, 3000), step=step), (step + 1) * 100)
    means = [predicted(predictor, call(500, step=step)).mean for step in range(8)]
    assert means == sorted(means)
    assert means == pytest.approx([100.0 * (step + 1) for step in range(8)], rel=0.25, abs=60)
    assert predictor.weights[4] == max(predictor.weights)


def test_the_ranker_says_nothing_before_it_has_a_map() -> None:
    predictor = Ranker()
    for _ in range(ranker.EVERY - 1):
        predictor.observe(call(), 10)
    assert predictor.predict(call()) is None
    predictor.observe(call(), 10)
    assert predicted(predictor, call()).mean == 10


def test_isotonic_regression_is_the_closest_ascending_function() -> None:
    """Against the min-max formula: at each point, the greatest lower mean of what ends there or later."""
    rnd = Random(6)
    for _ in range(50):
        points = [(float(place), rnd.randrange(100)) for place in range(rnd.randrange(1, 12))]
        lengths = [tokens for _, tokens in points]
        wanted = [
            max(min(sum(lengths[i : k + 1]) / (k + 1 - i) for k in range(place, len(points))) for i in range(place + 1))
            for place in range(len(points))
        ]
        knots, values = isotonic(rnd.sample(points, len(points)))
        assert sorted(dict.fromkeys(wanted)) == pytest.approx(values)
        assert all(a < b for a, b in pairwise(knots)) and all(a < b for a, b in pairwise(values))


# --- memory -------------------------------------------------------------------------------------------


def test_quantiles_are_those_of_the_latest_values() -> None:
    rnd = Random(7)
    values = [float(rnd.randrange(1000)) for _ in range(5 * WINDOW)]
    window = Recent()
    for number, value in enumerate(values, 1):
        window.add(value)
        latest = sorted(values[max(0, number - WINDOW) : number])
        for share in (0.1, 0.5, 0.9):
            rank = math.ceil((len(latest) + 1) * share)
            assert window.quantile(share) == latest[min(rank, len(latest)) - 1]
        assert window.mean() == pytest.approx(sum(latest) / len(latest))


def test_a_table_forgets_what_was_used_least_recently() -> None:
    table = Table(list[int], 2)
    table.use("a").append(1)
    table.use("b").append(2)
    table.use("a").append(3)
    table.use("c")
    assert (table.find("a"), table.find("b"), table.find("c"), len(table)) == ([1, 3], None, [], 2)


@pytest.mark.parametrize("name", PREDICTORS)
def test_memory_is_bounded_however_many_nodes_and_tenants_there_are(name: str) -> None:
    predictor: Any = PREDICTORS[name]()
    for number in range(recent.MOST + 50):
        predictor.observe(call(node=number, tenant=f"t{number}"), 10)
    slots = [getattr(predictor, slot) for slot in predictor.__slots__]
    assert all(len(table) <= recent.MOST for table in slots if isinstance(table, Table))


# --- the scheduler ------------------------------------------------------------------------------------


def finish(kit: ModuleType, bench: Any, run: str, tokens: Tokens, task: int = 1) -> None:
    bench.feed(TaskFinished(RunId(run), TaskId(task), 1, tokens_out=tokens))


def test_a_predictor_nobody_has_heard_of_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="predictor: expected one of bins, mean, prior, quantile, ranker; got 'magic'"
    ):
        SchedulerState(Config(predictor="magic"))


def test_calls_are_told_to_the_predictor_with_tenant_prompt_and_siblings(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    body = b.block()
    b.llm(block=body)
    b.map(body, limit=9, concurrency=1)
    plan = b.build()
    bench = kit.Bench(measure=True, window=4)
    bench.submit(plan, "r", tenant="acme")
    bench.evaluate(1, 3, run="r")
    found = []
    for task, tokens in ((2, 10), (3, 31), (4, 5)):
        bench.measured(task, run="r", tokens=70, limit=100)
        found.append(bench.state.runs["r"].tasks[task].call.about)
        finish(kit, bench, "r", tokens, task)
    assert found == [Call(plan.digest, NodeId(0), "acme", 70, 100, 0, siblings) for siblings in (0, 10, 20)]


def test_the_account_of_errors_is_of_what_was_predicted(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm()
    bench = kit.Bench(measure=True, window=8)
    plan = b.build()
    for number in range(shares.ENOUGH):
        bench.submit(plan, f"r{number}")
        bench.measured(1, run=f"r{number}", limit=100)
        finish(kit, bench, f"r{number}", 20)
    assert bench.state.lengths.figures() == {}
    for number, tokens in ((10, 20), (11, 60)):
        bench.submit(plan, f"r{number}")
        bench.measured(1, run=f"r{number}", limit=100)
        finish(kit, bench, f"r{number}", tokens)
    assert bench.state.lengths.figures() == pytest.approx({"error_tokens": 20, "tokens": 40, "p90_coverage": 0.5})


def test_the_predictor_decides_what_memory_is_kept_for_a_call(kit: ModuleType) -> None:
    """Two classes of prompts of one node: `mean` knows one length, `quantile` two."""
    b = kit.PlanBuilder()
    b.llm()
    plan = b.build()
    ahead = {}
    for predictor in ("mean", "quantile"):
        bench = kit.Bench(measure=True, window=64, predictor=predictor)
        for number in range(40):
            bench.submit(plan, f"r{number}")
            bench.measured(1, run=f"r{number}", tokens=16 if number % 2 else 4000, limit=1000)
            finish(kit, bench, f"r{number}", 10 if number % 2 else 410)
        bench.submit(plan, "short")
        bench.measured(1, run="short", tokens=20, limit=1000)
        ahead[predictor] = bench.state.engines["e0"].ahead
    assert ahead["quantile"] == 10
    assert 150 < ahead["mean"] < 270


# --- schemas ------------------------------------------------------------------------------------------

FLAGS = {"type": "array", "items": {"type": "boolean"}, "minItems": 10, "maxItems": 10}
"""Between 60 and 70 characters: at least 4 tokens, at most 70; 65 characters, 19 tokens, are expected."""


def asked(bench: Any, plan: Plan, run: str, **facts: Any) -> Call:
    bench.submit(plan, run)
    bench.measured(1, run=run, limit=1000, **facts)
    about: Call = bench.state.runs[run].tasks[1].call.about
    return about


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_before_a_node_was_seen_its_schema_says_how_much_it_writes(kit: ModuleType, predictor: str) -> None:
    b = kit.PlanBuilder()
    b.llm(output=FLAGS)
    bench = kit.Bench(measure=True, window=64, predictor=predictor)
    assert asked(bench, b.build(), "r").limit == 70
    assert bench.state.engines["e0"].ahead == 19
    assert asked(bench, b.build(), "s", choices=3).answer == Length(12, 57, 210)
    assert bench.state.engines["e0"].ahead == 19 + 57


def test_a_schema_that_answers_do_not_keep_to_bounds_nothing(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm(output=FLAGS)
    bench, plan = kit.Bench(measure=True, window=64), b.build()
    for number in range(2):
        assert asked(bench, plan, f"r{number}").limit == 70
        finish(kit, bench, f"r{number}", 50 + 200 * number)
    about = asked(bench, plan, "after")
    assert (about.limit, about.answer) == (1000, None), "300 tokens in two answers: thoughts come before"


def test_what_a_schema_says_is_learned_and_replayed_with_the_answers(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm(output=FLAGS)
    bench = kit.Bench(engines=0, measure=True)
    lines: list[str] = []
    writer, feed, outs = LogWriter(lines.append, bench.state.config), bench.feed, []

    def recorded(event: Any, after: float = 0.0) -> Any:
        writer.record(bench.now + after, event)
        outs.append(feed(event, after))
        return outs[-1]

    bench.feed = recorded
    bench.engine("e0")
    known = asked(bench, b.build(), "r")
    finish(kit, bench, "r", 25)
    assert list(replay(lines)) == outs
    [lesson] = lessons(lines)
    assert lesson.answers == ((known, 25),) and known.answer == Length(4, 19, 70)
    bench.feed(lesson)
    assert list(replay(lines)) == outs
