"""Model calls that end early: which trials are asked for, what ends a call, and what becomes of it when its engine goes."""

from types import ModuleType

import pytest

from flowserve.config import PoolConfig
from flowserve.core import commands as c
from flowserve.core import events as e
from flowserve.core.events import Code, Loss
from flowserve.core.stopping.chains import CHAIN_RULES, DEFAULT_RULE
from flowserve.core.stopping.rules import Continue, ProbeAt, Stop
from flowserve.core.stopping.signals import Trial
from flowserve.errors import InternalError
from flowserve.graphs.plan import ExitSpec, Plan
from flowserve.ids import EngineId, RunId, TaskId

EXIT = ExitSpec("number")
CALL = (RunId("r"), TaskId(1))


def one_call(kit: ModuleType, exit: ExitSpec | None = EXIT) -> Plan:
    builder = kit.PlanBuilder()
    builder.llm(exit=exit)
    plan: Plan = builder.build()
    return plan


def test_a_call_that_may_end_early_is_forked_64_tokens_on_and_one_that_may_not_is_not(kit: ModuleType) -> None:
    bench = kit.Bench()
    assert kit.brief(bench.submit(one_call(kit)))[-2:] == ["dispatch 1 at e0", "fork 1 at e0 from 64"]
    plain = kit.Bench()
    assert kit.brief(plain.submit(one_call(kit, None)))[-1] == "dispatch 1 at e0"


def test_an_unsure_trial_asks_for_the_next_and_a_sure_one_ends_the_call(kit: ModuleType) -> None:
    bench = kit.Bench()
    bench.submit(one_call(kit))
    bench.tokens(1, 70)
    assert kit.brief(bench.feed(e.TrialAnswered(*CALL, 1, 70, 0, 0.98, 5))) == ["fork 1 at e0 from 134"]
    bench.tokens(1, 80)
    [exit] = bench.feed(e.TrialAnswered(*CALL, 1, 140, 1, 0.9995, 5))
    assert exit == c.Exit(*CALL, 1, EngineId("e0"), 1, "confidence 0.99950 > 0.999 at 140 tokens")
    assert kit.brief(bench.finish(1)) == ["completed 1", "complete r"]


@pytest.mark.parametrize(
    ("confidence", "label", "closed"), [(0.999, 0, True), (1.0, -1, True), (1.0, 0, False)], ids=str
)
def test_what_is_not_surer_than_the_threshold_or_unusable_or_unfinished_ends_nothing(
    kit: ModuleType, confidence: float, label: int, closed: bool
) -> None:
    bench = kit.Bench()
    bench.submit(one_call(kit))
    out = bench.feed(e.TrialAnswered(*CALL, 1, 64, label, confidence, 5, closed))
    assert kit.brief(out) == ["fork 1 at e0 from 128"]


def test_the_conservative_rule_asks_for_thirty_trials_and_no_more() -> None:
    rule = CHAIN_RULES[DEFAULT_RULE]({})
    asked, decision = [], rule.begin()
    while isinstance(decision, ProbeAt):
        asked.append(decision.position)
        decision = rule.observe(Trial(decision.position, 0, 0.5, 5))
    assert decision == Continue() and asked == [64 * number for number in range(1, 31)]


def test_a_certificate_may_name_other_parameters(kit: ModuleType) -> None:
    bench = kit.Bench(measure=True)
    bench.submit(one_call(kit))
    told = (("apart", 16.0), ("threshold", 0.9))
    assert kit.brief(bench.measured(1, rule="default", rule_args=told))[-1] == "fork 1 at e0 from 16"
    assert kit.brief(bench.feed(e.TrialAnswered(*CALL, 1, 16, 0, 0.95, 5))) == ["exit 1 at e0 with 0"]


def test_a_call_that_goes_on_elsewhere_keeps_its_rule_and_is_asked_again(kit: ModuleType) -> None:
    bench = kit.Bench(engines=2, measure=True)
    bench.submit(one_call(kit))
    bench.measured(1, on_loss=Loss.CONTINUE)
    bench.tokens(1, 70)
    bench.feed(e.TrialAnswered(*CALL, 1, 70, 0, 0.5, 5))
    out = kit.brief(bench.engine("e0", up=False))
    assert out[-2:] == ["dispatch 1 attempt 2 at e1 resume", "fork 1 at e1 from 134"]
    assert kit.brief(bench.feed(e.TrialAnswered(*CALL, 1, 140, 0, 1.0, 5))) == []  # the attempt before: stale
    assert kit.brief(bench.feed(e.TrialAnswered(*CALL, 2, 140, 0, 1.0, 5))) == ["exit 1 at e1 with 0"]


def test_a_call_that_begins_anew_has_a_new_rule(kit: ModuleType) -> None:
    bench = kit.Bench(engines=2, measure=True)
    bench.submit(one_call(kit))
    bench.measured(1, on_loss=Loss.RESTART)
    bench.tokens(1, 70)
    bench.feed(e.TrialAnswered(*CALL, 1, 70, 0, 0.5, 5))
    assert kit.brief(bench.fail(1, Code.ENGINE_LOST))[-1] == "fork 1 at e1 from 64"


def test_the_tokens_of_trials_are_charged_and_are_no_progress_of_the_call(kit: ModuleType) -> None:
    bench = kit.Bench()
    bench.submit(one_call(kit))
    bench.tokens(1, 70)
    bench.feed(e.TokensProduced(*CALL, 1, 9, trial=True))
    call = bench.state.runs["r"].tasks[1].call
    assert call.written == 70
    [done] = [x for x in bench.feed(e.TaskFinished(*CALL, 1, 10, 70)) if isinstance(x, c.Complete)]
    assert done.spent.output == 79


def test_a_call_that_is_to_end_early_is_cancelled_like_any_other(kit: ModuleType) -> None:
    bench = kit.Bench()
    bench.submit(one_call(kit))
    bench.feed(e.TrialAnswered(*CALL, 1, 64, 0, 1.0, 5))
    assert kit.brief(bench.cancel()) == ["cancel 1 at e0", "cancelled 1", "fail r cancelled"]
    assert kit.brief(bench.feed(e.TrialAnswered(*CALL, 1, 64, 0, 1.0, 5))) == []


def test_a_trial_that_nobody_asked_for_contradicts_the_contract(kit: ModuleType) -> None:
    bench = kit.Bench()
    bench.submit(one_call(kit))
    with pytest.raises(InternalError, match="cannot happen"):
        bench.feed(e.TrialAnswered(*CALL, 1, 63, 0, 1.0, 5))
    bench.feed(e.TrialAnswered(*CALL, 1, 64, 0, 1.0, 5))
    with pytest.raises(InternalError, match="cannot happen"):
        bench.feed(e.TrialAnswered(*CALL, 1, 128, 0, 1.0, 5))


def test_a_stop_says_what_the_rule_saw() -> None:
    assert CHAIN_RULES[DEFAULT_RULE]({"threshold": 0.5}).observe(Trial(1_216, 3, 0.75, 9)) == Stop(
        3, "confidence 0.75000 > 0.5 at 1,216 tokens"
    )


@pytest.mark.parametrize("exit", [None, EXIT], ids=["plain", "may end early"])
def test_a_call_that_may_end_early_is_at_one_engine_only(kit: ModuleType, exit: ExitSpec | None) -> None:
    bench = kit.Bench(engines=2, measure=True, pool=PoolConfig(hedge_after_s=1.0, hedge_share=1.0))
    for name in ("e0", "e1"):
        bench.engine(name, restart=True)
    bench.submit(one_call(kit, exit), tier="interactive")
    bench.measured(1)
    hedged = [line for line in kit.brief(bench.tick(1.5)) if line.startswith("hedge")]
    assert hedged == ([] if exit is not None else ["hedge 1 at e1"])


def test_a_rule_that_wants_answers_only_is_told_answers_only(kit: ModuleType) -> None:
    bench = kit.Bench(measure=True)
    bench.submit(one_call(kit))
    told = (("every", 16.0), ("window", 2.0))
    [*_, fork] = bench.measured(1, rule="certaindex", rule_args=told)
    assert fork == c.Fork(*CALL, 1, EngineId("e0"), 16, confident=False)
    assert kit.brief(bench.feed(e.TrialAnswered(*CALL, 1, 16, 0, None, 5))) == ["fork 1 at e0 from 32"]
    assert kit.brief(bench.feed(e.TrialAnswered(*CALL, 1, 32, 0, None, 5, hesitates=True))) == ["fork 1 at e0 from 48"]
    assert kit.brief(bench.feed(e.TrialAnswered(*CALL, 1, 48, 0, None, 5))) == ["fork 1 at e0 from 64"]
    assert kit.brief(bench.feed(e.TrialAnswered(*CALL, 1, 64, 0, None, 5))) == ["exit 1 at e0 with 0"]
