"""Monte Carlo tree search over steps: select by UCT, roll out to an end, judge it, and count it on the way back."""

from collections.abc import Callable
from typing import Any

from flowserve.core.stopping.programs import PUBLISHED, Certaindex, CertaindexRule
from flowserve.core.stopping.rules import Continue, Decision
from flowserve.core.stopping.search import uct
from flowserve.graphs.nodes import Node, R
from flowserve.graphs.signature import Signature
from flowserve.programs import results
from flowserve.programs.branches import Bill, Team, Work, account, nothing, team
from flowserve.programs.lines import Leaves, Line, Steps, spawned, walk
from flowserve.programs.program import Checks, Program, Scorer
from flowserve.programs.purse import Purse


class Twig:
    """A node of the tree: steps that were tried, and what came of them."""

    __slots__ = ("children", "closed", "parent", "steps", "total", "tries", "visits")

    def __init__(self, steps: Steps, parent: "Twig | None", closed: bool) -> None:
        self.steps = steps
        self.parent = parent
        self.children: list[Twig] = []
        self.closed = closed
        """Nothing is left to try below it."""
        self.tries = 0
        """Roll-outs that began here."""
        self.visits = 0
        self.total = 0.0

    def child(self, step: Any, closed: bool) -> "Twig":
        """The child of that step, made at its first time."""
        for known in self.children:
            if known.steps[-1] == step:
                return known
        self.children.append(Twig((*self.steps, step), self, closed))
        return self.children[-1]

    def selected(self, breadth: int, exploration: float) -> "Twig":
        """The first twig on the way of greatest bounds that was tried less than `breadth` times; of equal ones the earliest."""
        twig = self
        while twig.tries >= breadth:
            of_parent = twig.visits
            twig = max(
                (child for child in twig.children if not child.closed),
                key=lambda child: uct(child.total, child.visits, of_parent, exploration),
            )
        return twig

    def earned(self, reward: float) -> None:
        """A roll-out through here ended: it counts here and above."""
        twig: Twig | None = self
        while twig is not None:
            twig.visits += 1
            twig.total += reward
            twig = twig.parent

    def close(self, breadth: int) -> None:
        """Close this one and those above, as far as all was tried and all that came of it is closed."""
        twig: Twig | None = self
        while twig is not None and twig.tries >= breadth and all(child.closed for child in twig.children):
            twig.closed = True
            twig = twig.parent


def mcts(
    step: Node[..., R],
    reward: Scorer,
    *,
    iterations: int = 20,
    depth: int,
    breadth: int = 3,
    parallel: int = 1,
    exploration: float = 2**0.5,
    done: Callable[[R], bool] | None = None,
    vote: str = "",
    stop: Certaindex | None = PUBLISHED["mcts"],
    budget_calls: int | None = None,
    budget_tokens: int | None = None,
) -> Program[..., results.Search[R]]:
    """A reward-weighted vote over the ends of `iterations` times `parallel` roll-outs.

    `step` takes the inputs and, last, the list of steps so far, and gives the next step; `reward` takes the list, and any inputs by
    name, and gives 0 to 1. Each iteration goes down from the root, by UCT, to a place that was tried less than `breadth` times, makes
    `parallel` roll-outs from there side by side, and keeps the first step of each in the tree. `done(step)` says which steps are
    answers; without it those at `depth` are. `stop` counts roll-outs. They vote by field `vote` of their last step, or by all
    of it. The search ends before `iterations` when all that was kept has been followed to its end.
    """
    check = Checks("mcts", step)
    rules = walk(check, step, reward, done, depth)
    iterations, breadth = check.count("iterations", iterations), check.count("breadth", breadth)
    parallel = check.count("parallel", parallel)
    check.positive("exploration", exploration)
    check.same(step, step.signature.returns, rules.kind)
    check.vote(rules.kind, vote)
    check.budget(budget_calls, budget_tokens, least=rules.depth + 1)
    check.draws(step)
    kind = results.of(results.Search, rules.kind)

    async def search(**inputs: Any) -> object:
        purse = Purse(budget_calls, budget_tokens)
        leaves = Leaves(CertaindexRule(stop, parallel, iterations * parallel), rules, vote)
        root = Twig((), None, closed=False)

        def rolled_out(steps: Steps) -> Work[Line]:
            async def work(bill: Bill) -> Line:
                whole = steps
                while not rules.ends(whole):
                    whole = (*whole, await rules.grown(bill, inputs, whole))
                return await rules.reward(bill, inputs, whole)

            return work

        async def tried(crew: Team, twig: Twig, count: int) -> int:
            """Make `count` roll-outs from `twig`; returns how many more the rule asks for."""
            twig.tries += count
            said: Decision = Continue()
            crew.begin([rolled_out(twig.steps)] * count, rules.depth - len(twig.steps) + 1)
            while crew.waiting and leaves.stop is None:
                line: Line | None = (await crew.read()).value
                if line is None:
                    said = leaves.failed()
                else:
                    first = line.steps[: len(twig.steps) + 1]
                    twig.child(first[-1], closed=rules.ends(first)).earned(line.reward)
                    said = leaves.ended(line)
            twig.close(breadth)
            return spawned(said)

        async with team(purse) as crew:
            wanted = spawned(leaves.begin())
            while wanted and leaves.stop is None and not purse.short and not root.closed:
                twig = root.selected(breadth, exploration)
                count = min(wanted, breadth - twig.tries)
                wanted += await tried(crew, twig, count) - count
            chosen = leaves.chosen()
            if chosen is None:
                raise nothing(check.name, crew)
            return kind(**leaves.told(chosen), **account(crew, purse, leaves.stop))

    doc = f"A Monte Carlo tree search over steps of '{step.name}', as '{reward.name}' judges where they lead."
    most = iterations * parallel * (rules.depth + 1)
    return Program(
        Signature(check.name, rules.inputs, kind, doc), search, [step, reward], check.calls(most), check.found
    )
