"""Token ids to text deltas, one token at a time.

`Detokenizer` never emits half a character and its deltas concatenate to the decoding of all ids.
`StopScanner` holds back what may be the beginning of a stop string. `TextStream` is the two in a row;
every engine that makes tokens itself uses it.
"""

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CONTEXT_TOKENS = 4
"""Tokens decoded again before the new ones. Decoders treat the first token specially (word pieces, the leading
space of SentencePiece) and some look one or two back (spaces before punctuation)."""
WINDOW_TOKENS = 16
"""The context grows to this before it is cut again: one decoding per token instead of two."""
PATIENCE_TOKENS = 8
"""An incomplete character is waited for this long; a UTF-8 character has four bytes, so longer is garbage."""

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Incremental decoding of one sequence.

    ids:     [ ... context ... | emitted up to here | pending ]
                   ^_start            ^_read
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0
        self._read = 0
        self._known = ""  # text of the context
        self._length = 0  # characters emitted

    def push(self, ids: Sequence[int]) -> str:
        """The text that `ids` complete; may be empty."""
        self._ids.extend(ids)
        window = self._decode(self._ids[self._start :])
        if window.endswith(REPLACEMENT) and len(self._ids) - self._read < PATIENCE_TOKENS:
            return ""
        if not window.startswith(self._known):
            return ""  # a later token changed an earlier one's text; finish() settles it
        delta = window[len(self._known) :]
        if not delta:
            return ""
        self._read = len(self._ids)
        self._known = window
        self._length += len(delta)
        if self._read - self._start > WINDOW_TOKENS:
            self._start = self._context_start()
            self._known = self._decode(self._ids[self._start : self._read])
        return delta

    def finish(self) -> str:
        """What is still owed, incomplete characters included."""
        return self._decode(self._ids)[self._length :]

    def _context_start(self) -> int:
        """Some tokens back, further when that is inside a character or among special tokens only."""
        start = max(0, self._read - CONTEXT_TOKENS)
        last = max(0, start - 4 * PATIENCE_TOKENS)
        while start > last:
            text = self._decode(self._ids[start : self._read])
            if text and not text.startswith(REPLACEMENT):
                break
            start -= 1
        return start


class StopScanner:
    """Cuts a stream of text before the first stop string; holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is safe to show now. After a stop string: sets `stopped`, later text is dropped."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        hits = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            # The one that is complete first, so that the result does not depend on how the text is cut.
            self.stopped = True
            shown, self._held = self._held[: min(hits)[1]], ""
            return shown
        keep = self._possible_stop()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """What was held back; no stop string came."""
        shown, self._held = self._held, ""
        return shown

    def _possible_stop(self) -> int:
        """Length of the longest suffix that begins a stop string."""
        longest = min(len(self._held), max(len(stop) for stop in self._stops) - 1)
        for length in range(longest, 0, -1):
            suffix = self._held[-length:]
            if any(stop.startswith(suffix) for stop in self._stops):
                return length
        return 0


class TextStream:
    """Text of one choice: ids in, safe text out."""

    def __init__(self, decode: Decode, stops: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(decode)
        self._scanner = StopScanner(stops)

    @property
    def stopped(self) -> bool:
        """A stop string was found; no more text will come."""
        return self._scanner.stopped

    def push(self, ids: Sequence[int]) -> str:
        """One by one, so that what is shown does not depend on how the tokens come in pieces."""
        return "".join([self._scanner.push(self._detokenizer.push((i,))) for i in ids])

    def finish(self) -> str:
        """The rest. Call once, when no more ids come."""
        if self.stopped:
            return ""
        last = self._scanner.push(self._detokenizer.finish())
        return last if self.stopped else last + self._scanner.finish()
