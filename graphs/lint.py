"""What could be better about a workflow: advice, not errors. Only a Plan is read, so specs get it too."""

from collections.abc import Iterator

from flowserve.errors import Problem
from flowserve.graphs import analysis
from flowserve.graphs.plan import Kind, LLMSpec, Node, Plan

DEFAULT_MAX_WIDTH = 10_000
LONG_TEXT_CHARS = 200


def lint(plan: Plan) -> tuple[Problem, ...]:
    """Advice about a plan, in the order of its nodes; the estimate of its length last."""
    found: list[Problem] = []
    seen: set[str] = set()
    unused = set(analysis.unused(plan))
    for node in plan.nodes:
        found += _node(plan, node, node in unused)
        spec = _llm_of(plan, node)
        if spec is not None and spec.name not in seen:
            seen.add(spec.name)
            found += _prompt(spec)
    calls = analysis.llm_calls_on_path(plan)
    if calls > 1:
        seconds = plan.tails[plan.by_tail[0]]
        came = f"{calls} one after the other at most (about {seconds:.0f} s while nothing is measured)"
        found.append(
            Problem(
                plan.name,
                "few model calls on the critical path",
                came,
                "Calls that do not need each other run together.",
            )
        )
    return tuple(found)


def _llm_of(plan: Plan, node: Node) -> LLMSpec | None:
    if node.kind is Kind.LLM:
        return plan.llms[node.target]
    return plan.agents[node.target].llm if node.kind is Kind.AGENT else None


def _node(plan: Plan, node: Node, unused: bool) -> Iterator[Problem]:
    if unused:
        yield Problem(
            node.name,
            "a result that something uses",
            "one that nothing reads",
            "Remove the call, or return its result.",
        )
    if node.kind is Kind.MAP and node.limit == DEFAULT_MAX_WIDTH:
        remedy = "Say how many items there can be: .map(items, max_width=100)."
        yield Problem(node.name, "a width that is known", f"no max_width (up to {DEFAULT_MAX_WIDTH:,} calls)", remedy)


def _prompt(spec: LLMSpec) -> Iterator[Problem]:
    """Text shared by all calls should come first: engines reuse the KV of a common prefix."""
    variable: str | None = None
    for span in (*spec.template.system, *spec.template.user):
        if span.kind == "var" and variable is None:
            variable = span.text
        if variable is not None and (span.kind == "each" or span.kind == "const" and len(span.text) >= LONG_TEXT_CHARS):
            what = f"the passages of '{span.over}'" if span.kind == "each" else "a long constant text"
            remedy = f"Move {_short(variable)} after {what}: what comes before it can then be reused between calls."
            yield Problem(spec.name, "shared text before what changes", f"{_short(variable)} before {what}", remedy)
            break
    yield from _passages(spec)
    yield from _parameters(spec)


def _passages(spec: LLMSpec) -> Iterator[Problem]:
    for name, schema in spec.params.get("properties", {}).items():
        items = schema.get("items", {}) if isinstance(schema, dict) else {}
        looped = any(
            span.kind == "each" and span.over.split(".")[0].strip() == name
            for span in spec.template.user + spec.template.system
        )
        if (
            isinstance(items, dict)
            and str(items.get("$ref", "")).endswith("/Doc")
            and not looped
            and _reads(spec, name)
        ):
            remedy = f"Write {{% for p in {name} %}}{{{{ p.text }}}}{{% endfor %}} at the top level, so that each passage is a piece of its own."
            yield Problem(spec.name, f"passages '{name}' in a top-level {{% for %}}", "another use of them", remedy)


def _parameters(spec: LLMSpec) -> Iterator[Problem]:
    for name in spec.params.get("properties", {}):
        if not _reads(spec, name) and spec.template.history != name:
            remedy = f"Remove it, or write {{{{ {name} }}}} into the prompt."
            yield Problem(spec.name, "parameters that the prompt uses", f"'{name}' is never read", remedy)


def _reads(spec: LLMSpec, name: str) -> bool:
    from flowserve.graphs import split

    return any(name in split.variables(source) for source in (spec.template.source, spec.template.system_source))


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
