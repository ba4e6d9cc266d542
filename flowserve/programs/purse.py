"""What a program may still spend: calls are set aside when branches begin, tokens are counted when their ends are read.

Nothing here depends on which branch happens to end first, so equal answers lead to equal grants.
"""

from dataclasses import dataclass

from flowserve.ids import Tokens


@dataclass(frozen=True, slots=True)
class Spent:
    """What branches that were read have taken."""

    calls: int = 0
    tokens: Tokens = 0


class Purse:
    """A budget of calls and tokens; None: no bound."""

    def __init__(self, calls: int | None, tokens: Tokens | None) -> None:
        self._calls = calls
        self._tokens = tokens
        self._held = 0
        self._read = 0
        self.spent = Spent()
        self.short = False
        """Fewer branches were granted than were wanted."""

    def grant(self, wanted: int, calls_each: int) -> int:
        """How many of `wanted` branches may begin, of which each makes at most `calls_each` calls; those are set aside.

        Of tokens each is expected to take what the branches that were read took on average. The first ones are not bounded by
        tokens: nothing is known of them.
        """
        granted = wanted
        if self._calls is not None:
            granted = min(granted, (self._calls - self.spent.calls - self._held) // calls_each)
        if self._tokens is not None and self._read:
            left = max(0, self._tokens - self.spent.tokens)
            granted = min(granted, left * self._read // max(1, self.spent.tokens))
        self.short = self.short or granted < wanted
        self._held += granted * calls_each
        return granted

    def settle(self, calls_each: int, took: Spent) -> None:
        """A branch for which `calls_each` calls were set aside has been read."""
        self._held -= calls_each
        self._read += 1
        self.spent = Spent(self.spent.calls + took.calls, self.spent.tokens + took.tokens)

    def __str__(self) -> str:
        bounds = [
            f"{spent:,} of {limit:,} {what}"
            for what, spent, limit in (
                ("calls", self.spent.calls, self._calls),
                ("tokens", self.spent.tokens, self._tokens),
            )
            if limit is not None
        ]
        return "budget: " + ", ".join(bounds)
