"""`flowserve simulate`: figures, pictures, logs, and what is told of wrong usage."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flowserve.cli import app
from flowserve.core.learning import lessons
from flowserve.core.log import replay
from flowserve.errors import ConfigError, UnknownName
from flowserve.sim import soak

ROOT = Path(__file__).resolve().parents[2]
WORKLOAD = """
duration_s = 5
[engine]
count = 2
[[mix]]
workflow = "TARGET"
rate = 2.0
"""


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["simulate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(WORKLOAD.replace("TARGET", "rag"))
    return path


def test_policies_stand_side_by_side(workload: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.svg"
    shown = invoke(workload, "--compare", "fcfs,critical_path", "--engines", 1, "--json", out, "--plot", picture)
    assert shown.splitlines()[0].split() == ["fcfs", "critical_path"]
    results = json.loads(out.read_text())["results"]
    assert [(result["policy"], result["engines"]) for result in results] == [("fcfs", 1), ("critical_path", 1)]
    assert "critical_path" in picture.read_text()


def test_a_workflow_of_a_file_is_simulated_as_it_stands(tmp_path: Path) -> None:
    path, out = tmp_path / "file.toml", tmp_path / "out.json"
    path.write_text(WORKLOAD.replace("TARGET", str(ROOT / "examples" / "map_reduce.py") + ":summary"))
    invoke(path, "--json", out)
    results = json.loads(out.read_text())["results"]
    assert list(results["mixes"]) == ["summary"] and results["all"]["completed"] > 3


def test_the_log_of_a_simulation_replays_and_is_a_workload_itself(workload: Path, tmp_path: Path) -> None:
    log, out = tmp_path / "run.log", tmp_path / "out.json"
    invoke(workload, "--record", log, "--seed", 4)
    assert sum(1 for _ in replay(log.read_text().splitlines())) > 50
    invoke(log, "--trace", "log", "--json", out)
    assert json.loads(out.read_text())["results"]["all"]["completed"] > 3


def test_a_simulation_may_begin_with_what_another_has_learned(workload: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    invoke(workload, "--record", first, "--seed", 4, "--predictor", "quantile")
    invoke(workload, "--record", second, "--learn", first, "--predictor", "quantile")
    lines = second.read_text().splitlines()
    assert sum('"is":"Learned"' in line for line in lines) > 0
    assert lessons(lines)[0].figures[0].seen > lessons(first.read_text().splitlines())[0].figures[0].seen


def test_the_example_workload_can_be_read() -> None:
    from flowserve.sim.workload import load

    found = load(ROOT / "examples" / "workloads" / "mixed.toml", lambda target: pytest.fail(target))
    assert len(found.members()) == 32


def test_the_check_tells_of_its_runs() -> None:
    assert "40 runs" in invoke("--check", 40, "--seed", 9)


def test_a_check_that_breaks_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise soak.Broken("case 9 broke")

    monkeypatch.setattr(soak, "soak", broken)
    assert CliRunner().invoke(app, ["simulate", "--check", "40"]).exit_code == 1


def test_wrong_usage_is_named(workload: Path) -> None:
    for arguments, error, named in (
        ([], ConfigError, "workload"),
        ([workload, "--policy", "luck"], UnknownName, "luck"),
        ([workload, "--compare", "fcfs,critical_path", "--record", "x"], ConfigError, "--record"),
        ([workload, "--predictor", "luck"], UnknownName, "luck"),
        ([workload, "--learn", workload], ConfigError, "--learn: .*: line 1"),
        (["nowhere.toml"], ConfigError, "nowhere.toml"),
    ):
        with pytest.raises(error, match=named):
            invoke(*arguments)
