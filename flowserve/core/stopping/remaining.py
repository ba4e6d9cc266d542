"""How much of a program is left, by what it has said so far: for policies that let the shorter go first.

Fu et al., Dynasor (arXiv 2412.20993), order programs by samples still granted times the mean tokens of a program's branches. Here
the samples are those that its stopping rule is expected to want.
"""

from collections.abc import Mapping

from flowserve.core.stopping.samples import Rule, Votes
from flowserve.core.stopping.signals import UNUSABLE, Label
from flowserve.ids import Seconds


def expected(rule: Rule, votes: Votes, args: Mapping[str, float], left: int) -> int:
    """Further samples until `rule` stops, at most `left`, if answers go on to fall as they have fallen: the leader's share of them
    to the leader, evenly spread, the others to its rival. Three answers are thought of besides, two of them the leader's, so that few are
    not taken for all; with one for either side what is left of drawn-out votes was overrated.

    A path and not a mean: no chance is summed over, so a rule that waits for luck, such as a unanimous window, looks longer than it is.
    """
    first, second = _two(votes)
    share = (votes.get(first, 0) + 2) / (len(votes.order) + 3)
    seen, due = Votes(votes.order), 0.5
    for count in range(1, left + 1):
        due += share
        seen.add(first if due >= 1.0 else second)
        due -= due >= 1.0
        if rule(seen, {**args, "left": left - count}):
            return count
    return left


def _two(votes: Votes) -> tuple[Label, Label]:
    """The leader and its rival, those that came first among equals; a leader without a rival has those against it that agree with nothing."""
    usable = sorted((label for label in votes if label != UNUSABLE), key=lambda label: -votes[label])
    first, second, *_ = [*(usable or [0]), UNUSABLE, UNUSABLE]
    return first, second


def branch_s(usual_s: Seconds, usual_tokens: float, calls: int, tokens: int) -> Seconds:
    """What a call of a branch takes: `usual_s`, and where the program has made `calls` of them that wrote `tokens` in all, as much longer as
    these were."""
    if not calls or usual_tokens <= 0:
        return usual_s
    return usual_s * tokens / calls / usual_tokens
