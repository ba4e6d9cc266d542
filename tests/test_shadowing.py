from flowserve.shadowing import is_shadowed


def test_the_share_that_is_shadowed_is_the_share_asked_for() -> None:
    chosen = sum(is_shadowed(f"request-{number}", 0.02) for number in range(20_000))
    assert 0.017 < chosen / 20_000 < 0.023


def test_who_is_shadowed_is_decided_by_the_id_and_a_greater_share_adds_to_it() -> None:
    few = {number for number in range(5000) if is_shadowed(str(number), 0.01)}
    assert few == {number for number in range(5000) if is_shadowed(str(number), 0.01)}
    assert few < {number for number in range(5000) if is_shadowed(str(number), 0.02)}
    assert not any(is_shadowed(str(number), 0.0) for number in range(5000))
    assert all(is_shadowed(str(number), 1.0) for number in range(100))
