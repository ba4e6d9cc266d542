"""Prompt templates before the run: split into spans, with the names and fields that they read.

A span is constant text, a variable part, or a top-level `{% for p in passages %}` loop. The spans rendered one
after the other are exactly the text of the whole template; what cannot be split without changing the text stays
one bigger variable span.

How: Jinja's own lexer gives tokens whose text, joined, is the source with whitespace control already applied
to the constant parts. We cut between top-level constructs and never look inside an expression.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import meta, nodes

from flowserve.graphs import hints
from flowserve.graphs.plan import Span
from flowserve.graphs.sandbox import MAX_SOURCE_CHARS, compiled, environment, written_over

_CLOSED = frozenset({"for", "if", "with", "filter", "set"})
"""Statements that have an end tag (`set` only in its block form)."""
_REFUSED = (
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
    nodes.Extends,
    nodes.Block,
    nodes.Macro,
    nodes.CallBlock,
    nodes.ScopedEvalContextModifier,
)


class TemplateProblem(ValueError):
    """The template cannot be used: syntax, an unknown filter, or a construct that prompts do not have."""


def split(source: str) -> tuple[Span, ...]:
    """The spans of a template. Raises TemplateProblem."""
    _parse(source)
    spans: list[Span] = []
    parts = list(_constructs(source))
    for i, part in enumerate(parts):
        if part.leaks and part.name != "for":
            # What is set here may be read anywhere after it, so all the rest is one part.
            rest = "".join(p.text for p in parts[i:])
            return (*_merge(spans), Span("var", rest))
        spans.append(part.span())
    return tuple(_merge(spans))


def variables(source: str) -> frozenset[str]:
    """The names that the template reads from its values. Raises TemplateProblem."""
    return frozenset(meta.find_undeclared_variables(_parse(source))) - frozenset(environment().globals)


def wrong_fields(source: str, types: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Fields that the template reads and the declared types do not have: (path, what there is)."""
    scope = {name: type_ for name, type_ in types.items()}
    wrong: dict[str, str] = {}

    def type_of(node: nodes.Node) -> Any:
        if isinstance(node, nodes.Name):
            return scope.get(node.name, Any)
        if isinstance(node, nodes.Getattr):
            of = type_of(node.node)
            # On a mapping `.key` is an item, which any mapping may have.
            if of is Any or any(hints.fields(m) is None for m in hints.members(of)):
                return Any
            try:
                return hints.attribute(of, node.attr)
            except LookupError as error:
                wrong.setdefault(f"{_path(node)}", str(error.args[0]))
        return Any

    def walk(node: nodes.Node) -> None:
        if isinstance(node, nodes.For):
            walk(node.iter)
            over = type_of(written_over(node.iter))
            element = hints.element(over) if over is not Any and hints.is_sequence(over) else Any
            bound = {n.name: Any for n in node.target.find_all(nodes.Name)} | {"loop": Any}
            if isinstance(node.target, nodes.Name):
                bound[node.target.name] = element
            saved = dict(scope)
            scope.update(bound)
            for child in (node.target, *node.body, *([node.test] if node.test else [])):
                walk(child)
            scope.clear()
            scope.update(saved)
            for child in node.else_:
                walk(child)
            return
        if isinstance(node, nodes.Getattr):
            type_of(node)
        for child in node.iter_child_nodes():
            walk(child)
            if isinstance(child, nodes.Name) and child.ctx in ("store", "param"):
                scope[child.name] = Any

    walk(_parse(source))
    return list(wrong.items())


def _path(node: nodes.Node) -> str:
    if isinstance(node, nodes.Getattr):
        return f"{_path(node.node)}.{node.attr}"
    return node.name if isinstance(node, nodes.Name) else "..."


def _parse(source: str) -> nodes.Template:
    if len(source) > MAX_SOURCE_CHARS:
        raise TemplateProblem(f"more than {MAX_SOURCE_CHARS} characters")
    try:
        tree = environment().parse(source)
        compiled(source)  # unknown filters and tests are found here
    except jinja2.TemplateSyntaxError as error:
        raise TemplateProblem(f"{error.message} (line {error.lineno})") from None
    except RecursionError:
        raise TemplateProblem("it is nested too deeply") from None
    except (SyntaxError, MemoryError, ValueError) as error:
        raise TemplateProblem(f"it cannot be compiled ({error})") from None
    for kind in _REFUSED:
        found = tree.find(kind)
        if found is not None:
            raise TemplateProblem(f"{{% {_tag(kind)} %}} is not available in prompts (line {found.lineno})")
    for loop in tree.find_all(nodes.For):
        if loop.recursive:
            raise TemplateProblem(f"recursive loops are not available in prompts (line {loop.lineno})")
    return tree


def _tag(kind: type[nodes.Node]) -> str:
    words: dict[type[nodes.Node], str] = {
        nodes.FromImport: "from",
        nodes.CallBlock: "call",
        nodes.ScopedEvalContextModifier: "autoescape",
    }
    return words.get(kind, kind.__name__.lower())


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str


@dataclass(slots=True)
class _Construct:
    """A top-level part of a template: text, one `{{ }}`, or a statement up to its end tag."""

    tokens: list[_Token]
    name: str
    """`text`, `variable` or the statement's word."""
    leaks: bool = False
    """A name that is set inside may be read after it."""

    @property
    def text(self) -> str:
        return "".join(t.text for t in self.tokens)

    def span(self) -> Span:
        if self.name == "text":
            return Span("const", "".join(t.text for t in self.tokens if t.kind == "data"))
        return (self.name == "for" and _each(self.tokens)) or Span("var", self.text)


def _constructs(source: str) -> Iterator[_Construct]:
    """Cut the token stream between top-level constructs."""
    tokens = [_Token(kind, text) for _, kind, text in environment().lex(source)]
    i = 0
    while i < len(tokens):
        kind = tokens[i].kind
        end = i
        if kind == "variable_begin":
            end = _find(tokens, i, "variable_end")
            yield _Construct(tokens[i : end + 1], "variable")
        elif kind == "block_begin":
            end, leaks = _statement(tokens, i)
            yield _Construct(tokens[i : end + 1], _word(tokens, i), leaks)
        elif kind == "raw_begin":
            end = _find(tokens, i, "raw_end")
            yield _Construct(tokens[i : end + 1], "text")
        elif kind == "comment_begin":
            end = _find(tokens, i, "comment_end")
        else:
            yield _Construct(tokens[i : i + 1], "text")
        i = end + 1


def _find(tokens: Sequence[_Token], start: int, kind: str) -> int:
    return next(i for i in range(start, len(tokens)) if tokens[i].kind == kind)


def _word(tokens: Sequence[_Token], start: int) -> str:
    """The word of the statement that begins at `start`."""
    return next(t.text for t in tokens[start + 1 :] if t.kind != "whitespace")


def _statement(tokens: Sequence[_Token], start: int) -> tuple[int, bool]:
    """Index of the last token of a statement (its end tag's included), and whether it leaks a name."""
    open_tags = 0
    leaks = False
    i = start
    while True:
        begin = _find(tokens, i, "block_begin")
        end = _find(tokens, begin, "block_end")
        word = _word(tokens, begin)
        leaks = leaks or word == "set"
        if word.startswith("end"):
            open_tags -= 1
        elif word in _CLOSED and not (word == "set" and _assigns(tokens[begin:end])):
            open_tags += 1
        if open_tags == 0:
            return end, leaks
        i = end + 1


def _assigns(tag: Sequence[_Token]) -> bool:
    """`{% set x = 1 %}` as against `{% set x %}...{% endset %}`."""
    return any(t.kind == "operator" and t.text == "=" for t in tag) and _first_operator(tag) == "="


def _first_operator(tag: Sequence[_Token]) -> str:
    return next((t.text for t in tag if t.kind == "operator" and t.text not in (",", ".", "(", ")")), "")


def _each(tokens: Sequence[_Token]) -> Span | None:
    """The span of a plain `{% for name in expression %}`; None for loops with else, if, recursive or unpacking."""
    head_end = _find(tokens, 0, "block_end")
    head = [t for t in tokens[1:head_end] if t.kind != "whitespace"]
    tail = max(i for i, t in enumerate(tokens) if t.kind == "block_begin")
    if len(head) < 4 or head[1].kind != "name" or head[2].text != "in":
        return None
    text = "".join(t.text for t in tokens)
    loop = environment().parse(text).body[0]
    if not isinstance(loop, nodes.For) or loop.else_ or loop.test is not None:
        return None
    over_start = next(i for i, t in enumerate(tokens) if t is head[3])
    over = "".join(t.text for t in tokens[over_start:head_end]).strip()
    # Whitespace that `-%}` strips stands in the tag's own token, so the body is exactly what is between the tags.
    body = "".join(t.text for t in tokens[head_end + 1 : tail])
    return Span("each", body, over=over, item=head[1].text)


def _merge(spans: Iterable[Span]) -> Iterator[Span]:
    """Neighbouring constants become one; empty ones go."""
    held = ""
    for span in spans:
        if span.kind == "const":
            held += span.text
            continue
        if held:
            yield Span("const", held)
            held = ""
        yield span
    if held:
        yield Span("const", held)
