"""What a program may still spend: calls are set aside, tokens are counted, and nothing is granted twice."""

from flowserve.programs.purse import Purse, Spent


def test_calls_of_branches_at_work_are_set_aside_and_what_they_did_not_make_comes_back() -> None:
    purse = Purse(calls=10, tokens=None)
    assert purse.grant(3, 2) == 3
    assert purse.grant(3, 2) == 2 and purse.short, "six of ten are set aside"
    for _ in range(5):
        purse.settle(2, Spent(1, 7))
    assert (purse.spent, purse.grant(9, 2)) == (Spent(5, 35), 2)
    assert str(purse) == "budget: 5 of 10 calls"


def test_tokens_grant_what_fits_by_the_average_of_what_was_read() -> None:
    purse = Purse(calls=None, tokens=100)
    assert purse.grant(4, 1) == 4, "nothing is known of the first ones"
    for tokens in (10, 20, 10, 20):
        purse.settle(1, Spent(1, tokens))
    assert purse.grant(9, 1) == 2, "40 are left, and 15 are expected of each"
    purse.settle(1, Spent(1, 50))
    assert (purse.grant(1, 1), str(purse)) == (0, "budget: 110 of 100 tokens")


def test_without_bounds_all_is_granted() -> None:
    purse = Purse(None, None)
    assert purse.grant(1000, 3) == 1000 and not purse.short
