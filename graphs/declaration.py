"""A workflow as it is declared: a tree of blocks with nodes that point at each other.

The tracer and the spec reader both build this; compile.py turns it into a Plan. It is the only mutable
form of a workflow.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from flowserve.graphs.plan import (
    SLO,
    Budget,
    Degradation,
    DynamicSpec,
    Kind,
    LLMSpec,
    Retry,
    SampleSpec,
    SearchSpec,
    ToolSpec,
)
from flowserve.ids import Seconds


@dataclass(frozen=True, slots=True)
class ConstExpr:
    """A JSON-like value written in the program."""

    value: Any


@dataclass(frozen=True, slots=True, eq=False)
class ParamExpr:
    """Parameter `index` of this or an enclosing block."""

    block: "BlockDecl"
    index: int


@dataclass(frozen=True, slots=True, eq=False)
class OutputExpr:
    """The result of a node of this or an enclosing block."""

    node: "NodeDecl"


@dataclass(frozen=True, slots=True, eq=False)
class GetExpr:
    """A field or item of another value."""

    of: "Expr"
    key: str | int


@dataclass(frozen=True, slots=True, eq=False)
class OpExpr:
    """See `plan.Op`."""

    name: str
    args: tuple["Expr", ...]


Expr = ConstExpr | ParamExpr | OutputExpr | GetExpr | OpExpr

OPS = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "in", "len", "list", "tuple", "dict"})

MAX_NODES = 2_000
"""Of a loaded spec; a traced program may be larger."""
MAX_EDGES = 10_000
MAX_EXPR_DEPTH = 64
MAX_BLOCK_DEPTH = 32
MAX_DEGRADATIONS = 16
"""Of a workflow: the scheduler weighs sets of them while a run waits to be accepted."""


@dataclass(frozen=True, slots=True)
class AgentDecl:
    """An agent before its tools have numbers."""

    name: str
    llm: LLMSpec
    tools: tuple[ToolSpec, ...]
    max_parallel_tools: int = 8


Payload = LLMSpec | ToolSpec | SearchSpec | SampleSpec | AgentDecl | DynamicSpec | None


@dataclass(slots=True, eq=False)
class NodeDecl:
    """One node; fields as in `plan.Node`."""

    name: str
    kind: Kind
    block: "BlockDecl"
    args: list[tuple[str, Expr]] = field(default_factory=list)
    payload: Payload = None
    bodies: list["BlockDecl"] = field(default_factory=list)
    limit: int = 1
    concurrency: int = 0
    retry: Retry = field(default_factory=Retry)
    timeout_s: Seconds | None = None
    cache: bool = False
    degrade: Degradation | None = None
    streams: "NodeDecl | None" = None

    def __repr__(self) -> str:
        return f"NodeDecl({self.name!r}, {self.kind.name})"


@dataclass(slots=True, eq=False)
class BlockDecl:
    """One block; fields as in `plan.Block`."""

    name: str
    params: tuple[str, ...] = ()
    nodes: list[NodeDecl] = field(default_factory=list)
    result: Expr = ConstExpr(None)
    until: Expr | None = None
    owner: NodeDecl | None = None

    def __repr__(self) -> str:
        return f"BlockDecl({self.name!r}, {len(self.nodes)} nodes)"


@dataclass(slots=True, eq=False)
class Declaration:
    """A whole workflow."""

    name: str
    root: BlockDecl
    input: dict[str, Any]
    output: dict[str, Any]
    slo: SLO = field(default_factory=SLO)
    budget: Budget = field(default_factory=Budget)
    description: str = ""


def references(expr: Expr) -> Iterator[ParamExpr | OutputExpr]:
    """The parameters and outputs that an expression reads, left to right."""
    stack: list[Expr] = [expr]
    while stack:
        e = stack.pop()
        match e:
            case ParamExpr() | OutputExpr():
                yield e
            case GetExpr():
                stack.append(e.of)
            case OpExpr():
                stack.extend(reversed(e.args))
            case ConstExpr():
                pass


def depth(expr: Expr) -> int:
    """Nesting of an expression; 1 for a leaf."""
    deepest = 1
    stack: list[tuple[Expr, int]] = [(expr, 1)]
    while stack:
        e, level = stack.pop()
        deepest = max(deepest, level)
        if isinstance(e, GetExpr):
            stack.append((e.of, level + 1))
        elif isinstance(e, OpExpr):
            stack.extend((a, level + 1) for a in e.args)
    return deepest
