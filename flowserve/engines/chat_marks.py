"""Finding again, in a rendered prompt, what came from which message.

A text to be rendered is replaced by a marker, or its special tokens are (guarded). `split` cuts the rendering at the
marks; `matched` puts the real texts in, trimmed where the template trims, and checks that the whole is the real rendering.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flowserve.engines.base import Origin

# Two private-use characters bracket a marker (message number, "m3") or a guarded string ("g7"). Texts that contain these
# characters themselves are guarded, so nobody can write a marker.

OPEN, CLOSE = "\ue0f0", "\ue0f1"
MARK_CHARACTERS = re.compile(f"[{OPEN}{CLOSE}]")
_MARK = re.compile(f"{OPEN}([mg])(\\d+){CLOSE}")


def marker(message: int) -> str:
    return f"{OPEN}m{message}{CLOSE}"


class Guard:
    """Replaces special tokens in texts by marks, and remembers them."""

    def __init__(self, pattern: re.Pattern[str], strings: list[str] | None = None) -> None:
        """Guards that write into one rendering share their `strings`."""
        self._pattern = pattern
        self.strings: list[str] = [] if strings is None else strings

    def __call__(self, text: str) -> str:
        return self._pattern.sub(self._mark, text)

    def _mark(self, match: re.Match[str]) -> str:
        self.strings.append(match.group())
        return f"{OPEN}g{len(self.strings) - 1}{CLOSE}"


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the rendered prompt."""

    kind: str
    """own: the template's text. message: (part of) a message's text. data: a guarded string."""
    text: str
    origin: Origin = Origin.TEMPLATE
    message: int = -1
    start: int = 0
    """message: offset of `text` in the message's text."""


def split(rendered: str, guard: Guard, rewritten: bool) -> list[Part]:
    """The rendering at its marks. `rewritten`: some real text is in it, so its own text is no constant."""
    own = Origin.VALUE if rewritten else Origin.TEMPLATE
    parts: list[Part] = []
    at = 0
    for match in _MARK.finditer(rendered):
        if match.start() > at:
            parts.append(Part("own", rendered[at : match.start()], own))
        number = int(match.group(2))
        if match.group(1) == "m":
            parts.append(Part("message", "", message=number))
        else:
            parts.append(Part("data", guard.strings[number]))
        at = match.end()
    if at < len(rendered):
        parts.append(Part("own", rendered[at:], own))
    return parts


def matched(shape: Sequence[Part], texts: Sequence[str], plain: str) -> list[Part] | None:
    """`shape` with texts such that it joins to `plain`: each message whole, or trimmed as templates trim."""
    options = [_variants(texts[p.message]) if p.kind == "message" else [(0, p.text)] for p in shape]
    ends = [0]  # ends[i]: where part i begins in `plain`
    taken: list[int] = []  # which option each part took
    option = 0
    dead: set[tuple[int, int]] = set()  # (part, position) from where no way leads to the end
    while len(taken) < len(shape) or ends[-1] != len(plain):
        i, at = len(taken), ends[-1]
        fits = i < len(shape) and (i, at) not in dead
        while fits and option < len(options[i]) and not plain.startswith(options[i][option][1], at):
            option += 1
        if fits and option < len(options[i]):
            taken.append(option)
            ends.append(at + len(options[i][option][1]))
            option = 0
            continue
        dead.add((i, at))
        if not taken:
            return None
        option = taken.pop() + 1
        ends.pop()
    chosen = [options[i][option] for i, option in enumerate(taken)]
    return [replace(part, text=text, start=start) for part, (start, text) in zip(shape, chosen, strict=True)]


def _variants(text: str) -> list[tuple[int, str]]:
    """(offset, text) of what templates make of a text's edges."""
    left = text.lstrip()
    newline = text.lstrip("\n")
    found = [
        (0, text),
        (len(text) - len(left), left.rstrip()),
        (len(text) - len(left), left),
        (0, text.rstrip()),
        (len(text) - len(newline), newline),
        (len(text) - len(newline), newline.rstrip("\n")),
        (0, text.rstrip("\n")),
    ]
    return list(dict.fromkeys(found))
