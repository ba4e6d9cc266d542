"""`fs.Index(name).search(query, k=)`: a search of an index that the server holds under that name."""

from collections.abc import Mapping
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
MAX_RERANK = 1000
MAX_FILTER = 16
"""Pairs of metadata."""


_SIGNATURE = Signature(
    "search", (Parameter("query", str), Parameter("k", int, required=False, default=DEFAULT_K)), list[Doc]
)


class SearchNode(Node[..., list[Doc]]):
    """One search. Call it in a workflow, `.map` it over queries."""

    def __init__(self, index: str, where: Mapping[str, str] | None = None, rerank: int = 0, **options: Any) -> None:
        self.index = index
        self.rerank = rerank
        self.where = {} if where is None else where
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
        found = [*self.setting_problems]
        if not (isinstance(self.index, str) and self.index and len(self.index) <= 200):
            came, remedy = f"fs.Index({self.index!r})", "Name the index as it was ingested."
            found.append(Problem("search", "the name of an index", came, remedy))
        if not _is_filter(self.where):
            wanted, came = f"where= up to {MAX_FILTER} pairs of text, name and value", f"where={self.where!r:.80}"
            found.append(Problem("search", wanted, came, 'Write e.g. where={"language": "en"}.'))
        if not (self.rerank == 0 or settings.is_count(self.rerank, 1, MAX_RERANK)):
            wanted = f"rerank= a number of candidates from 1 to {MAX_RERANK:,}, or 0"
            found.append(Problem("search", wanted, f"rerank={self.rerank!r:.80}", "Write e.g. rerank=20."))
        return tuple(found)

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
            SearchSpec(self.index, tuple(sorted(self.where.items())), self.rerank),
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


def _is_filter(where: object) -> bool:
    if not isinstance(where, Mapping) or len(where) > MAX_FILTER:
        return False
    return all(isinstance(part, str) and len(part) <= 2048 for pair in where.items() for part in pair)


class Index:
    """An index of passages, by name. It need not exist before the workflow runs; its kind is said when it is ingested.

    `where`: metadata that passages must have to be found, all of it. `rerank`: so many candidates are put in order by the
    server's reranker before the first k of them are taken.
    """

    def __init__(
        self,
        name: str,
        *,
        where: Mapping[str, str] | None = None,
        rerank: int = 0,
        retry: int | Retry = 0,
        timeout: float | None = None,
        cache: bool = False,
    ) -> None:
        self.name = name
        self._options: dict[str, Any] = {
            "where": where,
            "rerank": rerank,
            "retry": retry,
            "timeout": timeout,
            "cache": cache,
        }

    @cached_property
    def search(self) -> SearchNode:
        """The search as a node: `index.search(query, k=5)`, `index.search.map(queries, k=5)`."""
        return SearchNode(self.name, **self._options)

    def __repr__(self) -> str:
        return f"Index({self.name!r})"
