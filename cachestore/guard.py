"""Shadowing: a few blended requests are prefilled in full as well, and what that shows can turn a policy off.

Whoever serves asks `is_shadowed`, computes the first token's distribution again for those that are, and tells `observe`. The
client has its answer long before. A policy that was turned off stays off, over restarts, until an operator measures anew.
"""

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from flowserve.bounds import evidence_of_counts
from flowserve.cachestore.gatefiles import Gates, write_whole
from flowserve.cachestore.gates import Gate, Subject
from flowserve.errors import ConfigError, StoreError
from flowserve.shadowing import is_shadowed


@dataclass
class Tally:
    """What shadows have shown of one gate: all that is remembered."""

    seen: int = 0
    far: int = 0
    """First tokens' KL of at least the gate's `Thresholds.kl`."""
    differing: int = 0
    """The likeliest first token was another."""


@dataclass
class Watch:
    """Watches one gate. It may be asked after every request: the chance that a policy whose shares are within the gate's
    bounds is ever turned off is at most `error`, half of it for each share."""

    gate: Gate
    error: float = 0.01
    tally: Tally = field(default_factory=Tally)

    def observe(self, kl: float, agrees: bool) -> str | None:
        """Why the policy has to be turned off, None if it need not. `kl`: nats, full prefill's first token from the policy's."""
        tally, limits = self.tally, self.gate.thresholds
        tally.seen += 1
        tally.far += not kl < limits.kl
        tally.differing += not agrees
        for what, count, limit in (
            (f"first tokens with a KL from {limits.kl:g} nats", tally.far, self.far_high),
            ("other first tokens", tally.differing, self.differing_high),
        ):
            if evidence_over(count, tally.seen, limit) >= 2 / self.error:
                return f"shadows show more {what} than {100 * limit:.2f} %: {count} of {tally.seen}"
        return None

    @cached_property
    def far_high(self) -> float:
        return self.gate.far_high

    @cached_property
    def differing_high(self) -> float:
        return self.gate.differing_high


def evidence_over(count: int, seen: int, limit: float) -> float:
    """A bet against "the share is at most `limit`" has grown to so many times its stake (bounds.py)."""
    return evidence_of_counts({1.0: count, 0.0: seen - count}, min(limit, 0.99), 0.0)


class Guard:
    """All watches of a server, and what they remember: a file beside each gate, which observing writes. Called from one thread."""

    def __init__(self, gates: Gates, share: float = 0.01, error: float = 0.01) -> None:
        if not 0 <= share <= 1 or not 0 < error < 0.5:
            raise ConfigError(f"guard: expected share from 0 to 1 and error between 0 and 0.5; got {share}, {error}")
        self._gates = gates
        self._share = share
        self._error = error
        self._watches: dict[Subject, Watch] = {}
        self._disabled: dict[Subject, str] = {}

    def is_shadowed(self, request: str) -> bool:
        """Is this blended request to be prefilled in full as well? Not the same ones as shadows of other kinds."""
        return is_shadowed(f"reuse:{request}", self._share)

    def observe(self, gate: Gate, kl: float, agrees: bool) -> str | None:
        """Why its policy was turned off just now; None: it goes on, or was off already. Raises StoreError when that cannot be
        kept; the policy is off all the same, in this process."""
        watch, subject = self._watch(gate), gate.subject
        if subject in self._disabled:
            return None
        reason = watch.observe(kl, agrees)
        if reason is not None:
            self._disabled[subject] = reason
            self._gates.revoke(subject, reason)
        kept = {"gate": gate.created.isoformat(), "tally": asdict(watch.tally)}
        write_whole(self._path(subject), json.dumps(kept) + "\n")
        return reason

    @property
    def disabled(self) -> dict[Subject, str]:
        """Policies that this process has turned off, and why. Their gates are revoked on disk."""
        return dict(self._disabled)

    @property
    def tallies(self) -> dict[Subject, Tally]:
        """For metrics: what was seen of each policy that was shadowed in this process."""
        return {subject: watch.tally for subject, watch in self._watches.items()}

    def _watch(self, gate: Gate) -> Watch:
        """A gate that was measured anew is watched anew."""
        watch = self._watches.get(gate.subject)
        if watch is None or watch.gate != gate:
            watch = Watch(gate, self._error, _tally(self._path(gate.subject), gate))
            self._watches[gate.subject] = watch
            self._disabled.pop(gate.subject, None)
        return watch

    def _path(self, subject: Subject) -> Path:
        return self._gates.path(subject).with_suffix(".shadows")


def _tally(path: Path, gate: Gate) -> Tally:
    """What was remembered of this very gate; a new measurement begins anew. Raises StoreError."""
    if not path.exists():
        return Tally()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        tally = Tally(**kept["tally"]) if kept["gate"] == gate.created.isoformat() else Tally()
        if not all(isinstance(count, int) and 0 <= count <= tally.seen for count in asdict(tally).values()):
            raise ValueError(f"expected counts of at most 'seen', got {kept['tally']}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path}: expected what shadows have shown of a gate: {error}") from error
    return tally
