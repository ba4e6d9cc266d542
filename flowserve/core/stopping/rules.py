"""What a stopping rule answers, and what it is asked by.

A rule is an object with state that belongs to one chain or one program: `begin` once, then `observe` for each signal, in order
of position. It neither acts nor reads a clock, so that replayed signals give equal decisions.
"""

from dataclasses import dataclass
from typing import Protocol

from flowserve.core.stopping.signals import Label, Signal
from flowserve.ids import Tokens


@dataclass(frozen=True, slots=True)
class Continue:
    """Go on; nothing is asked for. At the end of the chain its own answer counts."""


@dataclass(frozen=True, slots=True)
class ProbeAt:
    """Go on, and force an answer at the first opportunity (a paragraph's end, a block's end) from `position` on."""

    position: Tokens
    confident: bool = True
    """How sure the answer is has to be told (a Trial); False: the answer suffices (a Probe, or a Trial)."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Enough: submit the answer of class `label`."""

    label: Label
    why: str
    """For people: the rule, what it saw and what it asked for, e.g. `confidence 0.9993 >= 0.999 at 1,216 tokens`."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Begin `count` further branches."""

    count: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Stop `branch` and do not count it."""

    branch: int


Decision = Continue | ProbeAt | Stop | Spawn | Kill


class ExitRule(Protocol):
    """Decides for one chain or one program."""

    def begin(self) -> Decision:
        """Before the first token."""
        ...

    def observe(self, signal: Signal) -> Decision:
        """A signal has come. After a Stop nothing is observed."""
        ...
