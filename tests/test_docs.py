"""What the documents say is true of the code."""

import ast
import itertools
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import flowserve as fs
from flowserve.assemble import Settings
from flowserve.config import RuntimeConfig
from flowserve.core.placements import PLACEMENTS
from flowserve.core.predict.table import PREDICTORS
from flowserve.core.priority import POLICIES
from flowserve.graphs.passes import PASSES
from flowserve.graphs.plan import ExitSpec
from flowserve.server.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[1]
FACTORIES = ("self_consistency", "best_of_n", "tree_of_thoughts", "rebase", "mcts")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_workflow_of_the_readme_compiles_and_has_at_most_fifteen_lines() -> None:
    (block,) = blocks((ROOT / "README.md").read_text(), "python")
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102  # our own text
    program = names["rag"].program  # type: ignore[attr-defined]
    assert [node.kind.name for node in program.plan.nodes] == ["SEARCH", "LLM"]


def test_every_program_of_its_page_runs() -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks((ROOT / "docs" / "programs.md").read_text(), "python"):
        exec(compile(block, "programs.md", "exec", dont_inherit=True), names)  # noqa: S102  # our own text
    programs = [value for value in names.values() if isinstance(value, fs.programs.Program)]
    assert [program.name.partition(".")[2] for program in programs] == [*FACTORIES]
    replies = {"solve": '{"text": "a", "final": "1"}', "step": '{"text": "a", "final": "1"}', "*": 0.5}
    with fs.testing.engine(replies):
        assert [program.run(problem="p").answer.final for program in programs] == ["1"] * len(FACTORIES)
        assert names["answer"].run("p") == "1"


def test_the_readme_says_the_two_commands_and_the_makefile_has_them() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z]+)", readme):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make demo" in readme
    assert "make test" in readme


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_every_policy_placement_predictor_and_pass_has_its_row() -> None:
    text = (ROOT / "docs" / "scheduling.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [*POLICIES, *PLACEMENTS, *PREDICTORS, *PASSES]


def test_every_file_and_folder_that_the_documents_name_exists() -> None:
    for document in DOCUMENTS:
        for path in re.findall(r"`((?:flowserve|graphs|retrieval|docs|examples|tests)/[\w/.]*)`", document.read_text()):
            assert (ROOT / path).exists(), f"{document.name}: {path}"


def test_the_workflow_of_the_page_on_early_exits_compiles() -> None:
    (block,) = blocks((ROOT / "docs" / "early-exit.md").read_text(), "python")
    names: dict[str, object] = {}
    exec(compile(block, "early-exit.md", "exec"), names)  # noqa: S102  # our own text
    assert names["solver"].program.plan.llms[0].exit is not None  # type: ignore[attr-defined]


def test_every_field_of_an_early_exit_has_its_row() -> None:
    text = (ROOT / "docs" / "early-exit.md").read_text()
    told = [name for row in re.findall(r"^\| ([a-z_, ]+) \|", text, re.MULTILINE) for name in row.split(", ")]
    assert sorted(told) == sorted(["field", *(item.name for item in fields(ExitSpec))])


def test_every_decision_record_says_what_was_refused_and_how_it_could_be_wrong() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert records
    for record in records:
        text = record.read_text()
        for part in ("**Context.**", "**Choice.**", "**Refused.**", "**We would know it was wrong**"):
            assert part in text, f"{record.name}: {part}"
        assert len(text.splitlines()) <= 60


@pytest.mark.parametrize("settings", [Settings, RuntimeConfig, ServerSettings])
def test_every_setting_is_documented_where_it_is_declared(settings: type) -> None:
    module = __import__(settings.__module__, fromlist=["x"])
    tree = ast.parse(Path(module.__file__ or "").read_text())
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == settings.__name__)
    said = set()
    for statement, after in itertools.pairwise(body):
        documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and documented:
            said.add(statement.target.id)
    plain = {"host", "port"}  # their names say it
    units = {item.name for item in fields(settings) if re.search(r"_(s|bytes|depth|requests|per_run)$", item.name)}
    missing = [item.name for item in fields(settings) if item.name not in said | plain | units]
    assert not missing


def test_nothing_in_the_repository_names_a_machine_or_an_index() -> None:
    pattern = re.compile(
        r"(^|[^A-Za-z0-9_.])/(work|root|home)/[A-Za-z0-9_.-]+|(index|find-links)[-_ ]?url", re.IGNORECASE
    )
    for folder in ("flowserve", "graphs", "retrieval", "cachestore", "examples", "docs", ".ci"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix in (".py", ".md", ".toml", ".sh", ".svg", ".html", ".json", ""):
                text = file.read_text(encoding="utf-8", errors="ignore")
                assert not pattern.search(text), file
