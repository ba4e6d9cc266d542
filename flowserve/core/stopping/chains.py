"""Rules that end one chain of thought by what its forks answer, and the table of them by name.

| rule       | stops when                                                            | after                                |
|------------|-----------------------------------------------------------------------|--------------------------------------|
| default    | a trial is surer than 0.999                                           | DEER, where it lost nothing          |
| deer       | a trial is surer than 0.95, of ten at most                            | DEER (Yang et al., arXiv 2504.15895) |
| agree      | so it is, and the trial before it said the same                       | DEER with agreement                  |
| certaindex | so great a share of the last probes say what the last one says        | Dynasor (Fu et al., arXiv 2412.20993)|
| dynasor-*  | all of them do                                                        | its effort levels, as shipped        |
| entropy    | the answers of the last probes have little entropy                    | Certaindex of many paths, on one     |
| budget     | so many tokens are written                                            | a limit on thinking                  |
| evidence   | trials that agree have summed up to so much, or the answer stands     | ours                                 |

A rule over the token confidence of many branches is in `deepconf.py`.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from math import log10

from flowserve.core.stopping.rules import Continue, Decision, ExitRule, ProbeAt, Stop
from flowserve.core.stopping.samples import certainty
from flowserve.core.stopping.signals import UNUSABLE, Label, Probe, Signal, Trial
from flowserve.errors import ConfigError
from flowserve.ids import Tokens

DEFAULT_RULE = "default"
"""What may end a chain without a certificate."""
SUREST = 6.0
"""Nines that one trial is worth at most: probabilities are recorded with six digits."""
Numbers = Mapping[str, float]


class Confident:
    """Stop at a trial that has ended its thoughts and is surer than `threshold` of the answer of the last `agreeing` trials.

    Trials are made at least `apart` tokens apart, at most `trials` of them.
    """

    def __init__(self, args: Numbers) -> None:
        self._threshold, self._agreeing = args["threshold"], args["agreeing"]
        self._trials = _Trials(args)
        self._streak = _Streak()

    def begin(self) -> Decision:
        return self._trials.next(0)

    def observe(self, signal: Signal) -> Decision:
        if not isinstance(signal, Trial):
            return Continue()
        self._streak.add(signal.label, signal.position)
        if signal.closed and signal.confidence > self._threshold and self._streak.count >= self._agreeing:
            agree = f"; {self._streak.count} agree" if self._agreeing > 1 else ""
            why = f"confidence {signal.confidence:.5f} > {self._threshold:g}{agree} at {signal.position:,} tokens"
            return Stop(signal.label, why)
        return self._trials.next(signal.position)


class Consensus:
    """Probing in the middle (Dynasor, section 3): stop when C_k, the share of the last `window` probes that say what the newest says, is
    `share`; a probe `every` tokens.

    An empty answer agrees with nothing; with `doubt`, nor does one with a word of doubt. The paper's tau is `share`; released code asks
    for all (1).
    """

    def __init__(self, args: Numbers) -> None:
        self._share, self._doubt, self._every = args["share"], args["doubt"], Tokens(int(args["every"]))
        self._answers: deque[Label] = deque(maxlen=int(args["window"]))

    def begin(self) -> Decision:
        return ProbeAt(self._every, confident=False)

    def observe(self, signal: Signal) -> Decision:
        if not isinstance(signal, Probe | Trial):
            return Continue()
        self._answers.append(_said(signal, self._doubt))
        newest, agreeing = self._answers[-1], self._answers.count(self._answers[-1])
        if _is_full(self._answers) and newest != UNUSABLE and agreeing >= self._share * len(self._answers):
            return Stop(newest, f"{agreeing} of {len(self._answers)} probes agree at {signal.position:,} tokens")
        return ProbeAt(signal.position + self._every, confident=False)


class Settled:
    """Stop when `certainty`, the Certaindex of many paths, taken over the last `window` answers of one chain is `threshold`. Submits the
    most frequent, of several the newest. The rest is as in `Consensus`."""

    def __init__(self, args: Numbers) -> None:
        self._threshold, self._doubt, self._every = args["threshold"], args["doubt"], Tokens(int(args["every"]))
        self._answers: deque[Label] = deque(maxlen=int(args["window"]))

    def begin(self) -> Decision:
        return ProbeAt(self._every, confident=False)

    def observe(self, signal: Signal) -> Decision:
        if not isinstance(signal, Probe | Trial):
            return Continue()
        self._answers.append(_said(signal, self._doubt))
        counts: dict[Label, int] = {}
        for label in reversed(self._answers):
            counts[label] = counts.get(label, 0) + 1
        certain = certainty(counts)
        usable = [label for label in counts if label != UNUSABLE]
        if _is_full(self._answers) and usable and certain >= self._threshold:
            why = f"certainty {certain:.3f} >= {self._threshold:g} at {signal.position:,} tokens"
            return Stop(max(usable, key=lambda label: counts[label]), why)
        return ProbeAt(signal.position + self._every, confident=False)


class Budget:
    """Submit what is answered at `tokens` tokens, whatever it is."""

    def __init__(self, args: Numbers) -> None:
        self._tokens = Tokens(int(args["tokens"]))

    def begin(self) -> Decision:
        return ProbeAt(self._tokens, confident=False)

    def observe(self, signal: Signal) -> Decision:
        if not isinstance(signal, Probe | Trial):
            return Continue()
        return Stop(signal.label, f"a budget of {self._tokens:,} tokens")


class Evidence:
    """A sequential test over trials; when they are used up, a long look at whether the answer stands.

    A trial with confidence c is worth -log10(1 - c) nines, `SUREST` at most: 0.99 is two. Nines of trials that agree one after the
    other add up, but with each further trial those of the earlier ones count only `keep` as much, since what a chain says twice was
    not found twice. Another answer begins anew. The chain stops at `nines`: with `keep` 0 that is DEER.

    A chain that has used up its `trials` is a long one, and confidence has not settled it. It is probed `every` so many tokens from then
    on, and stops when its answer, trials included, has not changed for `span` tokens and for `portion` of the chain: agreement is evidence
    only over thousands of tokens, and the longer a chain, the later may it change its mind.
    """

    def __init__(self, args: Numbers) -> None:
        self._nines, self._keep = args["nines"], args["keep"]
        self._span, self._portion, self._every = args["span"], args["portion"], Tokens(int(args["every"]))
        self._trials = _Trials(args)
        self._streak = _Streak()
        self._evidence = 0.0
        self._probing = False

    def begin(self) -> Decision:
        return self._next(0)

    def observe(self, signal: Signal) -> Decision:
        if not isinstance(signal, Probe | Trial):
            return Continue()
        self._streak.add(_said(signal, doubt=1), signal.position)
        if isinstance(signal, Trial) and not self._probing:
            self._add(signal)
            if self._evidence >= self._nines:
                why = f"{self._evidence:.2f} nines >= {self._nines:g} at {signal.position:,} tokens"
                return Stop(signal.label, why)
        elif self._stands(signal.position):
            return Stop(signal.label, f"unchanged from {self._streak.since:,} to {signal.position:,} tokens")
        return self._next(signal.position)

    def _add(self, trial: Trial) -> None:
        kept = self._keep * self._evidence if self._streak.count > 1 else 0.0
        self._evidence = kept + _nines(trial) if self._streak.count else 0.0

    def _stands(self, position: Tokens) -> bool:
        return self._streak.count > 0 and position - self._streak.since >= max(self._span, self._portion * position)

    def _next(self, position: Tokens) -> Decision:
        decision = self._trials.next(position)
        self._probing = not isinstance(decision, ProbeAt)
        return ProbeAt(position + self._every, confident=False) if self._probing else decision


class _Trials:
    """A trial at the first opportunity `apart` tokens after the last one, until there were `trials`."""

    def __init__(self, args: Numbers) -> None:
        self._apart, self._left = Tokens(int(args["apart"])), int(args["trials"])

    def next(self, position: Tokens) -> Decision:
        if not self._left:
            return Continue()
        self._left -= 1
        return ProbeAt(position + self._apart)


class _Streak:
    """How many forks in a row gave the answer of the last one, none if that was unusable, and where the first of them was."""

    def __init__(self) -> None:
        self.label: Label = UNUSABLE
        self.count = 0
        self.since: Tokens = 0

    def add(self, label: Label, position: Tokens) -> None:
        if label == UNUSABLE or label != self.label:
            self.label, self.count, self.since = label, 0, position
        self.count += label != UNUSABLE


def _said(signal: Probe | Trial, doubt: float) -> Label:
    """The answer; with `doubt`, one with a word of doubt is none."""
    return UNUSABLE if doubt and isinstance(signal, Probe) and signal.hesitates else signal.label


def _is_full(answers: deque[Label]) -> bool:
    return len(answers) == answers.maxlen


def _nines(trial: Trial) -> float:
    """0.9 is one, 0.99 two. Of a trial that has not ended its thoughts nothing is known."""
    return min(SUREST, -log10(max(1 - trial.confidence, 10**-SUREST))) if trial.closed else 0.0


class Needs(Enum):
    """What a rule observes."""

    TRIALS = "trials"
    PROBES = "probes"
    CONFIDENCE = "confidence"
    """Of tokens."""


@dataclass(frozen=True, slots=True)
class Number:
    """A parameter of a rule."""

    default: float
    least: float
    most: float
    whole: bool = False

    def fits(self, value: float) -> bool:
        """Whether a rule can work with it."""
        return self.least <= value <= self.most and (not self.whole or value == int(value))

    def __str__(self) -> str:
        return f"a {'whole ' if self.whole else ''}number from {self.least:g} to {self.most:,.10g}"


@dataclass(frozen=True, slots=True)
class ChainRule:
    """A family of rules."""

    name: str
    make: Callable[[Numbers], ExitRule]
    numbers: Mapping[str, Number]
    needs: Needs

    def __call__(self, args: Numbers) -> ExitRule:
        """A fresh rule for one chain; what `args` does not say has its default. Raises ConfigError."""
        return self.make(self.complete(args))

    def complete(self, args: Numbers) -> dict[str, float]:
        """All parameters. Raises ConfigError for one that is unknown or does not fit."""
        for name, value in args.items():
            if name not in self.numbers:
                raise ConfigError(f"rule '{self.name}' has no parameter '{name}'; known: {', '.join(self.numbers)}")
            if not self.numbers[name].fits(value):
                raise ConfigError(f"rule '{self.name}', {name}: expected {self.numbers[name]}; got {value:g}")
        return {name: args.get(name, number.default) for name, number in self.numbers.items()}


def _share(default: float) -> Number:
    return Number(default, 0.0, 1.0)


def _count(default: int, least: int = 1) -> Number:
    return Number(default, least, 1_000_000, whole=True)


_CONFIDENT = {"threshold": _share(0.999), "agreeing": _count(1), "apart": _count(64), "trials": _count(30)}
_CONSENSUS = {"window": _count(8), "share": _share(1.0), "every": _count(64), "doubt": _count(1, least=0)}
_SETTLED = {"window": _count(32), "threshold": _share(1.0), "every": _count(64), "doubt": _count(1, least=0)}
_EVIDENCE = {
    "nines": Number(3.5, 0.0, 50.0),
    "keep": _share(0.3),
    "apart": _count(64),
    "trials": _count(16, least=0),
    "every": _count(256),
    "span": _count(3072),
    "portion": _share(0.25),
}


def _told(numbers: Mapping[str, Number], **defaults: float) -> dict[str, Number]:
    return {name: replace(number, default=defaults.get(name, number.default)) for name, number in numbers.items()}


def _dynasor(effort: str, window: int, every: int) -> ChainRule:
    return ChainRule(f"dynasor-{effort}", Consensus, _told(_CONSENSUS, window=window, every=every), Needs.PROBES)


CHAIN_RULES: dict[str, ChainRule] = {
    rule.name: rule
    for rule in (
        ChainRule(DEFAULT_RULE, Confident, _CONFIDENT, Needs.TRIALS),
        ChainRule("deer", Confident, _told(_CONFIDENT, threshold=0.95, apart=1, trials=10), Needs.TRIALS),
        ChainRule("agree", Confident, _told(_CONFIDENT, threshold=0.98, agreeing=2), Needs.TRIALS),
        ChainRule("evidence", Evidence, _EVIDENCE, Needs.TRIALS),
        ChainRule("certaindex", Consensus, _told(_CONSENSUS, window=10, every=320), Needs.PROBES),
        _dynasor("mild", 8, 64),
        _dynasor("low", 5, 64),
        _dynasor("mid", 3, 64),
        _dynasor("high", 2, 64),
        _dynasor("crazy", 2, 32),
        ChainRule("entropy", Settled, _SETTLED, Needs.PROBES),
        ChainRule("budget", Budget, {"tokens": _count(8192)}, Needs.PROBES),
    )
}
"""By name: makes the rule of one chain from its parameters."""
