"""Tree of thoughts, breadth first: every state is expanded, every thought judged, the best go on (Yao et al., arXiv 2305.10601,
algorithm 1)."""

import asyncio
from collections.abc import Callable
from typing import Any

from flowserve.core.stopping.programs import Certaindex, CertaindexRule
from flowserve.core.stopping.rules import Stop
from flowserve.errors import FlowServeError
from flowserve.graphs import hints
from flowserve.graphs.nodes import MAX_BOUND, Node
from flowserve.graphs.signature import Signature
from flowserve.programs import results
from flowserve.programs.branches import Bill, Work, account, nothing, team
from flowserve.programs.lines import Leaves, Line, Steps, walk
from flowserve.programs.program import Checks, Program, Scorer
from flowserve.programs.purse import Purse


def tree_of_thoughts(
    propose: Node[..., Any],
    score: Scorer,
    *,
    breadth: int,
    depth: int,
    keep: int,
    done: Callable[[Any], bool] | None = None,
    stop: Certaindex | None = None,
    budget_calls: int | None = None,
    budget_tokens: int | None = None,
) -> Program[..., results.Thoughts[Any]]:
    """The best line of at most `depth` thoughts, of which the `keep` best go on at every depth.

    `propose` takes the inputs and, last, the list of thoughts so far. It gives one thought, and is then called `breadth` times a state,
    or a list of thoughts, of which the first `breadth` count. `score` takes the thoughts so far, and any inputs by name. `done(thought)`
    says which thoughts are answers; without it those at `depth` are. `stop` is asked after each answer.
    """
    check = Checks("tree_of_thoughts", propose)
    rules = walk(check, propose, score, done, depth)
    breadth, keep = check.count("breadth", breadth), check.count("keep", keep)
    gives = propose.signature.returns
    listed = hints.is_sequence(gives) and hints.fits(gives, list[rules.kind])  # type: ignore[name-defined]
    if not listed:
        check.same(propose, gives, rules.kind)
        if breadth > 1:
            check.draws(propose)
    each = (1 if listed else breadth) + breadth
    check.budget(budget_calls, budget_tokens, least=each)
    kind = results.of(results.Thoughts, rules.kind)

    async def search(**inputs: Any) -> object:
        purse = Purse(budget_calls, budget_tokens)
        leaves = Leaves(CertaindexRule(stop, MAX_BOUND, MAX_BOUND), rules, "")
        levels: list[list[float]] = []

        def expanded(steps: Steps) -> Work[list[Line]]:
            async def work(bill: Bill) -> list[Line]:
                if listed:
                    thoughts = (await rules.grown(bill, inputs, steps))[:breadth]
                    return await good([rules.worth(bill, inputs, (*steps, thought)) for thought in thoughts])
                return await good([thought(bill) for _ in range(breadth)])

            async def thought(bill: Bill) -> Line:
                return await rules.worth(bill, inputs, (*steps, await rules.grown(bill, inputs, steps)))

            return work

        async with team(purse) as crew:
            leaves.begin()
            frontier = [Line((), 0.0)]
            while frontier and not purse.short and leaves.stop is None:
                crew.begin([expanded(line.steps) for line in frontier], each)
                going: list[Line] = []
                while crew.waiting and leaves.stop is None:
                    for line in (await crew.read()).value or ():
                        if not rules.ends(line.steps):
                            going.append(line)
                        elif isinstance(leaves.ended(line), Stop):
                            break
                for line in going:
                    leaves.reached(line)
                frontier = sorted(going, key=lambda line: -line.reward)[:keep]
                if frontier:
                    levels.append([line.reward for line in frontier])
            chosen = leaves.best()
            if chosen is None:
                raise nothing(check.name, crew)
            return kind(**leaves.told(chosen), levels=levels, **account(crew, purse, leaves.stop))

    doc = f"A tree of thoughts of '{propose.name}', {keep} wide and {depth} deep, as '{score.name}' judges them."
    most = each * (1 + keep * (rules.depth - 1))
    return Program(
        Signature(check.name, rules.inputs, kind, doc), search, [propose, score], check.calls(most), check.found
    )


async def good(lines: list[Any]) -> list[Line]:
    """Those that did not fail. Raises the failure of the first if all did."""
    ended = await asyncio.gather(*lines, return_exceptions=True)
    for other in ended:
        if isinstance(other, BaseException) and not isinstance(other, FlowServeError):
            raise other
    made = [line for line in ended if isinstance(line, Line)]
    if ended and not made:
        assert isinstance(ended[0], BaseException)
        raise ended[0]
    return made
