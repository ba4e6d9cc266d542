"""The comparison compares the same programs, and its figures are what they are called."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest

import flowserve as fs
from flowserve.bench.workflows import compare, searching, served
from flowserve.bench.workflows.compare import WORKLOADS, interval, quantile, speedups
from flowserve.bench.workflows.picture import picture
from flowserve.bench.workflows.shape import Arrival, Workload
from flowserve.bench.workflows.systems import Balancer, follow
from flowserve.engines.base import Call
from flowserve.engines.chat import ChatFormat, Piece, PromptMessage
from flowserve.engines.words import WordTokenizer
from flowserve.errors import ConfigError

FORMAT = ChatFormat(WordTokenizer())


def scripted(text: str, max_tokens: int, seed: int | None = None) -> str:
    """What the model says: decided by the whole prompt, the limit and the seed."""
    return sha256(f"{max_tokens} {seed} {text}".encode()).hexdigest()[:12]


async def say(system: str, user: str, max_tokens: int, **sampling: Any) -> str:
    messages = [PromptMessage(role, (Piece(text),)) for role, text in (("system", system), ("user", user)) if text]
    text = "".join(segment.text for segment in FORMAT.segments(messages))
    return scripted(text, max_tokens, sampling.get("seed"))


def reply(call: Call) -> str:
    return scripted("".join(segment.text for segment in call.segments), call.sampling.max_tokens, call.sampling.seed)


def samples(workload: Workload) -> list[Arrival]:
    """One run of each of its workflows."""
    arrivals = workload.arrivals(Random(5), 1.0, 20.0)
    return list({arrival.workflow: arrival for arrival in arrivals}.values())


@pytest.mark.parametrize("name", WORKLOADS)
async def test_the_three_programs_of_a_workload_give_the_model_the_same_prompts(name: str, tmp_path: Path) -> None:
    """Every answer depends on its prompt, so results are equal only if all prompts behind them are."""
    pytest.importorskip("langgraph", reason="needs the extra bench")
    workload = WORKLOADS[name]
    graphs = workload.graphs()
    passages = workload.corpus()[:100] if workload.corpus is not None else []
    indexes = {searching.INDEX: passages} if passages else None
    async with searching.searchable(passages, tmp_path, embedder="hash"):
        for arrival in samples(workload):
            plain = await workload.plain[arrival.workflow](say, arrival.input)
            config = {"configurable": {"say": say}, "recursion_limit": 100}
            state = await graphs[arrival.workflow].ainvoke(dict(arrival.input), config)
            with fs.testing.engine(replies=reply, indexes=indexes):
                ours = await getattr(served, arrival.workflow).arun(**arrival.input)
            assert ours == plain
            assert state["result"] == plain


@pytest.mark.parametrize("name", WORKLOADS)
def test_arrivals_are_those_of_the_seed_in_order_of_time(name: str) -> None:
    arrivals = WORKLOADS[name].arrivals(Random("a"), 1.0, 15.0)
    assert arrivals == WORKLOADS[name].arrivals(Random("a"), 1.0, 15.0)
    assert arrivals != WORKLOADS[name].arrivals(Random("b"), 1.0, 15.0)
    times = [arrival.at_s for arrival in arrivals]
    assert times == sorted(times) and 0.0 <= times[0] and times[-1] < 15.0
    assert {arrival.workflow for arrival in arrivals} <= set(served.__all__)


def test_speedups_are_baseline_over_ours() -> None:
    found = speedups([[1.0, 2.0], [3.0]], [[2.0, 4.0], [6.0]])
    assert (found["speedup_mean"], found["speedup_p50"], found["speedup_p95"]) == (2.0, 2.0, 2.0)
    assert found["ci"] == pytest.approx([2.0, 2.0]), "every pair says the same"


def test_the_interval_holds_the_speedup_and_narrows_with_runs_and_rounds() -> None:
    rnd = Random(2)

    def pairs(rounds: int, runs: int) -> tuple[list[list[float]], list[list[float]]]:
        ours = [[rnd.uniform(0.5, 1.5) for _ in range(runs)] for _ in range(rounds)]
        return ours, [[1.5 * seconds + rnd.uniform(-0.3, 0.3) for seconds in one] for one in ours]

    few, more, many = (interval(*pairs(rounds, runs), draws=500) for rounds, runs in ((1, 8), (1, 400), (8, 400)))
    assert all(low < 1.5 < high for low, high in (few, more, many))
    assert many[1] - many[0] < more[1] - more[0] < few[1] - few[0]


def test_rounds_that_disagree_widen_the_interval() -> None:
    ours = [[1.0] * 50, [1.0] * 50]
    assert interval(ours, [[1.0] * 50, [2.0] * 50]) == pytest.approx([1.0, 2.0])
    assert interval(ours, [[1.5] * 50, [1.5] * 50]) == pytest.approx([1.5, 1.5])


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0), (0.95, 3.85)])
def test_quantiles_lie_between_neighbours(share: float, expected: float) -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], share) == pytest.approx(expected)


async def test_a_run_is_bound_to_the_server_with_the_fewest_runs() -> None:
    balancer = Balancer(["a", "b"])
    async with balancer.bound() as first, balancer.bound() as second:
        async with balancer.bound() as third:
            assert (first, second, third) == ("a", "b", "a")
        assert balancer.live == {"a": 1, "b": 1}
    assert balancer.live == {"a": 0, "b": 0}


async def test_calls_of_a_run_stay_at_its_server_unless_calls_are_balanced() -> None:
    for each_call, expected in ((False, ["a", "a"]), (True, ["a", "b"])):
        async with Balancer(["a", "b"], each_call).run() as bound, bound() as first, bound() as second:
            assert [first, second] == expected


class Broken:
    name = "broken"

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def run(self, workload: Workload, arrival: Arrival) -> Any:
        if arrival.workflow == "bad":
            raise RuntimeError("500 no")
        self.ended.append(arrival.workflow)
        return "ok"


async def test_a_failed_run_fails_the_comparison_after_the_others_have_ended() -> None:
    system = Broken()
    runs: Sequence[Arrival] = [Arrival(0.0, "bad", {}), Arrival(0.0, "good", {})]
    with pytest.raises(RuntimeError, match="500 no"):
        await follow(system, WORKLOADS["triage"], runs)
    assert system.ended == ["good"]


def test_an_unknown_workload_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="--workload: expected some of triage, mapreduce"):
        compare.run(
            ["lottery"], rounds=1, seconds=1.0, load=1.0, size="4m", model=None, replicas=1, policy="fcfs",
            shared=False, balance="run", say=print,
        )  # fmt: skip


def test_the_picture_shows_every_workload_with_its_interval_and_the_line_of_equality() -> None:
    rows = [
        {"name": "W1 <one>", "speedup_mean": 1.5, "ci": [1.4, 1.6], "speedup_p95": 2.0},
        {"name": "W2", "speedup_mean": 0.9, "ci": [0.8, 1.0], "speedup_p95": 0.7},
    ]
    drawn = picture(rows, "a title")
    assert "W1 &lt;one&gt;" in drawn and "1.50" in drawn and "0.90" in drawn
    assert drawn.count("<circle") == 2 and drawn.count('class="interval"') == 2
    assert 'class="equal"' in drawn
