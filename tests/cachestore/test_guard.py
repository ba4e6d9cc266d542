import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.cachestore.gatefiles import Absent, Gates
from flowserve.cachestore.gates import Figures, Gate, Thresholds, subject_of
from flowserve.cachestore.guard import Guard, Tally, Watch, evidence_over
from flowserve.cachestore.keys import Identity
from flowserve.cachestore.policies import Policy
from flowserve.errors import ConfigError, StoreError
from flowserve.shadowing import is_shadowed

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GATE = Gate(
    subject_of(Identity("f" * 64, "main", "tok", "bfloat16"), Policy("first_k"), "raw16"),
    "org/model-7b",
    Figures(400, "f1", 0.62, 0.618, 0.015, 0.02, 6, 8),
    Thresholds(),
    "musique",
    "0" * 64,
    NOW,
    NOW + timedelta(days=90),
    {},
)


def turned_off_after(seed: int, most: int, far: float = 0.0, differing: float = 0.0) -> int | None:
    chance, watch = random.Random(seed), Watch(GATE)
    for number in range(1, most + 1):
        if watch.observe(9.0 if chance.random() < far else 0.01, chance.random() >= differing):
            return number
    return None


def test_a_policy_within_its_gates_bounds_is_hardly_ever_turned_off_however_often_it_is_looked_at() -> None:
    cases = ({"far": GATE.far_high}, {"differing": GATE.differing_high}, {})
    for case in cases:
        assert sum(turned_off_after(seed, 150, **case) is not None for seed in range(30)) <= 1, case


@pytest.mark.parametrize(("case", "most"), [({"far": 0.3}, 60), ({"differing": 0.3}, 60), ({"differing": 0.12}, 400)])
def test_drift_turns_it_off_within_some_hundred_shadows(case: dict[str, float], most: int) -> None:
    numbers = sorted(turned_off_after(seed, most, **case) or 10_000 for seed in range(11))
    assert numbers[5] <= most


def test_it_is_turned_off_as_soon_as_the_evidence_is_two_over_the_error_and_not_before() -> None:
    watch = Watch(GATE, error=0.01)
    for seen in range(1, 200):
        reason = watch.observe(0.1, agrees=seen % 5 != 0)
        wealth = evidence_over(seen // 5, seen, GATE.differing_high)
        assert (reason is not None) == (wealth >= 200)
        if reason is not None:
            return
    raise AssertionError("it was never turned off")


def test_a_distribution_that_is_no_number_counts_as_far() -> None:
    watch = Watch(GATE)
    watch.observe(float("nan"), True)
    assert watch.tally == Tally(1, 1, 0)


@settings(max_examples=60)
@given(st.integers(1, 200), st.floats(0.01, 0.9), st.data())
def test_evidence_grows_with_what_counts_against_a_share(seen: int, limit: float, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, seen - 1))
    assert evidence_over(count, seen, limit) < evidence_over(count + 1, seen, limit)
    if count / seen <= limit:
        assert evidence_over(count, seen, limit) <= 1.0 + 1e-9


def test_one_in_a_hundred_is_shadowed_and_others_than_by_other_guards() -> None:
    guard = Guard(Gates(Path("nowhere")))
    chosen = {number for number in range(20_000) if guard.is_shadowed(f"request-{number}")}
    assert 0.007 < len(chosen) / 20_000 < 0.013
    assert chosen == {number for number in range(20_000) if guard.is_shadowed(f"request-{number}")}
    assert chosen != {number for number in range(20_000) if is_shadowed(f"request-{number}", 0.01)}


def until_off(guard: Guard, gate: Gate = GATE) -> tuple[int, str]:
    for number in range(1, 100):
        reason = guard.observe(gate, 0.1, False)
        if reason is not None:
            return number, reason
    raise AssertionError("it was never turned off")


def test_a_breach_turns_the_policy_off_once_and_keeps_why(tmp_path: Path) -> None:
    gates = Gates(tmp_path)
    gates.write(GATE)
    guard = Guard(gates)
    number, reason = until_off(guard)
    assert reason == f"shadows show more other first tokens than 3.58 %: {number} of {number}"
    assert guard.disabled == {GATE.subject: reason}
    assert guard.observe(GATE, 0.1, False) is None
    found = gates.lookup(GATE.subject, NOW)
    assert isinstance(found, Absent)
    assert found.reason.endswith(f"was revoked: {reason}")
    assert guard.tallies == {GATE.subject: Tally(number, 0, number)}


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    gates = Gates(tmp_path)
    gates.write(GATE)
    alone, _ = until_off(Guard(Gates(tmp_path / "other")))
    for _ in range(alone - 1):
        assert Guard(gates).observe(GATE, 0.1, False) is None
    assert Guard(gates).observe(GATE, 0.1, False) is not None


def test_a_new_measurement_is_watched_anew(tmp_path: Path) -> None:
    gates = Gates(tmp_path)
    gates.write(GATE)
    guard = Guard(gates)
    number, _ = until_off(guard)
    again = replace(GATE, created=NOW + timedelta(days=1))
    gates.write(again)
    assert until_off(guard, again)[0] == number
    assert Guard(gates).observe(replace(GATE, created=NOW + timedelta(days=2)), 0.1, False) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", f'{{"gate": "{NOW.isoformat()}", "tally": {{"seen": 1, "far": 2}}}}'])
def test_a_broken_memory_is_an_error_and_not_an_empty_one(tmp_path: Path, text: str) -> None:
    gates = Gates(tmp_path)
    guard = Guard(gates)
    guard.observe(GATE, 0.1, True)
    (path,) = tmp_path.glob("*.shadows")
    path.write_text(text)
    with pytest.raises(StoreError, match="expected what shadows have shown"):
        Guard(gates).observe(GATE, 0.1, True)


@pytest.mark.parametrize(("share", "error"), [(-0.1, 0.01), (1.1, 0.01), (0.01, 0.0), (0.01, 0.5)])
def test_shares_and_errors_that_are_none_are_refused(share: float, error: float) -> None:
    with pytest.raises(ConfigError, match="guard: expected share"):
        Guard(Gates(Path("nowhere")), share, error)
