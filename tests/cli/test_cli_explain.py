"""`flowserve explain`: tables, JSON and a picture of a recorded run, and what is told of wrong usage."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flowserve.cli import app
from flowserve.errors import StoreError, UnknownName

WORKLOAD = """
duration_s = 5
tell_s = 0.05
[engine]
costs = "cpu-66m"
[[mix]]
workflow = "map-reduce"
rate = 1.0
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    (folder / "w.toml").write_text(WORKLOAD)
    result = CliRunner().invoke(app, ["simulate", str(folder / "w.toml"), "--record", str(folder / "run.log")])
    assert result.exit_code == 0
    return folder / "run.log"


def explain(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["explain", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_slowest_run_is_told_with_its_path_its_slack_and_what_would_change_it(log: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.svg"
    shown = explain("slowest", "--log", log, "--json", out, "--svg", picture)
    for words in ("critical path", "where the time went", "could have ended later", "one more engine", "writing"):
        assert words in shown
    told = json.loads(out.read_text())
    assert told["seconds"] == pytest.approx(sum(told["critical_path_s"].values()))
    assert {node["node"].partition("[")[0] for node in told["nodes"]} == {"split", "summarise", "combine"}
    assert [change["change"] for change in told["changes"]][:2] == ["as recorded", "no other runs"]
    assert ET.fromstring(picture.read_text()).tag.endswith("svg")


def test_a_run_by_name_without_simulated_changes(log: Path) -> None:
    shown = explain("run-1", "--log", log, "--no-changes")
    assert shown.startswith("run-1: map-reduce, completed in")
    assert "one more engine" not in shown


def test_what_is_not_there_is_told(log: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="run-2"):
        explain("nobody", "--log", log)
    (tmp_path / "no.log").write_text("hello\n")
    with pytest.raises(StoreError, match="line 1"):
        explain("last", "--log", tmp_path / "no.log")
