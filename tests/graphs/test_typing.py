"""The language as type checkers see it: snippets.py is clean, and mistakes are seen in the editor."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

MISTAKES = """
from pydantic import BaseModel
import flowserve.graphs as fs

class Answer(BaseModel):
    text: str

@fs.llm
def answer(question: str) -> Answer:
    fs.prompt("{{ question }}")

@fs.workflow()
def wrong(question: str) -> str:
    answer(1)
    answer.map(["x"]).text
    answer(question).txt
    return answer(question)
"""


def checked(command: list[str]) -> tuple[int, str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    return done.returncode, done.stdout + done.stderr


def about(output: str, name: str) -> list[str]:
    """The complaints about one file."""
    return [line for line in output.splitlines() if name in line and "error" in line]


def mypy(path: Path) -> list[str]:
    pytest.importorskip("mypy", reason="mypy is not installed")
    code, output = checked([sys.executable, "-m", "mypy", "--strict", str(path)])
    assert code in (0, 1), output
    return about(output, path.name)


def pyright(path: Path) -> list[str]:
    pytest.importorskip("pyright", reason="pyright is not installed")
    settings = path.parent / "pyrightconfig.json"
    if path.parent != HERE:
        settings.write_text(f'{{"include": ["{path.name}"], "extraPaths": ["{ROOT}"], "typeCheckingMode": "standard"}}')
    try:
        code, output = checked(
            [sys.executable, "-m", "pyright", *(["-p", str(settings)] if settings.exists() else [str(path)])]
        )
    except subprocess.TimeoutExpired:
        pytest.skip("pyright did not answer in time; it may be unable to fetch node")
    if code not in (0, 1):
        pytest.skip(f"pyright cannot run here: {output[-200:]}")
    return about(output, path.name)


@pytest.mark.slow
def test_the_snippets_are_clean_under_mypy_strict() -> None:
    assert mypy(HERE / "snippets.py") == []


@pytest.mark.slow
def test_the_snippets_are_clean_under_pyright() -> None:
    assert pyright(HERE / "snippets.py") == []


@pytest.mark.slow
def test_mypy_sees_mistakes(tmp_path: Path) -> None:
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    found = "\n".join(mypy(tmp_path / "mistakes.py"))
    assert 'Argument 1 has incompatible type "int"; expected "str"' in found.replace('to "__call__" of "Node" ', "")
    assert '"list[Answer]" has no attribute "text"' in found
    assert '"Answer" has no attribute "txt"' in found
    assert 'got "Answer", expected "str"' in found


@pytest.mark.slow
def test_pyright_sees_mistakes(tmp_path: Path) -> None:
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    found = "\n".join(pyright(tmp_path / "mistakes.py"))
    for part in ('"txt"', '"text"', '"Literal[1]"', 'Type "Answer"'):
        assert part in found
