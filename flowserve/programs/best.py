"""Best-of-n: samples of one node, each judged by another, and the best one."""

from typing import Any, cast

from flowserve.core.stopping.programs import Certaindex, CertaindexRule
from flowserve.core.stopping.signals import UNUSABLE, Reward, Signal, Vote
from flowserve.graphs.nodes import Node, P, R
from flowserve.graphs.signature import Signature
from flowserve.programs import results
from flowserve.programs.branches import Bill, Branch, account, draw, nothing, team
from flowserve.programs.program import Checks, Program, Scorer, the_node
from flowserve.programs.purse import Purse


def best_of_n(
    node: Node[P, R],
    scorer: Scorer,
    *,
    n: int,
    enough: float | None = None,
    wave: int | None = None,
    budget_calls: int | None = None,
    budget_tokens: int | None = None,
) -> Program[P, results.Best[R]]:
    """The one of `n` answers of `node` that `scorer` gives the most; of equal ones the earliest.

    `scorer` takes an answer, and may take inputs of `node` beside it, by name. A score of `enough` ends the search; what is under way
    then is cancelled. `wave` samples are begun at once (None: all). A sample that fails, or cannot be judged, is not counted.
    """
    check = Checks("best_of_n", node)
    judged = check.scorer(the_node("best_of_n", scorer), node.signature.params)
    known = [p.name for p in scorer.signature.params if p.name != judged]
    n = check.count("n", n)
    wave = check.count("wave", n if wave is None else wave)
    certain = None if enough is None else Certaindex(1, max_reward=enough, every=1)
    check.budget(budget_calls, budget_tokens, least=2)
    check.draws(node)
    kind = results.of(results.Best, node.signature.returns)

    async def search(**inputs: Any) -> object:
        purse = Purse(budget_calls, budget_tokens)
        answers: dict[int, tuple[R, float]] = {}
        scores: list[float | None] = []

        async def sample(bill: Bill) -> tuple[R, float]:
            answer = await bill.ask(node, inputs)
            score = await bill.ask(scorer, {judged: answer} | {name: inputs[name] for name in known})
            return answer, float(score)

        def told(branch: Branch[tuple[R, float]]) -> list[Signal]:
            if branch.error is not None:
                scores.append(None)
                return [Vote(branch.number, UNUSABLE)]
            answers[branch.number] = cast(tuple[R, float], branch.value)
            score = answers[branch.number][1]
            scores.append(score)
            return [Reward(branch.number, score), Vote(branch.number, branch.number)]

        async with team(purse) as crew:
            stop = await draw(CertaindexRule(certain, wave, n), crew, sample, 2, told)
            if not answers:
                raise nothing(check.name, crew)
            answer, score = max(answers.values(), key=lambda pair: pair[1])
            return kind(answer=answer, score=score, scores=scores, **account(crew, purse, stop))

    doc = f"The best of {n} answers of '{node.name}', as '{scorer.name}' judges them."
    return Program(
        Signature(check.name, node.signature.params, kind, doc), search, [node, scorer], check.calls(2 * n), check.found
    )
