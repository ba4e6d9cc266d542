"""How many samples to begin at once, so that none is begun that a stop could make needless."""

from collections.abc import Mapping

from flowserve.core.stopping.samples import Rule, Votes
from flowserve.core.stopping.signals import UNUSABLE, Label


def needed(rule: Rule, votes: Votes, args: Mapping[str, float], left: int, least: int = 1) -> int:
    """The least number of further samples after which `rule` could stop, at most `left`: by asking it what it would say if all
    of them agreed. As many may be under way without any of them being begun in vain.

    `least`: fewer are known not to suffice. A label that arrives makes the number less by one at most, so a caller that asks after each
    may give the number before less one, and asks the rule about once per label.
    """
    least = max(1, least)
    if least >= left:
        return left
    return min(_agreeing(rule, votes, args, left, least, label) for label in _hopes(votes))


def _hopes(votes: Votes) -> tuple[Label, ...]:
    """What the others would have to say: the leader, or what a window that is open has begun with."""
    usable = [label for label in votes if label != UNUSABLE]
    if not usable:
        return (0,)
    leader = max(usable, key=lambda label: votes[label])
    return tuple(dict.fromkeys((leader, votes.order[-1]))) if votes.order[-1] != UNUSABLE else (leader,)


def _agreeing(rule: Rule, votes: Votes, args: Mapping[str, float], left: int, least: int, label: Label) -> int:
    hoped = Votes(votes.order)
    for _ in range(least - 1):
        hoped.add(label)
    for count in range(least, left):
        hoped.add(label)
        if rule(hoped, {**args, "left": left - count}):
            return count
    return left
