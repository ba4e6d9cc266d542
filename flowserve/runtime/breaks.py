"""Where a chain of thought may be forked: after which of its tokens a paragraph has just ended.

Engines send text in pieces that need not end where tokens do, so text is made again from the tokens, one by one.
"""

from collections.abc import Sequence

from flowserve.engines.detok import Decode, Detokenizer
from flowserve.ids import Tokens


class Breaks:
    """Reads one chain. `at` is what has to stand before a fork, `mark` what ends the thoughts; None: nothing does."""

    def __init__(self, decode: Decode, at: str, mark: str | None) -> None:
        self.position: Tokens = 0
        """Tokens read."""
        self.closed = False
        """The mark has been read: what follows is the model's answer, and is left alone."""
        self._text = Detokenizer(decode)
        self._at = at
        self._mark = mark
        self._tail = ""

    def push(self, ids: Sequence[int]) -> list[Tokens]:
        """The positions among those of `ids` behind which the chain may be forked."""
        return [self.position for i in ids if self._ends(i)]

    def _ends(self, token: int) -> bool:
        """Does `at` end with this token?"""
        self.position += 1
        new = self._text.push((token,))
        if self.closed or not new:
            return False
        window = self._tail + new
        if self._mark is not None and self._mark in window:
            self.closed = True
            return False
        self._tail = window[-max(len(self._at), len(self._mark or "")) :]
        return window.endswith(self._at)
