"""`Program`: a node whose function is a search over nodes of the user. Also what the programs check of those nodes."""

import json
from collections.abc import Callable, Coroutine, Sequence
from functools import cached_property
from typing import Any

from flowserve.core.stopping.signals import UNUSABLE, Label
from flowserve.errors import Problem
from flowserve.graphs import evaluate, hints, shapes
from flowserve.graphs.agent import AgentNode
from flowserve.graphs.dynamic import DynamicNode
from flowserve.graphs.llm import LLMNode
from flowserve.graphs.nodes import MAX_BOUND, Node, P, R
from flowserve.graphs.settings import is_count
from flowserve.graphs.signature import Parameter, Signature
from flowserve.runtime.votes import answer_key

Scorer = Node[..., float] | Node[..., int]
"""A node that judges: takes what is judged, and any inputs of the program by name."""


class Program(DynamicNode[P, R]):
    """A search over nodes. It is used as any other node: in a workflow, in a map, or alone with `.run(...)`."""

    def __init__(
        self,
        declared: Signature,
        search: Callable[..., Coroutine[Any, Any, Any]],
        nodes: Sequence[Node[..., Any]],
        max_calls: int,
        problems: Sequence[Problem],
    ) -> None:
        super().__init__(search, nodes, max_calls)
        self.function_name = declared.name
        self.setting_problems = tuple(problems)
        self.__doc__ = declared.doc
        self._declared = declared

    @cached_property
    def signature(self) -> Signature:
        return self._declared


class Checks:
    """What is wrong with the declaration of a program; told when a workflow uses it."""

    def __init__(self, program: str, node: object) -> None:
        self.name = f"{the_node(program, node).name}.{program}"
        self.found: list[Problem] = []
        self._most = MAX_BOUND

    def count(self, what: str, value: Any, least: int = 1) -> int:
        """`value` when it is a usable bound; else `least`, and a problem."""
        if is_count(value, least, MAX_BOUND):
            return int(value)
        expected = f"{what}= a number from {least:,} to {MAX_BOUND:,}"
        self.found.append(Problem(self.name, expected, repr(value)[:100], "Correct the number."))
        return least

    def budget(self, calls: Any, tokens: Any, least: int) -> None:
        """A budget has room for one answer. What is spent before there is one would be spent for nothing."""
        if calls is not None:
            self._most = self.count("budget_calls", calls, least)
        if tokens is not None:
            self.count("budget_tokens", tokens)

    def calls(self, most: int) -> int:
        """The greatest number of calls, of a search that makes `most` without a budget."""
        return min(most, self._most)

    def positive(self, what: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            self.found.append(Problem(self.name, f"{what}= a number above 0", repr(value)[:100], "Correct the number."))

    def draws(self, node: Node[..., Any]) -> None:
        """Samples of a model call that takes the likeliest token are all the same."""
        if isinstance(node, LLMNode | AgentNode) and not node.sampling.get("temperature"):
            expected, came = f"'{node.name}' with a temperature, so that its samples differ", "temperature=0"
            remedy = f"Use @fs.llm(temperature=0.8), or {node.name}.options(temperature=0.8)."
            self.found.append(Problem(self.name, expected, came, remedy))

    def vote(self, type_: Any, vote: str) -> None:
        """`vote` is a field of what is voted on, or empty for the whole of it."""
        try:
            if vote:
                hints.attribute(type_, vote)
        except LookupError as error:
            expected, came = f"vote= a field of {hints.describe(type_)}", f"'{vote}', but {error.args[0]}"
            self.found.append(Problem(self.name, expected, came, 'Use a field, or vote="" for the whole value.'))

    def scorer(self, scorer: Node[..., Any], inputs: Sequence[Parameter]) -> str:
        """The parameter of `scorer` that takes what is judged: the one that is no input of the program."""
        sig, known = scorer.signature, [p.name for p in inputs]
        others = [p.name for p in sig.params if p.name not in known]
        if len(others) != 1:
            expected = f"'{scorer.name}' with one parameter for what it judges, beside any of: {', '.join(known)}"
            came = ", ".join(others) or "none"
            self.found.append(Problem(self.name, expected, came, "Name its other parameters as the program's."))
        if not hints.fits(sig.returns, float):
            came = hints.describe(sig.returns)
            remedy = "Return the number; a workflow may take it out of what a model gives."
            self.found.append(Problem(self.name, f"'{scorer.name}' that gives a number", came, remedy))
        return others[0] if others else ""

    def step(self, step: Node[..., Any]) -> tuple[tuple[Parameter, ...], str, Any]:
        """Inputs of the program, the name of the parameter of `step` that takes the path so far, and the type of one step."""
        params = step.signature.params
        if params and hints.is_sequence(params[-1].type) and params[-1].type is not Any:
            return params[:-1], params[-1].name, hints.element(params[-1].type)
        came = f"{params[-1].name}: {hints.describe(params[-1].type)}" if params else "no parameters"
        expected = f"'{step.name}' with the steps so far as its last parameter, a list"
        self.found.append(Problem(self.name, expected, came, "Add a parameter, e.g. `path: list[Step]`."))
        return params[:-1], params[-1].name if params else "", Any

    def same(self, step: Node[..., Any], gives: Any, wants: Any) -> None:
        """What a step gives is an item of the path that it takes."""
        if not hints.fits(gives, wants):
            expected = f"'{step.name}' that gives {hints.describe(wants)}, an item of its path"
            self.found.append(Problem(self.name, expected, hints.describe(gives), "Make the two types equal."))


def the_node(program: str, node: object) -> Node[..., Any]:
    """`node`, if it is one. Raises TypeError."""
    if isinstance(node, Node):
        return node
    came = getattr(node, "__name__", type(node).__name__)
    raise TypeError(f"{program}: expected nodes (made by @fs.llm, @fs.tool or @fs.workflow); got {came}")


class Classes:
    """Answer classes of one run of a program."""

    def __init__(self, vote: str) -> None:
        self._vote = vote
        self._labels: dict[str, Label] = {}
        self._shown: list[str] = []
        self._counts: list[int] = []

    def vote(self, value: Any) -> Label:
        """The class of an answer, which is counted."""
        said = shapes.jsonable(evaluate.vote_key(value, self._vote))
        key = answer_key(said)
        if key is None:
            return UNUSABLE
        label = self._labels.setdefault(key, len(self._labels))
        if label == len(self._shown):
            self._shown.append(said if isinstance(said, str) else json.dumps(said))
            self._counts.append(0)
        self._counts[label] += 1
        return label

    @property
    def votes(self) -> dict[str, int]:
        """By answer, as it was first written."""
        return dict(zip(self._shown, self._counts, strict=True))
