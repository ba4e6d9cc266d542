"""Pictures."""

import xml.etree.ElementTree as ET
from types import ModuleType

import pytest

import flowserve.graphs as fs
from flowserve.graphs import draw
from flowserve.graphs.plan import Kind

NAMES = ("rag", "summary", "research", "reason", "essay", "dyn", "route", "many", "chat", "votes")


@pytest.mark.parametrize("name", NAMES)
def test_every_workflow_is_drawn_as_well_formed_svg_with_all_its_nodes(snippets: ModuleType, name: str) -> None:
    workflow = getattr(snippets, name)
    picture = workflow.graph()
    root = ET.fromstring(picture.svg)
    titles = " ".join(t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}title"))
    for node in workflow.program.plan.nodes:
        assert node.name in titles
        assert node.name in picture.text
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    assert _extent(root) <= (width, height)
    assert "http://" not in picture.svg.replace("http://www.w3.org/2000/svg", ""), "works offline"


@pytest.mark.parametrize("name", NAMES)
def test_boxes_of_a_picture_do_not_overlap(snippets: ModuleType, name: str) -> None:
    from flowserve.graphs import svg

    plan = getattr(snippets, name).program.plan
    boxes = [svg._block(plan, plan.blocks[0], ends=True)]
    while boxes:
        inner = boxes.pop().children
        boxes += inner
        for i, a in enumerate(inner):
            for b in inner[i + 1 :]:
                apart_x = a.x + a.width <= b.x or b.x + b.width <= a.x
                apart_y = a.y + a.height <= b.y or b.y + b.height <= a.y
                assert apart_x or apart_y


def _extent(element: ET.Element, x: float = 0, y: float = 0) -> tuple[float, float]:
    """Lower right corner of everything drawn."""
    move = element.get("transform", "translate(0,0)")[10:-1].split(",")
    x, y = x + float(move[0]), y + float(move[1])
    far = [(0.0, 0.0)]
    for child in element:
        tag = child.tag.split("}")[1]
        if tag == "rect":
            far.append((x + float(child.get("width", "0")), y + float(child.get("height", "0"))))
        elif tag == "g":
            far.append(_extent(child, x, y))
    return max(a for a, _ in far), max(b for _, b in far)


def test_mermaid_text_has_a_box_per_body_and_an_edge_per_dependency(snippets: ModuleType) -> None:
    text = snippets.essay.graph().mermaid
    assert text.startswith("flowchart TD\n")
    assert "n0 --> n1" in text and 'b1["then"]' in text and "#62;= 8" in text
    opened = sum(line.strip().startswith("subgraph") for line in text.splitlines())
    closed = sum(line.strip() == "end" for line in text.splitlines())
    assert opened == closed


def test_names_cannot_break_a_picture() -> None:
    @fs.workflow(name="w")
    def w(q: str) -> list[fs.Doc]:
        return fs.Index('<script>"\ud800\x00]-->').search(q)

    picture = w.graph()
    ET.fromstring(picture.svg)
    assert "<script" not in picture.svg and "<script" not in picture.mermaid and '"]' in picture.mermaid


def test_the_outline_reads_like_the_program(snippets: ModuleType) -> None:
    assert snippets.essay.graph().text.splitlines() == [
        "essay(topic, strict)",
        "  write  [llm, 256 tokens]",
        "  when  [switch, strict?]  after write",
        "    then:",
        "      loop  [loop, up to 3, until state.score >= 8]",
        "        each round:",
        "          improve  [llm, 256 tokens]",
        "          = improve",
        "      = loop",
        "    otherwise:",
        "      = write",
        "  = when",
    ]


def test_the_outline_says_which_list_may_stand_in_any_order(snippets: ModuleType) -> None:
    combine = snippets.combine.options(any_order="parts")

    @fs.workflow
    def w(parts: list[str]) -> str:
        return combine(parts)

    assert "combine  [llm, 400 tokens, parts in any order]" in w.graph().text


def test_the_outline_names_what_is_approximate(snippets: ModuleType) -> None:
    combine = snippets.combine.options(quality="fast", exit=fs.early_exit(answer="line"))

    @fs.workflow
    def w(parts: list[str]) -> str:
        return combine(parts)

    assert "combine  [llm, 400 tokens, approximate: may end early]" in w.graph().text


def test_every_kind_has_a_colour() -> None:
    assert set(draw.KIND_COLOURS) == set(Kind)
