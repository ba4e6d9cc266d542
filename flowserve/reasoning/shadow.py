"""Shadow sampling: a few stopped requests run on, and what they would have answered tells whether a certificate still holds.

The client has its answer; the shadow costs the tokens of the rest. With a checker of answers, harm and rescue are known. Without
one only differing answers are, and they are held against how often they differed on the recorded problems.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from flowserve.bounds import evidence_of_counts
from flowserve.reasoning.certificates import Certificate


class Verdict(Enum):
    """Of the answer at the stop and the one at the end of the chain."""

    AGREED = auto()
    """They are the same, or a checker finds neither right."""
    HARMED = auto()
    """A checker finds only the later one right."""
    RESCUED = auto()
    """A checker finds only the earlier one right."""
    DIFFERED = auto()
    """They differ and nobody checks."""


@dataclass
class Shadow:
    """Watches one certificate.

    It may be asked after every request: the chance that a certificate that holds is ever revoked is at most `error`, half of it
    for harm, half for differing answers.
    """

    certificate: Certificate
    error: float = 0.01
    tally: dict[Verdict, int] = field(default_factory=dict)
    """All it remembers; hand it in to go on after a restart."""

    def observe(self, verdict: Verdict) -> str | None:
        """Why the certificate has to be revoked, None if it need not."""
        self.tally[verdict] = self.tally.get(verdict, 0) + 1
        return self.breach()

    def breach(self) -> str | None:
        """As `observe`, of what it remembers."""
        for what, limit, wealth in (
            ("net harm", self.harm_limit, self.evidence_of_harm()),
            ("differing answers", self.differing_limit, self.evidence_of_differing()),
        ):
            if wealth >= 2 / self.error:
                return f"shadows show more {what} than {100 * limit:.2f} % of stopped requests: {self._told()}"
        return None

    @property
    def harm_limit(self) -> float:
        """Net harm per stopped request at which that of all requests is the certificate's margin."""
        return min(self.certificate.margin / self._stopped_share, 0.99)

    @property
    def differing_limit(self) -> float:
        return min(self.certificate.differing_high / self._stopped_share, 0.99)

    def evidence_of_harm(self) -> float:
        """A bet against "net harm is within its limit" has grown to so many times its stake."""
        return evidence_of_counts(_counted(self.tally, _HARM), self.harm_limit, -1.0)

    def evidence_of_differing(self) -> float:
        return evidence_of_counts(_counted(self.tally, _DIFFERING), self.differing_limit, 0.0)

    @property
    def _stopped_share(self) -> float:
        return self.certificate.stopped / self.certificate.num_trajectories

    def _told(self) -> str:
        return ", ".join(f"{self.tally.get(verdict, 0)} {verdict.name.lower()}" for verdict in Verdict)


_HARM = {Verdict.AGREED: 0.0, Verdict.HARMED: 1.0, Verdict.RESCUED: -1.0, Verdict.DIFFERED: 0.0}
_DIFFERING = {Verdict.AGREED: 0.0, Verdict.HARMED: 0.0, Verdict.RESCUED: 0.0, Verdict.DIFFERED: 1.0}


def _counted(tally: Mapping[Verdict, int], values: Mapping[Verdict, float]) -> dict[float, int]:
    counts: dict[float, int] = {}
    for verdict, count in tally.items():
        counts[values[verdict]] = counts.get(values[verdict], 0) + count
    return counts
