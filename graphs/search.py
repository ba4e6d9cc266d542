"""`fs.Index(name).search(query, k=)`: a search of an index that the server holds under that name."""

from functools import cached_property
from typing import Any

from flowserve.errors import Problem
from flowserve.graphs import settings
from flowserve.graphs.declaration import ConstExpr, Expr, OutputExpr
from flowserve.graphs.nodes import Node, degradation_of
from flowserve.graphs.plan import Degradation, Kind, Retry, SearchSpec
from flowserve.graphs.signature import Parameter, Signature
from flowserve.graphs.trace import Trace
from flowserve.graphs.types import Doc
from flowserve.graphs.values import Value

DEFAULT_K = 5
MAX_K = 10_000


_SIGNATURE = Signature(
    "search", (Parameter("query", str), Parameter("k", int, required=False, default=DEFAULT_K)), list[Doc]
)


class SearchNode(Node[..., list[Doc]]):
    """One search. Call it in a workflow, `.map` it over queries."""

    def __init__(self, index: str, **options: Any) -> None:
        self.index = index
        self.settings, self.setting_problems = settings.read(**options)
        self.least: int | None = None
        self.harm: float | None = None

    def __call__(
        self, query: str, k: int = DEFAULT_K, *, least: int | None = None, harm: float | None = None
    ) -> list[Doc]:
        """At most `k` passages, best first. `least` of them, at a `harm` above 0 and at most 1, will do when the run
        would be late."""
        node = self._fresh_copy()
        node.least, node.harm = least, harm
        return super(SearchNode, node).__call__(query, k=k)

    @cached_property
    def signature(self) -> Signature:
        return _SIGNATURE

    def problems(self) -> tuple[Problem, ...]:
        if isinstance(self.index, str) and self.index and len(self.index) <= 200:
            return self.setting_problems
        return (
            *self.setting_problems,
            Problem(
                "search", "the name of an index", f"fs.Index({self.index!r})", "Name the index as it was ingested."
            ),
        )

    def declare(self, trace: Trace, args: dict[str, object]) -> Value:
        exprs = trace.lift_all(self.signature, args)
        k = exprs["k"]
        if isinstance(k, ConstExpr) and k.value is not None and not settings.is_count(k.value, 1, MAX_K):
            trace.note(Problem(self.name, f"k= a number from 1 to {MAX_K:,}", f"k={k.value!r}", "Ask for e.g. k=5."))
        named_by = None if self.settings.name is None else self.settings
        limit, degrade = self._bound(trace, k)
        node = trace.add(
            Kind.SEARCH,
            self.name,
            exprs,
            SearchSpec(self.index),
            self.settings,
            limit=limit,
            named_by=named_by,
            degrade=degrade,
        )
        return Value(OutputExpr(node), list[Doc], node.name)

    def _bound(self, trace: Trace, k: Expr) -> tuple[int, Degradation | None]:
        """`k` where fewer passages will do, and how few."""
        if self.least is None and self.harm is None:
            return 1, None
        if not isinstance(k, ConstExpr):
            came = "one that is known only in the run"
            trace.note(Problem(self.name, "k= a constant where least= is given", came, "Write the number, e.g. k=8."))
            return 1, None
        most = k.value if settings.is_count(k.value, 1, MAX_K) else MAX_K
        return most, degradation_of(trace, self.name, self.least, self.harm, 1, most)


class Index:
    """An index of passages, by name. It need not exist before the workflow runs."""

    def __init__(self, name: str, *, retry: int | Retry = 0, timeout: float | None = None, cache: bool = False) -> None:
        self.name = name
        self._options: dict[str, Any] = {"retry": retry, "timeout": timeout, "cache": cache}

    @cached_property
    def search(self) -> SearchNode:
        """The search as a node: `index.search(query, k=5)`, `index.search.map(queries, k=5)`."""
        return SearchNode(self.name, **self._options)

    def __repr__(self) -> str:
        return f"Index({self.name!r})"
