"""Where a search goes on: shares of a width by reward (REBASE), and the choice among children of a tree (UCT)."""

from collections.abc import Sequence
from math import exp, floor, inf, log, sqrt


def balanced(rewards: Sequence[float], width: int, temperature: float) -> tuple[int, ...]:
    """How many children each node of a level gets: `width` times the softmax of reward / temperature (REBASE, Wu et al., arXiv
    2408.00724, section 3.2, reward-balanced search).

    The paper rounds each share by itself, so that a level may have more or fewer than `width` children. Here the shares are
    rounded down and what is missing goes to the largest remainders, ties to the earliest node: they add up to `width`.
    """
    if not rewards:
        return ()
    greatest = max(rewards)
    weights = [exp((reward - greatest) / temperature) for reward in rewards]
    shares = [width * weight / sum(weights) for weight in weights]
    counts = [floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda place: (counts[place] - shares[place], place))
    for place in by_remainder[: width - sum(counts)]:
        counts[place] += 1
    return tuple(counts)


def uct(total: float, visits: int, of_parent: int, exploration: float) -> float:
    """Upper confidence bound of a child that earned `total` in `visits` visits, its parent having `of_parent` (UCB1 applied to
    trees, Kocsis and Szepesvari 2006). One that was never visited comes first."""
    if not visits:
        return inf
    return total / visits + exploration * sqrt(log(of_parent) / visits)
