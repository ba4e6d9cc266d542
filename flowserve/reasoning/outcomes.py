"""What a rule did to recorded trajectories, and the figures of many."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flowserve.ids import Tokens


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one trajectory under one rule."""

    model: str
    dataset: str
    problem: str
    seed: int
    full_tokens: Tokens
    """Written by the whole chain."""
    main_tokens: Tokens
    """Written by the chain until it stopped or ended."""
    extra_tokens: Tokens
    """Written by trials and probes until then."""
    full_correct: bool
    correct: bool
    stopped: bool
    differs: bool = False
    """Stopped with another answer than the whole chain gave, right or wrong."""

    @property
    def harm(self) -> bool:
        """Stopping lost a right answer."""
        return self.full_correct and not self.correct

    @property
    def rescue(self) -> bool:
        """Stopping found a right answer that the whole chain went on to lose."""
        return self.correct and not self.full_correct


def untouched(outcome: Outcome) -> Outcome:
    """Of the same chain, had no rule looked at it."""
    return replace(
        outcome,
        main_tokens=outcome.full_tokens,
        extra_tokens=0,
        correct=outcome.full_correct,
        stopped=False,
        differs=False,
    )


def accuracy_change_pp(outcomes: Sequence[Outcome]) -> float:
    """Accuracy with the rule less accuracy without, in percentage points."""
    return 100 * sum(item.correct - item.full_correct for item in outcomes) / len(outcomes)


def tokens_saved_pct(outcomes: Sequence[Outcome]) -> float:
    """Net: trials and probes are charged. Of the tokens of whole chains, in percent."""
    full = sum(item.full_tokens for item in outcomes)
    return 100 * (full - sum(item.main_tokens + item.extra_tokens for item in outcomes)) / full
