"""Splitting a template never changes its text; boundaries fall where loops over passages are; the sandbox holds."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from flowserve.errors import ValueInvalid
from flowserve.graphs import sandbox, template
from flowserve.graphs.plan import Span, Template
from flowserve.graphs.split import TemplateProblem, split
from flowserve.graphs.template import Piece, render
from flowserve.graphs.types import Doc, Message


class Draft(BaseModel):
    text: str
    score: float = 1.5

    @property
    def secret(self) -> str:
        return "s"

    def shout(self) -> str:
        return self.text.upper()


@dataclass
class Point:
    x: int


VALUES: dict[str, Any] = {
    "question": "why {{ x }}\n",
    "passages": [Doc("one", id="a#0"), Doc("two\n", id="b#1"), Doc("", id="c#2")],
    "words": ["a", "", "b c"],
    "draft": Draft(text="hello"),
    "table": {"items": 3, "k": [1, 2]},
    "flag": True,
    "none": None,
    "empty": [],
}


def whole(source: str, values: dict[str, Any]) -> str:
    return sandbox.environment().from_string(source).render(values)


def joined(source: str, values: dict[str, Any] = VALUES) -> str:
    return template.joined(render(split(source), values))


def test_a_loop_over_passages_gives_a_piece_per_passage() -> None:
    source = "Use:\n{% for p in passages %}[{{ loop.index }}] {{ p.text }}\n{% endfor %}\nQ: {{ question }}"
    assert split(source) == (
        Span("const", "Use:\n"),
        Span("each", "[{{ loop.index }}] {{ p.text }}\n", over="passages", item="p"),
        Span("const", "\nQ: "),
        Span("var", "{{ question }}"),
    )
    assert render(split(source), {"passages": [Doc("x"), Doc("y")], "question": "z"}) == [
        Piece("Use:\n", "template"),
        Piece("[1] x\n", "chunk"),
        Piece("[2] y\n", "chunk"),
        Piece("\nQ: ", "template"),
        Piece("z", "value"),
    ]


LOOP_BODIES = st.sampled_from(
    [
        "{{ p }}",
        "{{ loop.index0 }}/{{ loop.length }} ",
        "{% if loop.first %}F{% endif %}{% if not loop.last %}, {% endif %}",
        "{{ loop.cycle('a', 'b') }}",
        "{% if loop.changed(p) %}new{% endif %}",
        "{{ loop.previtem is defined }}{{ loop.nextitem is defined }}",
        "{% set y = p %}{{ y }}",
        "{% for q in words %}{{ loop.index }}{{ q }}{% endfor %}",
        "  {%- if flag -%}  x {%- endif %}  ",
        "\n{{ p }}\n",
        "",
    ]
)
PIECES = st.one_of(
    st.text(alphabet="ab \n\t\r#%}-", max_size=8),
    st.sampled_from(
        [
            "{{ question }}",
            "{{- question -}}",
            "{{ draft.text|upper }}",
            "{{ draft }}",
            "{{ table.items }}{{ table['k'][0] }}",
            "{{ words|join(', ') }}",
            "{{ '{% raw %}' }}",
            "{# a comment #}",
            "{#- another -#}",
            "{% raw %}{{ not_a_value }}{% endraw %}",
            "{%- raw -%} x {%- endraw -%}",
            "{% if flag %}yes{% else %}no{% endif %}",
            "{% if flag %}{% set later = 2 %}{% endif %}",
            "{% set later = 1 %}",
            "{% set later %}block{{ question }}{% endset %}",
            "{{ later|default('unset') }}",
            "{% with a = 1 %}{{ a }}{% endwith %}",
            "{% filter upper %}abc{{ question }}{% endfilter %}",
            "{% for p in words if p %}{{ p }}{% endfor %}",
            "{% for p in empty %}x{% else %}none{% endfor %}",
            "{% for k, v in table|items %}{{ k }}{% endfor %}",
            "{% for p in [1, 2] %}{{ p }}{% endfor %}",
            "{% for p in range(3) %}{{ p }}{% endfor %}",
            "{{ none }}{{ flag }}",
        ]
    ),
    st.builds(
        "{{%{} for p in {} {}%}}{}{{%{} endfor {}%}}".format,
        st.sampled_from(["", "-"]),
        st.sampled_from(["words", "passages", "words[1:]", "empty", "(words)", "words|reverse|list"]),
        st.sampled_from(["", "-"]),
        LOOP_BODIES,
        st.sampled_from(["", "-"]),
        st.sampled_from(["", "-"]),
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=7).map("".join))
def test_the_pieces_joined_are_the_whole_render(source: str) -> None:
    try:
        spans = split(source)
    except TemplateProblem:
        return
    assert template.joined(render(spans, VALUES)) == whole(source, VALUES)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=5), max_size=6), st.text(max_size=5))
def test_values_are_data_whatever_they_contain(words: list[str], question: str) -> None:
    source = "a{% for p in words %}<{{ p }}|{{ loop.index }}>{% endfor %}b{{ question }}"
    values = {"words": words, "question": question}
    pieces = render(split(source), values)
    assert template.joined(pieces) == whole(source, values)
    assert [p.text for p in pieces if p.origin == "chunk"] == [f"<{w}|{i}>" for i, w in enumerate(words, 1)]


def test_what_is_set_and_used_later_makes_one_bigger_part() -> None:
    assert split("a{% set x = 1 %}b{{ x }}") == (Span("const", "a"), Span("var", "{% set x = 1 %}b{{ x }}"))


def test_the_trailing_newline_is_kept() -> None:
    assert joined("a\n\n") == "a\n\n"
    assert joined("{{ flag }}\n") == "True\n"


def test_records_lists_and_mappings_are_written_as_json() -> None:
    assert joined("{{ draft }}") == '{"text": "hello", "score": 1.5}'
    assert joined("{{ words|map('upper') }}") == '["A", "", "B C"]'
    assert joined("{{ p }}", {"p": Point(1)}) == '{"x": 1}'


def test_keys_of_a_mapping_win_over_its_methods() -> None:
    assert joined("{{ table.items }}") == "3"


@pytest.mark.parametrize(
    "source",
    [
        "{{ question.__class__ }}",
        "{{ question.upper() }}",
        "{{ draft.shout() }}",
        "{{ draft.secret }}",
        "{{ draft.model_dump() }}",
        "{{ draft['__class__'] }}",
        "{{ table['__class__'] }}",
        "{{ draft.nosuch }}",
        "{{ words[9] }}",
        "{{ nosuch }}",
        "{{ table.nosuch }}",
        "{{ loop }}",
        "{{ self.__init__ }}",
        "{{ range.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ words.append('x') }}",
        "{{ question|attr('upper') }}",
        "{{ 'a' * 100000000 }}",
        "{{ [0] * 100000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ 'x'|center(1000000000) }}",
        "{{ range(1000000000) }}",
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x|replace('a', 'aaaa') %}{% endfor %}",
        "{% set ns = namespace(x=99) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}",
    ],
)
def test_hostile_templates_are_refused_quickly(source: str) -> None:
    with pytest.raises((ValueInvalid, TemplateProblem)):
        joined(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f() %}{% endmacro %}",
        "{% for x in words recursive %}{{ loop(x) }}{% endfor %}",
        "{{ question|random }}",
    ],
)
def test_constructs_that_prompts_do_not_have_are_named(source: str) -> None:
    with pytest.raises(TemplateProblem):
        split(source)


def test_an_error_names_what_is_not_there() -> None:
    with pytest.raises(ValueInvalid, match="has no attribute 'nosuch'"):
        joined("{{ draft.nosuch }}")
    with pytest.raises(ValueInvalid, match="'why' is undefined"):
        joined("{{ why }}")


def test_history_stands_between_system_and_user() -> None:
    plan = Template(split("{{ question }}"), split("Be brief."), history="messages")
    values = {"question": "q", "messages": [{"role": "user", "content": "hi"}, Message("assistant", "yes")]}
    prompt = template.render_prompt(plan, values)
    assert prompt.system == (Piece("Be brief.", "template"),)
    assert prompt.history == (Message("user", "hi"), Message("assistant", "yes"))
    assert prompt.user == (Piece("q", "value"),)


def test_a_message_without_a_role_is_refused() -> None:
    with pytest.raises(ValueInvalid, match="role and content"):
        template.message({"content": "x"})
    with pytest.raises(ValueInvalid, match="tool_calls"):
        template.message({"role": "assistant", "tool_calls": [{"x": 1}]})
    with pytest.raises(ValueInvalid, match="'m' to be a list of messages; got str"):
        template.render_prompt(Template((), history="m"), {"m": "text"})


def test_origins_are_those_of_the_engines() -> None:
    from flowserve.engines.base import Origin

    assert {template.TEMPLATE, template.VALUE, template.CHUNK} <= {str(o) for o in Origin}
