"""What of a prompt can be rendered before everything that it reads exists."""

import pytest

from flowserve.graphs.heads import head
from flowserve.graphs.plan import Template
from flowserve.graphs.split import split
from flowserve.graphs.template import render


def template(user: str, system: str = "", history: str | None = None) -> Template:
    return Template(split(user), split(system), history)


@pytest.mark.parametrize(
    ("user", "system", "history", "unknown", "known"),
    [
        ("Text: {{ text }}\nSo far: {{ notes }} End.", "", None, {"notes"}, ("", False, "Text: T\nSo far: ")),
        ("{% for p in docs %}[{{ p }}]{% endfor %}{{ q }}", "Be brief.", None, {"q"}, ("Be brief.", False, "[A][B]")),
        ("{{ q }}{% for p in docs %}[{{ p }}]{% endfor %}", "Be brief.", None, {"docs"}, ("Be brief.", False, "Q")),
        ("{% for p in docs %}{{ p }}{{ q }}{% endfor %}", "S", None, {"q"}, ("S", False, "")),
        ("{{ q }}", "You are {{ who }}. Rules.", None, {"who"}, ("You are ", False, "")),
        ("{{ q }}", "S", "talk", {"q"}, ("S", True, "")),
        ("{{ q }}", "S", "talk", {"talk"}, ("S", False, "")),
        ("{% set x = notes %}{{ q }}{{ x }}", "S", None, {"notes"}, ("S", False, "")),
    ],
)
def test_the_head_ends_before_what_is_unknown(
    user: str, system: str, history: str | None, unknown: set[str], known: tuple[str, bool, str]
) -> None:
    values = {"text": "T", "docs": ["A", "B"], "q": "Q", "who": "W", "notes": "N"}
    found = head(template(user, system, history), frozenset(unknown))
    assert found is not None
    there = {name: value for name, value in values.items() if name not in unknown}
    texts = ["".join(piece.text for piece in render(spans, there)) for spans in (found.system, found.user)]
    assert (texts[0], found.history is not None, texts[1]) == known


@pytest.mark.parametrize(
    ("user", "system", "unknown"), [("{{ q }} rest", "", {"q"}), ("{{ q }}", "S", {"other"}), ("plain", "S", set())]
)
def test_no_head_where_nothing_or_everything_is_known(user: str, system: str, unknown: set[str]) -> None:
    assert head(template(user, system), frozenset(unknown)) is None
