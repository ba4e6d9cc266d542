"""Self-consistency: samples of one node vote (Wang et al., arXiv 2203.11171), until more would not change the answer."""

from typing import cast

from flowserve.core.stopping.programs import VoteRule, leading
from flowserve.core.stopping.samples import certainty
from flowserve.core.stopping.signals import UNUSABLE, Vote
from flowserve.graphs.nodes import Node, P, R
from flowserve.graphs.signature import Signature
from flowserve.graphs.stopping import Stop
from flowserve.programs import results
from flowserve.programs.branches import Bill, Branch, account, draw, nothing, team
from flowserve.programs.program import Checks, Classes, Program
from flowserve.programs.purse import Purse

DYNASOR = Stop("certaindex", threshold=0.7, min_samples=5, every=0)
"""Certaindex as published for MATH and GSM8K: looked at once, after five samples (arXiv 2412.20993v2, table 3)."""


def self_consistency(
    node: Node[P, R],
    *,
    n: int,
    vote: str = "",
    stop: Stop | None = DYNASOR,
    wave: int = 1,
    budget_calls: int | None = None,
    budget_tokens: int | None = None,
) -> Program[P, results.Consensus[R]]:
    """The most frequent of up to `n` answers of `node`, by field `vote` or as a whole; of equal ones the earliest.

    As many samples are begun as are sure to be needed before `stop` can be content, and `wave` at least, whenever those begun have ended;
    what is under way when it is content is cancelled. A sample that fails gives no vote.
    """
    check = Checks("self_consistency", node)
    n, wave = check.count("n", n), check.count("wave", wave)
    check.budget(budget_calls, budget_tokens, least=1)
    check.draws(node)
    check.vote(node.signature.returns, vote)
    kind = results.of(results.Consensus, node.signature.returns)

    async def search(**inputs: object) -> object:
        purse, classes = Purse(budget_calls, budget_tokens), Classes(vote)
        answers: dict[int, R] = {}
        labels: dict[int, int] = {}

        async def sample(bill: Bill) -> R:
            answer: R = await bill.ask(node, inputs)
            return answer

        def told(branch: Branch[R]) -> list[Vote]:
            labels[branch.number] = UNUSABLE
            if branch.error is None:
                answers[branch.number] = cast(R, branch.value)
                labels[branch.number] = classes.vote(branch.value)
            return [Vote(branch.number, labels[branch.number])]

        rule = VoteRule(None, {}, n) if stop is None else VoteRule(stop.rule, dict(stop.numbers), n, wave)
        async with team(purse) as crew:
            enough = await draw(rule, crew, sample, 1, told)
            if not answers:
                raise nothing(check.name, crew)
            label = leading(labels, {})
            winner = next(number for number in answers if labels[number] == label)
            agreed = certainty({label: list(labels.values()).count(label) for label in labels.values()})
            return kind(answer=answers[winner], votes=classes.votes, certainty=agreed, **account(crew, purse, enough))

    doc = f"The most frequent of up to {n} answers of '{node.name}'."
    return Program(Signature(check.name, node.signature.params, kind, doc), search, [node], check.calls(n), check.found)
