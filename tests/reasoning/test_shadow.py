import random
from dataclasses import replace

import pytest

from flowserve.reasoning.certificates import Certificate
from flowserve.reasoning.shadow import Shadow, Verdict


def drawn(chance: random.Random, harm: float, rescue: float, differ: float) -> Verdict:
    at = chance.random()
    for verdict, share in ((Verdict.HARMED, harm), (Verdict.RESCUED, rescue), (Verdict.DIFFERED, differ)):
        if at < share:
            return verdict
        at -= share
    return Verdict.AGREED


def shadows_until_revoked(
    certificate: Certificate, seed: int, most: int, harm: float = 0.0, rescue: float = 0.0, differ: float = 0.0
) -> int | None:
    chance, shadow = random.Random(seed), Shadow(certificate)
    for number in range(1, most + 1):
        if shadow.observe(drawn(chance, harm, rescue, differ)):
            return number
    return None


def test_a_certificate_that_holds_is_hardly_ever_revoked_however_often_it_is_looked_at(
    certificate: Certificate,
) -> None:
    """At the limits of both: 1 point of harm or 4 of differing answers in all requests, of which three quarters are stopped."""
    harm, differ = 0.01 / 0.75, 0.04 / 0.75
    for case in ({"harm": harm}, {"harm": 0.05 + harm, "rescue": 0.05}, {"differ": differ}):
        revoked = sum(shadows_until_revoked(certificate, seed, 400, **case) is not None for seed in range(60))
        assert revoked <= 2, case


@pytest.mark.parametrize(
    ("case", "most"), [({"harm": 0.15}, 150), ({"harm": 0.3, "rescue": 0.1}, 150), ({"differ": 0.3}, 100)]
)
def test_drift_revokes_within_some_hundred_shadows(certificate: Certificate, case: dict[str, float], most: int) -> None:
    numbers = sorted(shadows_until_revoked(certificate, seed, 600, **case) or 10_000 for seed in range(21))
    assert numbers[10] <= most


def test_rescues_and_answers_that_a_checker_found_no_worse_revoke_nothing(certificate: Certificate) -> None:
    assert shadows_until_revoked(certificate, 0, 2000, rescue=0.5) is None
    assert shadows_until_revoked(certificate, 0, 2000) is None


def test_the_reason_tells_what_was_seen(certificate: Certificate) -> None:
    shadow = Shadow(certificate)
    reasons = [shadow.observe(Verdict.HARMED) for _ in range(12)]
    assert reasons[0] is None
    assert reasons[-1] == (
        "shadows show more net harm than 1.33 % of stopped requests: 0 agreed, 12 harmed, 0 rescued, 0 differed"
    )


def test_a_restart_goes_on_from_the_tally(certificate: Certificate) -> None:
    first = Shadow(certificate)
    for _ in range(5):
        first.observe(Verdict.HARMED)
    second = Shadow(certificate, tally=dict(first.tally))
    assert second.observe(Verdict.HARMED) == first.observe(Verdict.HARMED)
    assert second.evidence_of_harm() == first.evidence_of_harm()


def test_where_few_are_stopped_each_of_them_may_harm_more(certificate: Certificate) -> None:
    assert Shadow(replace(certificate, stopped=60)).harm_limit == pytest.approx(0.2)
    assert Shadow(replace(certificate, stopped=1)).harm_limit == 0.99
