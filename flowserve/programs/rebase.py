"""Rebase, reward-balanced search: nodes of a level share a width by their reward (Wu et al., arXiv 2408.00724, section 3.2)."""

from collections.abc import Callable
from typing import Any

from flowserve.core.stopping.programs import PUBLISHED, Certaindex, CertaindexRule
from flowserve.core.stopping.rules import Continue, Decision, Spawn, Stop
from flowserve.core.stopping.search import balanced
from flowserve.graphs.nodes import Node, R
from flowserve.graphs.signature import Signature
from flowserve.programs import results
from flowserve.programs.branches import Bill, Team, Work, account, nothing, team
from flowserve.programs.lines import Leaves, Line, Steps, walk
from flowserve.programs.program import Checks, Program, Scorer
from flowserve.programs.purse import Purse


def rebase(
    step: Node[..., R],
    reward: Scorer,
    *,
    width: int = 16,
    depth: int,
    most: int | None = None,
    temperature: float = 0.2,
    done: Callable[[R], bool] | None = None,
    vote: str = "",
    stop: Certaindex | None = PUBLISHED["rebase"],
    budget_calls: int | None = None,
    budget_tokens: int | None = None,
) -> Program[..., results.Search[R]]:
    """A reward-weighted vote over the lines that a balanced search of `width` lines ends with.

    `step` takes the inputs and, last, the list of steps so far, and gives the next step; `reward` takes the list, and any inputs by
    name, and gives 0 to 1. Each depth has as many steps as lines have not ended, shared among its nodes by softmax of reward /
    `temperature`. Where `stop` is not content, another search of `width` is made, up to `most` lines in all (None: eight times `width`,
    as the 128 of the paper's 16). `done(step)` says which steps are answers; without it those at
    `depth` are. Lines vote by field `vote` of their last step, or by all of it.
    """
    check = Checks("rebase", step)
    rules = walk(check, step, reward, done, depth)
    width = check.count("width", width)
    most = 8 * width if most is None else check.count("most", most, width)
    check.positive("temperature", temperature)
    check.same(step, step.signature.returns, rules.kind)
    check.vote(rules.kind, vote)
    check.budget(budget_calls, budget_tokens, least=2)
    check.draws(step)
    kind = results.of(results.Search, rules.kind)

    async def search(**inputs: Any) -> object:
        purse = Purse(budget_calls, budget_tokens)
        leaves = Leaves(CertaindexRule(stop, width, most), rules, vote)

        def longer(steps: Steps) -> Work[Line]:
            async def work(bill: Bill) -> Line:
                return await rules.reward(bill, inputs, (*steps, await rules.grown(bill, inputs, steps)))

            return work

        async def level(crew: Team, frontier: list[Line], left: int) -> tuple[list[Line], Decision]:
            """The lines that go on, and what was said of the last one that ended."""
            shares = balanced([line.reward for line in frontier], left, temperature)
            crew.begin([longer(line.steps) for line, n in zip(frontier, shares, strict=True) for _ in range(n)], 2)
            going: list[Line] = []
            said: Decision = Continue()
            while crew.waiting and not isinstance(said, Stop):
                branch = await crew.read()
                line: Line | None = branch.value
                if line is None:
                    said = leaves.failed()
                elif rules.ends(line.steps):
                    said = leaves.ended(line)
                else:
                    going.append(line)
                    leaves.reached(line)
            return going, said

        async with team(purse) as crew:
            decision = leaves.begin()
            while isinstance(decision, Spawn) and not purse.short:
                frontier, left = [Line((), 0.0)], decision.count
                while frontier and not purse.short and not isinstance(decision, Stop):
                    frontier, decision = await level(crew, frontier, left)
                    left = len(frontier)
            chosen = leaves.chosen()
            if chosen is None:
                raise nothing(check.name, crew)
            return kind(**leaves.told(chosen), **account(crew, purse, leaves.stop))

    doc = f"A reward-balanced search over steps of '{step.name}', {width} wide, as '{reward.name}' judges them."
    return Program(
        Signature(check.name, rules.inputs, kind, doc),
        search,
        [step, reward],
        check.calls(2 * most * rules.depth),
        check.found,
    )
