"""The inner part of codec.py: a spec that has the right shape becomes a Declaration.

Names are resolved to objects, calls are compared with what is called, bounds are counted. Problems are
collected in `Decoder.problems`; a stand-in takes the place of what is wrong, so that one pass finds them all.
"""

from collections.abc import Mapping
from typing import Any

from flowserve.graphs import settings
from flowserve.graphs.declaration import (
    MAX_BLOCK_DEPTH,
    MAX_EDGES,
    MAX_EXPR_DEPTH,
    MAX_NODES,
    AgentDecl,
    BlockDecl,
    ConstExpr,
    Declaration,
    Expr,
    GetExpr,
    NodeDecl,
    OpExpr,
    OutputExpr,
    ParamExpr,
    Payload,
    references,
)
from flowserve.graphs.decode_tables import FIX, Tables
from flowserve.graphs.dynamic import DynamicNode
from flowserve.graphs.nodes import misfits
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
from flowserve.graphs.shapes import SchemaShape, ShapeError, property_shapes
from flowserve.graphs.stopping import NUMBERS
from flowserve.graphs.tool import ToolNode

_BOUNDED = (Kind.MAP, Kind.SAMPLE, Kind.LOOP, Kind.AGENT, Kind.DYNAMIC, Kind.RACE)
_BODIES = {Kind.MAP: 1, Kind.SAMPLE: 1, Kind.LOOP: 1}
_ARITY = {"eq": 2, "ne": 2, "lt": 2, "le": 2, "gt": 2, "ge": 2, "in": 2, "not": 1, "len": 1}
_USES = {Kind.LLM: "llms", Kind.TOOL: "tools", Kind.AGENT: "agents", Kind.DYNAMIC: "dynamics"}


class Decoder(Tables):
    """Reads the blocks and nodes of one spec, on top of its tables."""

    def __init__(
        self,
        spec: dict[str, Any],
        tools: Mapping[str, ToolNode[..., Any]],
        dynamics: Mapping[str, DynamicNode[..., Any]],
    ) -> None:
        super().__init__(spec, tools, dynamics)
        self.spec = spec
        self.nodes: dict[str, NodeDecl] = {}
        self.blocks: dict[str, BlockDecl] = {}
        self.unresolved: list[tuple[NodeDecl | BlockDecl, dict[str, Any]]] = []
        self.num_edges = 0

    def declaration(self, slo: SLO, budget: Budget) -> Declaration:
        """The declaration; worth nothing when there are problems."""
        spec = self.spec
        given, gives = self._schema("input", spec["input"]), self._schema("output", spec["output"])
        if not settings.is_name(spec["name"]):
            self._note("name", "a name of letters, digits, _ and -", repr(spec["name"])[:100], "Choose a plain name.")
        root = self._block(spec["body"], None, 1)
        declared = list(given.get("properties", {}))
        if sorted(root.params) != sorted(declared):
            came = f"{', '.join(root.params) or 'none'}, while input has: {', '.join(declared) or 'none'}"
            self._note(root.name, "the parameters that input describes", came, "Make the two equal.")
        for thing, data in self.unresolved:
            self._resolve(thing, data)
        if self.num_edges > MAX_EDGES:
            self._note(spec["name"], f"at most {MAX_EDGES:,} edges", f"{self.num_edges:,}", "Split the workflow.")
        return Declaration(spec["name"], root, given, gives, slo, budget, spec.get("description", ""))

    # --- blocks and nodes ---------------------------------------------------------------------------

    def _block(self, data: dict[str, Any], owner: NodeDecl | None, level: int) -> BlockDecl:
        block = BlockDecl(data["name"], tuple(data["params"]), owner=owner)
        if block.name in self.blocks:
            self._note(block.name, "a name of its own for every block", "a second block of that name", FIX)
        self.blocks[block.name] = block
        self.unresolved.append((block, data))
        if level > MAX_BLOCK_DEPTH:
            self._note(
                block.name, f"bodies nested at most {MAX_BLOCK_DEPTH} deep", "deeper nesting", "Split the workflow."
            )
            return block
        for node in data["nodes"]:
            block.nodes.append(self._node(node, block, level))
        if "until" in data and (owner is None or owner.kind not in (Kind.LOOP, Kind.RACE)):
            self._note(block.name, "until in the bodies of loops and races only", "until elsewhere", FIX)
        return block

    def _node(self, data: dict[str, Any], block: BlockDecl, level: int) -> NodeDecl:
        kind = Kind[data["kind"].upper()]
        retry = data.get("retry", {})
        node = NodeDecl(
            name=data["name"],
            kind=kind,
            block=block,
            payload=self._payload(kind, data),
            limit=_limit(kind, data),
            concurrency=data.get("concurrency", 0),
            retry=Retry(
                retry.get("attempts", 1),
                float(retry.get("backoff_s", Retry().backoff_s)),
                float(retry.get("max_backoff_s", Retry().max_backoff_s)),
                tuple(retry.get("on", ())),
            ),
            timeout_s=float(data["timeout_s"]) if "timeout_s" in data else None,
            cache=data.get("cache", False),
            degrade=self._degradation(kind, data),
        )
        if node.name in self.nodes:
            self._note(node.name, "a name of its own for every node", "a second node of that name", FIX)
        self.nodes[node.name] = node
        if len(self.nodes) == MAX_NODES + 1:
            self._note(self.spec["name"], f"at most {MAX_NODES:,} nodes", "more", "Split the workflow.")
        if kind in _BOUNDED and "limit" not in data:
            self._note(node.name, "a limit (the work would be unbounded)", "none", "Say how many at most.")
        self.unresolved.append((node, data))
        node.bodies = [self._block(body, node, level + 1) for body in data.get("bodies", ())]
        self._check_bodies(node, data)
        return node

    def _payload(self, kind: Kind, data: dict[str, Any]) -> Payload:
        if kind in _USES:
            table: Mapping[str, Payload] = getattr(self, _USES[kind])
            found = table.get(data.get("uses", ""))
            if found is None:
                came = repr(data.get("uses"))[:100]
                self._note(
                    data["name"], f"uses: one of {_USES[kind]} ({', '.join(sorted(table)[:20]) or 'none'})", came, FIX
                )
            return found
        if kind is Kind.SEARCH:
            if "index" not in data:
                self._note(data["name"], "the name of an index", "none", FIX)
            return SearchSpec(
                data.get("index", ""), tuple(sorted(data.get("where", {}).items())), data.get("rerank", 0)
            )
        if kind is Kind.SAMPLE:
            return self._sample(data)
        return None

    def _sample(self, data: dict[str, Any]) -> SampleSpec:
        sample = data.get("sample", {})
        vote, rule = sample.get("vote"), sample.get("rule")
        name, given = data["name"], sample.get("rule_args", {})
        if rule is None and (given or "wave" in sample):
            self._note(name, "rule_args and wave beside a rule", "no rule", FIX)
        elif rule is not None and (rule not in NUMBERS or vote is None):
            self._note(name, f"a vote, and a rule among {', '.join(NUMBERS)}", f"rule {rule!r}, vote {vote!r}", FIX)
        elif rule is not None:
            self._rule_args(name, rule, given)
        numbers = tuple(sorted((k, float(v)) for k, v in given.items()))
        return SampleSpec(vote, rule, numbers, sample.get("wave"))

    def _rule_args(self, name: str, rule: str, given: dict[str, Any]) -> None:
        known = NUMBERS[rule]
        for key, value in given.items():
            if key not in known:
                self._note(name, f"rule_args of {rule} among {', '.join(known) or 'none'}", repr(key)[:100], FIX)
            elif not known[key].fits(value):
                self._note(name, f"{key}: {known[key]}", repr(value)[:100], FIX)

    def _degradation(self, kind: Kind, data: dict[str, Any]) -> Degradation | None:
        if "degrade" not in data:
            return None
        name, degrade = data["name"], Degradation(int(data["degrade"]["least"]), float(data["degrade"]["harm"]))
        if kind not in (Kind.SAMPLE, Kind.SEARCH, Kind.LOOP):
            self._note(name, "degrade in samples, searches and loops only", f"one in a {kind.name.lower()}", FIX)
        elif kind is Kind.SEARCH and not isinstance(_constant_k(data), int):
            self._note(name, "k: a constant where there is a degrade", str(data["args"].get("k", "none"))[:100], FIX)
        else:
            lowest = 0 if kind is Kind.LOOP else 1
            found = misfits(name, degrade.least, degrade.harm, lowest, _limit(kind, data))
            self.problems.update(dict.fromkeys(found))
        return degrade

    def _check_bodies(self, node: NodeDecl, data: dict[str, Any]) -> None:
        count = len(node.bodies)
        if isinstance(node.payload, DynamicSpec):
            wanted = len(node.payload.callees)
        elif node.kind is Kind.SWITCH:
            allowed = self._arms(node.name, data["args"])
            wanted = count if count in allowed else allowed[0]
        elif node.kind is Kind.RACE:
            wanted = max(count, node.limit, 1)
        else:
            wanted = _BODIES.get(node.kind, 0)
        if count != wanted:
            self._note(node.name, f"{wanted} bodies", str(count), FIX)
        names: tuple[tuple[str, ...], ...]
        if node.kind is Kind.MAP:
            order = data.get("order", list(data["args"]))
            if sorted(order) != sorted(data["args"]) or not order:
                self._note(node.name, "order: the names of the args", ", ".join(order)[:200] or "nothing", FIX)
            names = (tuple(order),) * count
        elif node.kind is Kind.LOOP:
            names = tuple(body.params[:1] or ("state",) for body in node.bodies)
        elif node.kind is Kind.DYNAMIC:
            names = tuple(body.params for body in node.bodies)
        else:
            names = ((),) * count
        for body, params in zip(node.bodies, names, strict=True):
            if body.params != params:
                self._note(body.name, f"the parameters ({', '.join(params)})", f"({', '.join(body.params)})", FIX)

    def _arms(self, name: str, args: dict[str, Any]) -> tuple[int, ...]:
        """How many bodies a switch may have, the usual number first."""
        if "cases" not in args:
            return (2,)
        cases = args["cases"].get("const")
        if not isinstance(cases, list) or not cases or not all(isinstance(c, str | int | bool | None) for c in cases):
            self._note(name, "cases: a constant list of strings, numbers, bools or null", str(cases)[:100], FIX)
            return (2,)
        return (len(cases) + 1, len(cases))

    # --- references ---------------------------------------------------------------------------------

    def _resolve(self, thing: NodeDecl | BlockDecl, data: dict[str, Any]) -> None:
        if isinstance(thing, BlockDecl):
            thing.result = self._expr(data["result"], thing, thing.name)
            if "until" in data:
                thing.until = self._expr(data["until"], thing, thing.name)
                in_loop = thing.owner is not None and thing.owner.kind is Kind.LOOP
                for ref in references(thing.until) if in_loop else ():
                    if isinstance(ref, OutputExpr) and ref.node.block is thing:
                        self._note(
                            thing.name,
                            "until over the state and outer values",
                            f"the output of '{ref.node.name}'",
                            FIX,
                        )
            return
        order = data.get("order") if thing.kind is Kind.MAP else None
        names = [n for n in order if n in data["args"]] if order else list(data["args"])
        thing.args = [(name, self._expr(data["args"][name], thing.block, thing.name)) for name in names]
        self._check_args(thing)

    def _check_args(self, node: NodeDecl) -> None:
        given = dict(node.args)
        payload = node.payload
        if isinstance(payload, LLMSpec | ToolSpec | DynamicSpec):
            schema = payload.params
        elif isinstance(payload, AgentDecl):
            schema = payload.llm.params
        elif node.kind is Kind.SEARCH:
            schema = _SEARCH_PARAMS
        else:
            schema = _ARGS.get(node.kind, {"properties": {}})
            if node.kind is Kind.MAP or node.kind in _USES:
                return
        properties = schema.get("properties", {})
        for name in given:
            if name not in properties:
                self._note(node.name, f"arguments among {', '.join(properties) or 'none'}", repr(name)[:100], FIX)
        for name in schema.get("required", ()):
            if name not in given:
                self._note(node.name, f"an argument '{name}'", "none", FIX)
        shapes = property_shapes(schema)
        for name, expr in given.items():
            if expr is not _WRONG and isinstance(expr, ConstExpr) and isinstance(shapes.get(name), SchemaShape):
                try:
                    shapes[name].load(expr.value)
                except ShapeError as error:
                    self._note(node.name, f"argument '{name}' as its schema says", str(error)[:200], FIX)

    def _expr(self, data: dict[str, Any], block: BlockDecl, where: str, level: int = 1) -> Expr:
        if level > MAX_EXPR_DEPTH:
            self._note(where, f"expressions at most {MAX_EXPR_DEPTH} deep", "a deeper one", "Compute it in a tool.")
            return ConstExpr(None)
        if "const" in data:
            return ConstExpr(data["const"])
        if "get" in data:
            key = data["key"]
            return GetExpr(
                self._expr(data["get"], block, where, level + 1), int(key) if isinstance(key, float) else key
            )
        if "op" in data:
            args = tuple(self._expr(a, block, where, level + 1) for a in data["args"])
            self._check_op(data["op"], args, where)
            return OpExpr(data["op"], args)
        self.num_edges += 1
        if "output" in data:
            node = self.nodes.get(data["output"])
            if node is None or not _within(block, node.block):
                came = f"'{data['output']}'"[:200] + (" of another body" if node else "")
                self._note(where, "the output of a node of this or an enclosing block", came, FIX)
                return _WRONG
            return OutputExpr(node)
        home = self.blocks.get(data["of"]) if "of" in data else block
        if home is None or not _within(block, home) or data["param"] not in home.params:
            came = f"'{data['param']}'"[:200] + (f" of '{data['of']}'"[:200] if "of" in data else "")
            self._note(where, "a parameter of this or an enclosing block", came, FIX)
            return _WRONG
        return ParamExpr(home, home.params.index(data["param"]))

    def _check_op(self, name: str, args: tuple[Expr, ...], where: str) -> None:
        wanted = _ARITY.get(name)
        if wanted is not None and len(args) != wanted:
            self._note(where, f"{wanted} arguments of '{name}'", str(len(args)), FIX)
        if name == "dict" and (
            len(args) % 2 or not all(isinstance(k, ConstExpr) and isinstance(k.value, str) for k in args[::2])
        ):
            self._note(where, "keys and values in turn, keys constant strings", f"{len(args)} arguments", FIX)


_WRONG = ConstExpr(None)
"""Stands for an expression that has been reported already."""
_ANY: dict[str, Any] = {}
_SEARCH_PARAMS = {
    "properties": {"query": {"type": "string"}, "k": {"type": "integer", "minimum": 1, "maximum": 10_000}},
    "required": ["query", "k"],
}
_ARGS: dict[Kind, dict[str, Any]] = {
    Kind.COMPUTE: {"properties": {"value": _ANY}, "required": ["value"]},
    Kind.SWITCH: {"properties": {"value": _ANY, "cases": {"type": "array"}}, "required": ["value"]},
    Kind.LOOP: {"properties": {"init": _ANY}, "required": ["init"]},
}


def _constant_k(data: dict[str, Any]) -> Any:
    return data["args"].get("k", {}).get("const")


def _limit(kind: Kind, data: dict[str, Any]) -> Any:
    """A search says its bound as `k`, and the scheduler is told of it where it may be degraded."""
    return _constant_k(data) if kind is Kind.SEARCH and "degrade" in data else data.get("limit", 1)


def _within(block: BlockDecl | None, home: BlockDecl) -> bool:
    while block is not None and block is not home:
        block = block.owner.block if block.owner else None
    return block is not None
