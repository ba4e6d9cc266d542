from datetime import UTC, datetime, timedelta

import pytest

from flowserve.reasoning.certificates import Certificate, Subject


@pytest.fixture
def certificate() -> Certificate:
    """Three quarters of the chains were stopped, and one percentage point of net harm was allowed."""
    created = datetime(2026, 3, 1, 12, tzinfo=UTC)
    return Certificate(
        subject=Subject("org/model-7b", "boxed", "math"),
        rule="deer",
        args={"threshold": 0.999},
        num_problems=400,
        num_trajectories=1200,
        stopped=900,
        harmed=3,
        rescued=4,
        differing=9,
        change=0.001,
        change_low=-0.008,
        margin=0.01,
        error=0.05,
        saved=0.3,
        saved_low=0.28,
        saved_high=0.32,
        differing_high=0.04,
        unseen_change=0.0,
        unseen_saved=0.29,
        bank="0" * 64,
        created=created,
        expires=created + timedelta(days=90),
    )
