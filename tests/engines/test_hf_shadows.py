"""Shadows of blended calls by themselves: what is let go, what fails, and a breach that cannot be written down."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from flowserve.cachestore.divergence import LogProbs
from flowserve.cachestore.gatefiles import Gates
from flowserve.cachestore.gates import Figures, Gate, Thresholds, subject_of
from flowserve.cachestore.keys import Identity
from flowserve.cachestore.policies import Policy
from flowserve.cachestore.segments import Quality
from flowserve.engines.base import Call, Origin, Sampling, Segment
from flowserve.engines.hf_shadows import ReuseShadows, shadow_of
from flowserve.errors import EngineError

IDENTITY = Identity("f" * 64, "main", "tok", "bfloat16")
POLICY = Policy("first_k", k=4)
LIKELY_FIRST = np.log(np.array([0.9, 0.1]))
LIKELY_SECOND = np.log(np.array([0.01, 0.99]))
CALL = Call(
    "call",
    (Segment((1, 2), Origin.CHUNK),),
    Sampling(max_tokens=50, temperature=1.0, n=1),
    priority=3,
    regex="a+",
    session="s",
    keep_s=5.0,
    tenant="t",
    resumed=(9, 9),
    reuse=Quality.FAST,
)


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    created = datetime.now(UTC)
    gate = Gate(
        subject_of(IDENTITY, POLICY, "raw16"),
        "m",
        Figures(400, "f1", 0.9, 0.9, 0.0, 0.0, 0, 0),
        Thresholds(),
        "none",
        "",
        created,
        created + timedelta(days=1),
        {},
    )
    Gates(tmp_path).write(gate)
    return Gates(tmp_path)


def shadows(gates: Gates, first: Callable[[Call], Awaitable[LogProbs]]) -> tuple[ReuseShadows, list[Policy]]:
    off: list[Policy] = []
    return ReuseShadows(gates, 1.0, IDENTITY, "raw16", first, off.append), off


async def answered(call: Call) -> LogProbs:
    return LIKELY_FIRST


def test_a_shadow_is_the_same_prompt_of_the_same_tenant_without_pasting_behind_everything_else() -> None:
    shadow = shadow_of(CALL)
    assert (shadow.segments, shadow.resumed, shadow.tenant) == (CALL.segments, CALL.resumed, CALL.tenant)
    assert shadow.reuse is Quality.EXACT and shadow.priority > CALL.priority + 1000 and shadow.id != CALL.id
    assert shadow.sampling.max_tokens == 3 and not shadow.constrained
    assert shadow.session is None and not shadow.keep_s


async def test_others_that_are_due_while_one_is_at_work_are_let_go(gates: Gates) -> None:
    asked: list[str] = []
    answer: asyncio.Future[LogProbs] = asyncio.get_running_loop().create_future()

    async def first(call: Call) -> LogProbs:
        asked.append(call.id)
        return await answer

    watched, off = shadows(gates, first)
    for _ in range(3):
        watched.begin(CALL, POLICY, LIKELY_FIRST)
    answer.set_result(LIKELY_FIRST)
    await watched.settled()
    assert asked == ["call/reuse-shadow"] and not off
    assert watched.verdicts == {("shadow", "let_go"): 2, ("shadow", "agreed"): 1}


async def test_a_shadow_that_fails_says_nothing_about_the_policy_and_the_next_one_runs(gates: Gates) -> None:
    answers = iter([EngineError("out of memory"), LIKELY_FIRST])

    async def first(call: Call) -> LogProbs:
        answer = next(answers)
        if isinstance(answer, EngineError):
            raise answer
        return answer

    watched, off = shadows(gates, first)
    for _ in range(2):
        watched.begin(CALL, POLICY, LIKELY_FIRST)
        await watched.settled()
    assert watched.verdicts == {("shadow", "failed"): 1, ("shadow", "agreed"): 1} and not off


async def test_a_breach_that_cannot_be_written_down_turns_the_policy_off_all_the_same(
    gates: Gates, tmp_path: Path
) -> None:
    watched, off = shadows(gates, answered)
    watched.begin(CALL, POLICY, LIKELY_SECOND)
    await watched.settled()
    [tally] = tmp_path.glob("*.shadows")
    tally.unlink()
    (tally / "in the way").mkdir(parents=True)
    for _ in range(8):
        watched.begin(CALL, POLICY, LIKELY_SECOND)
        await watched.settled()
    assert off and set(off) == {POLICY}


async def test_a_gate_file_that_cannot_be_read_is_told_and_proves_nothing(gates: Gates, tmp_path: Path) -> None:
    [path] = tmp_path.glob("*.gate.json")
    path.write_text("{")
    watched, off = shadows(gates, answered)
    watched.begin(CALL, POLICY, LIKELY_FIRST)
    await watched.settled()
    assert watched.verdicts == {("shadow", "failed"): 1} and not off
