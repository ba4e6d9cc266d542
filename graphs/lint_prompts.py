"""Advice on prompts: engines reuse the KV of equal beginnings, so what is shared should come first and be written alike."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flowserve.errors import Problem
from flowserve.graphs import analysis, split
from flowserve.graphs.plan import Const, Get, Kind, LLMSpec, Node, Op, Output, Param, Plan, Source, Span

LONG_TEXT_CHARS = 200
"""Of a constant text that is worth sharing, whatever stands before it."""
SHORT_TEXT_CHARS = 40
"""Of one that is worth sharing where what stands before it never comes again."""
VOLATILE_FORMATS = frozenset({"date", "date-time", "time", "uuid"})
VOLATILE_NAMES = frozenset(
    {"date", "datetime", "now", "request_id", "run_id", "session_id", "time", "timestamp", "today", "trace_id", "uuid"}
)
"""Parameters that differ in every call, or every day."""


# --- one prompt at a time -------------------------------------------------------------------------------------------


def of_each(plan: Plan) -> Iterator[Problem]:
    """Advice on every prompt by itself."""
    users: dict[int, list[Node]] = {}
    for node in plan.nodes:
        if node.kind is Kind.LLM:
            users.setdefault(node.target, []).append(node)
    for target, nodes in sorted(users.items()):
        spec = plan.llms[target]
        yield from _of_one(spec, frozenset.intersection(*(_fixed(node) for node in nodes)))
    for agent in plan.agents:
        yield from _of_one(agent.llm, frozenset())


def _of_one(spec: LLMSpec, fixed: frozenset[str]) -> Iterator[Problem]:
    read = split.variables(spec.template.source) | split.variables(spec.template.system_source)
    yield from _order(spec, fixed)
    yield from _passages(spec, read)
    yield from _parameters(spec, read)
    yield from _reuse(spec)


def _reuse(spec: LLMSpec) -> Iterator[Problem]:
    """Only what a loop writes is a chunk, whose KV can be reused at another place."""
    loops = any(span.kind == "each" for span in (*spec.template.system, *spec.template.user))
    if spec.reuse not in (None, "exact") and not loops:
        remedy = "Write the passages with {% for %}, or leave reuse out."
        yield Problem(spec.name, "a loop over passages in the prompt", f"reuse='{spec.reuse}' and no loop", remedy)


def _fixed(node: Node) -> frozenset[str]:
    """Parameters that are the same in every call of a node, in every run."""
    return frozenset(arg.name for arg in node.args if not any(analysis.leaves(arg.source)))


def _order(spec: LLMSpec, fixed: frozenset[str]) -> Iterator[Problem]:
    """What every call shares should stand before what differs."""
    spans = (*spec.template.system, *spec.template.user)
    variable: str | None = None
    for span in spans:
        if span.kind == "var" and variable is None and not _names(spec, span.text) <= fixed:
            variable = span.text
        what = _shared(spec, span, fixed)
        if variable is not None and what is not None:
            remedy = f"Move {_short(variable)} after {what}: what comes before it can then be reused between calls."
            yield Problem(spec.name, "shared text before what changes", f"{_short(variable)} before {what}", remedy)
            return
    yield from _moving(spec, fixed)


def _moving(spec: LLMSpec, fixed: frozenset[str]) -> Iterator[Problem]:
    """A system prompt that begins anew with every day or call."""
    system = spec.template.system
    for place, span in enumerate(system):
        names = _names(spec, span.text) - fixed if span.kind == "var" else ()
        name = next((name for name in sorted(names) if _is_volatile(spec, name)), None)
        if name is not None:
            if any(later.kind == "const" and len(later.text) >= SHORT_TEXT_CHARS for later in system[place:]):
                remedy = f"Write '{name}' at the end of the user text: what then stands before it is computed once."
                yield Problem(spec.name, "a system prompt that is always the same", f"'{name}' inside it", remedy)
            return


def _shared(spec: LLMSpec, span: Span, fixed: frozenset[str]) -> str | None:
    """How a span is called that many calls have in common and that takes long to compute; None for others."""
    if span.kind == "const":
        return "a long constant text" if len(span.text) >= LONG_TEXT_CHARS else None
    if span.kind != "each":
        return None
    names = _names(spec, f"{{{{ {span.over} }}}}")
    known = all(name in fixed or _are_passages(_schema(spec, name)) for name in names)
    return f"the passages of '{span.over}'" if known else None


def _passages(spec: LLMSpec, read: frozenset[str]) -> Iterator[Problem]:
    looped = {name for span in _loops(spec) for name in _names(spec, f"{{{{ {span.over} }}}}")}
    for name in _params(spec):
        if _are_passages(_schema(spec, name)) and name not in looped and name in read:
            remedy = (
                f"Write {{% for p in {name} %}}{{{{ p.text }}}}{{% endfor %}} at the top level, so that each passage is "
                "a piece of its own."
            )
            yield Problem(spec.name, f"passages '{name}' in a top-level {{% for %}}", "another use of them", remedy)


def _parameters(spec: LLMSpec, read: frozenset[str]) -> Iterator[Problem]:
    for name in _params(spec):
        if name not in read and spec.template.history != name:
            remedy = f"Remove it, or write {{{{ {name} }}}} into the prompt."
            yield Problem(spec.name, "parameters that the prompt uses", f"'{name}' is never read", remedy)


def _params(spec: LLMSpec) -> Mapping[str, Any]:
    found: Mapping[str, Any] = spec.params.get("properties", {})
    return found


def _schema(spec: LLMSpec, name: str) -> Mapping[str, Any]:
    found = _params(spec).get(name)
    return found if isinstance(found, dict) else {}


def _loops(spec: LLMSpec) -> list[Span]:
    return [span for span in (*spec.template.system, *spec.template.user) if span.kind == "each"]


def _names(spec: LLMSpec, source: str) -> frozenset[str]:
    """The parameters that a piece of a template reads."""
    return split.variables(source) & _params(spec).keys()


def _are_passages(schema: Mapping[str, Any]) -> bool:
    """Whether a parameter is a list of what searches find."""
    options = [schema, *schema.get("anyOf", ())]
    lists = [option.get("items") for option in options if isinstance(option, dict)]
    return any(isinstance(items, dict) and str(items.get("$ref", "")).endswith("/Doc") for items in lists)


def _is_volatile(spec: LLMSpec, name: str) -> bool:
    return name in VOLATILE_NAMES or _schema(spec, name).get("format") in VOLATILE_FORMATS


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


# --- prompts of one workflow together -------------------------------------------------------------------------------

_SYSTEM = "the system prompt"
_HISTORY = "the conversation"
_BEFORE = "the text before them"
_LOOP = "how each is written"
_PLACES = (_SYSTEM, _HISTORY, _BEFORE, _LOOP)


@dataclass(frozen=True, slots=True)
class _Head:
    """A template up to the end of its first loop over a list, with its parameters numbered instead of named."""

    over: str
    parts: tuple[tuple[str, tuple[str, ...]], ...]
    """Where each part stands, and what it is."""
    params: tuple[tuple[str, str], ...]
    """The parameters by number, and where each is read first."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """A model call that goes over a list."""

    node: Node
    head: _Head
    sources: tuple[Source | None, ...]
    """Where the parameters of the head come from; None: their defaults."""


def across(plan: Plan) -> Iterator[Problem]:
    """Calls that read the same passages but do not begin alike, so that none can reuse the KV of another. One per list."""
    heads = [_head(spec) for spec in plan.llms]
    readers: dict[tuple[str | None, Source], list[_Reader]] = {}
    for node in plan.nodes:
        if node.kind is Kind.LLM and (head := heads[node.target]) is not None:
            spec = plan.llms[node.target]
            given = {arg.name: arg.source for arg in node.args}
            sources = tuple(given.get(name) for name, _ in head.params)
            passages = given.get(head.over)
            if passages is not None and all(map(_is_plain, sources)) and _is_long(plan, spec, head.over, passages):
                readers.setdefault((spec.model, passages), []).append(_Reader(node, head, sources))
    for (_, source), (first, *others) in readers.items():
        for other in others:
            where = _difference(first, other)
            if where is not None and not _either(plan, first.node, other.node):
                expected = f"prompts that begin alike where they read {_described(plan, source)}"
                came = f"{first.node.name} and {other.node.name}, which differ in {where}"
                remedy = "Begin both alike, up to the last of the passages, and write what differs behind them."
                yield Problem(plan.name, expected, came, remedy)
                break


def _head(spec: LLMSpec) -> _Head | None:
    """None where no loop goes over a parameter as it is."""
    numbers: dict[str, int] = {}
    params: list[tuple[str, str]] = []
    parts: list[tuple[str, tuple[str, ...]]] = []

    def numbered(source: str, where: str, item: str) -> str:
        """Jinja source with numbers for the names that it reads."""

        def number(word: re.Match[str]) -> str:
            name = word[0]
            if name == item:
                return "\0item"
            if name in _params(spec) and name not in numbers:
                numbers[name] = len(params)
                params.append((name, where))
            return f"\0{numbers[name]}" if name in numbers else name

        return re.sub(r"\w+", number, source)

    for place, span in enumerate((*spec.template.system, *spec.template.user)):
        if place == len(spec.template.system) and spec.template.history is not None:
            parts.append((_HISTORY, (numbered(spec.template.history, _HISTORY, ""),)))
        last = span.kind == "each" and span.over in _params(spec)
        where = _LOOP if last else _SYSTEM if place < len(spec.template.system) else _BEFORE
        over = numbered(span.over, where, "")
        text = span.text if span.kind == "const" else numbered(span.text, where, span.item)
        parts.append((where, (span.kind, over, text)))
        if last:
            return _Head(span.over, tuple(parts), tuple(params))
    return None


def _is_plain(source: Source | None) -> bool:
    """Whether it computes nothing, so that another expression is another value."""
    while isinstance(source, Get):
        source = source.of
    return not isinstance(source, Op)


def _is_long(plan: Plan, spec: LLMSpec, name: str, source: Source) -> bool:
    """Whether a list is of passages, or of results of other calls."""
    made = isinstance(source, Output) and plan.nodes[source.node].kind in (Kind.MAP, Kind.SEARCH, Kind.SAMPLE)
    return not isinstance(source, Const) and (made or _are_passages(_schema(spec, name)))


def _difference(first: _Reader, other: _Reader) -> str | None:
    """Where two prompts part; None where they are alike up to the end of the loop."""
    for mine, theirs in zip(first.head.parts, other.head.parts, strict=False):
        if mine != theirs:
            return min(mine[0], theirs[0], key=_PLACES.index)
    pairs = zip(first.sources, other.sources, first.head.params, strict=True)
    return next((where for mine, theirs, (_, where) in pairs if mine != theirs), None)


def _either(plan: Plan, first: Node, other: Node) -> bool:
    """Whether they stand in different arms of one switch, so that a run makes only one of the calls."""
    arms = dict(_arms(plan, first))
    return any(arms.get(switch, arm) != arm for switch, arm in _arms(plan, other))


def _arms(plan: Plan, node: Node) -> Iterator[tuple[int, int]]:
    """The switches around a node, with the arm that it stands in."""
    block = plan.blocks[node.block]
    while block.parent is not None:
        owner = plan.nodes[block.parent]
        if owner.kind is Kind.SWITCH:
            yield owner.id, block.id
        block = plan.blocks[owner.block]


def _described(plan: Plan, source: Source) -> str:
    """A value by the name of what gives it."""
    while isinstance(source, Get):
        source = source.of
    if isinstance(source, Param):
        return f"'{plan.blocks[source.block].params[source.index]}'"
    assert isinstance(source, Output), "constants and computed values are not compared"
    return f"the result of {plan.nodes[source.node].name}"
