"""Programs of recorded chains: so many samples of one problem, each as long as it was recorded, and a vote among them.

The scheduler is not told how long a chain is, nor what it will answer. A chain is forked where its trials were made when it was
recorded, and each says what it said then; the rule that ends it is the scheduler's own.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from flowserve.core.commands import Role
from flowserve.core.stopping.signals import Label, Trial
from flowserve.graphs.plan import ExitSpec, Node, Plan
from flowserve.ids import NodeId, Seconds, Tokens
from flowserve.sim.chance import mix
from flowserve.sim.plans import PlanBuilder
from flowserve.sim.programs import CHUNK, Asked, Size

LIMIT: Tokens = 32_768
"""Of one chain: what the longest of the recorded models were given."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a chain says."""

    label: Label
    """Its class, among the answers to the problem."""
    correct: bool


@dataclass(frozen=True, slots=True)
class Chain:
    """One sample."""

    tokens: Tokens
    final: Answer
    """At its end."""
    trials: tuple[Trial, ...] = ()
    """By position."""
    right: tuple[Label, ...] = ()
    """Classes of answers that count as right when a trial gives them."""
    rule_args: tuple[tuple[str, float], ...] = ()
    """Of the rule that may end it."""


def voting_plan(
    samples: int,
    rule: str | None = None,
    args: Sequence[tuple[str, float]] = (),
    wave: int | None = None,
    early_exit: bool = False,
) -> Plan:
    """`samples` chains of one problem and a vote; chains may end early where `early_exit`."""
    b = PlanBuilder("vote")
    body = b.block()
    sample = b.sample(body, name="vote", limit=samples, rule=rule, args=args, wave=wave)
    assert sample == SAMPLE
    b.llm(name="chain", block=body, max_tokens=LIMIT, exit=ExitSpec("boxed") if early_exit else None)
    return b.build()


SAMPLE = NodeId(0)
"""The node of `voting_plan` that votes."""


@dataclass(slots=True)
class Voting:
    """The program of one run. `chains` are drawn in this order."""

    chains: Sequence[Chain]
    prompt: Tokens
    trial_prompt: Tokens
    key: int
    """Of the run."""
    places: dict[int, int] = field(default_factory=dict)
    """Key of a sample's frame -> its number."""
    exits: dict[int, Label] = field(default_factory=dict)
    """Frames whose chain ended early, and the answers of those."""

    def __post_init__(self) -> None:
        self.places = {mix(self.key, SAMPLE, 1, number): number for number in range(len(self.chains))}

    def size(self, node: Node, key: int, role: Role, index: int, talk: int) -> Size:
        chain = self.chains[self.places[key]]
        shared, whole = self.prompt // CHUNK, (self.prompt + chain.tokens) // CHUNK
        chunks = (*range(self.key, self.key + shared), *range(key + shared, key + whole))
        return Size(self.prompt, chain.tokens, LIMIT, chunks, rule_args=chain.rule_args)

    def ended(self, node: Node, talk: int, size: Size) -> None:
        pass

    def trial(self, node: Node, key: int, position: Tokens) -> Asked | None:
        trials = self.chains[self.places[key]].trials
        place = bisect_left(trials, position, key=lambda trial: trial.position)
        return Asked(self.trial_prompt, trials[place]) if place < len(trials) else None

    def exited(self, node: Node, key: int, label: Label) -> None:
        self.exits[key] = label

    def choice(self, node: Node, key: int, index: int) -> int:
        return node.limit

    def tools(self, node: Node, key: int, index: int) -> int:
        return 0

    def calls(self, node: Node, key: int) -> int:
        return 0

    def callee(self, node: Node, key: int, index: int) -> int:
        return 0

    def label(self, node: Node, key: int, index: int) -> int:
        return self.answer(key).label

    def seconds(self, node: Node, key: int, index: int) -> Seconds | None:
        return None

    def answer(self, key: int) -> Answer:
        """Of the sample with this frame."""
        chain, label = self.chains[self.places[key]], self.exits.get(key)
        return chain.final if label is None else Answer(label, label in chain.right)
