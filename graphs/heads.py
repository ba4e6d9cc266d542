"""The head of a prompt: what of it can be rendered before everything that it reads exists.

A prompt is read from left to right: system message, history, user message. Its head ends where the first span begins
that reads something unknown. Splitting a prompt there is Ayo's prefill split (Teola, ASPLOS 2025, partial prefilling).
"""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import lru_cache

from flowserve.graphs import split
from flowserve.graphs.analysis import outputs_of
from flowserve.graphs.plan import Node, Span, Template
from flowserve.ids import NodeId


def unknown(node: Node, missing: AbstractSet[NodeId]) -> frozenset[str]:
    """Arguments of `node` that read a result of one of the nodes `missing`."""
    return frozenset(arg.name for arg in node.args if not missing.isdisjoint(outputs_of(arg.source)))


@lru_cache(maxsize=4096)
def head(template: Template, unknown: frozenset[str]) -> Template | None:
    """The template of the head, when the arguments `unknown` have no value yet; None: nothing, or nothing but the whole,
    comes before them."""
    system = _known(template.system, unknown)
    if len(system) < len(template.system):
        return Template((), system) if system else None
    if template.history in unknown:
        return Template((), system) if system else None
    user = _known(template.user, unknown)
    if len(user) == len(template.user):
        return None
    return replace(template, user=user, source="", system_source="") if user or system or template.history else None


def _known(spans: Sequence[Span], unknown: frozenset[str]) -> tuple[Span, ...]:
    """The spans before the first that reads one of `unknown`."""

    def leading() -> Iterator[Span]:
        for span in spans:
            if not unknown.isdisjoint(_reads(span)):
                return
            yield span

    return tuple(leading())


def _reads(span: Span) -> frozenset[str]:
    """Names that a span reads, at most: what a loop calls its item is left out only where nothing else has that name."""
    if span.kind == "const":
        return frozenset()
    if span.kind == "var":
        return split.variables(span.text)
    return split.variables(f"{{{{ {span.over} }}}}") | (split.variables(span.text) - {span.item, "loop"})
