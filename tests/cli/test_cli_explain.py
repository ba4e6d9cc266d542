"""`flowserve explain`: tables, JSON and a picture of a recorded run, and what is told of wrong usage."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flowserve.cli import app
from flowserve.core.config import Config
from flowserve.errors import StoreError, UnknownName
from flowserve.graphs.plan import Degradation
from flowserve.sim.dist import Dist
from flowserve.sim.drive import Arrival, Drive
from flowserve.sim.engine import EngineSpec
from flowserve.sim.plans import PlanBuilder
from flowserve.sim.programs import Modelled, NodeModel
from flowserve.sim.timeline import runs_of

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


def test_a_degraded_run_is_told_with_what_was_given_up(tmp_path: Path) -> None:
    """A draft and an optional look at it, a hundred tokens each; the last of the runs has time for the draft alone."""
    b = PlanBuilder("essay")
    draft, body = b.llm(name="draft"), b.block()
    b.loop(body, draft, name="critic.optional", limit=1, degrade=Degradation(0, 0.5))
    b.llm(name="critic", block=body)
    plan = b.build()
    hundred = NodeModel(output=Dist(100.0, 0.0), stop=0.0)
    program = Modelled(plan, {"draft": hundred, "critic": hundred})
    seconds: list[str] = []
    arrivals = [Arrival(60.0 * number, program, plan, number) for number in range(10)]
    Drive(Config(), [(EngineSpec(), ("",))], iter(arrivals), log_line=seconds.append).run()
    whole = max(runs_of(seconds).values())

    lines: list[str] = []
    last = Arrival(600.0, program, plan, 10, deadline_s=0.8 * whole)
    Drive(Config(), [(EngineSpec(), ("",))], iter([*arrivals, last]), log_line=lines.append).run()
    (tmp_path / "run.log").write_text("".join(lines))
    shown = explain("last", "--log", tmp_path / "run.log", "--no-changes", "--json", tmp_path / "out.json")
    assert "degraded: critic.optional, 0 of 1 rounds, harm 0.5" in shown
    [taken] = json.loads((tmp_path / "out.json").read_text())["degraded"]
    assert taken == {"node": "critic.optional", "what": "rounds", "from": 1, "to": 0, "harm": 0.5}
    assert "degraded" not in explain("run-10", "--log", tmp_path / "run.log", "--no-changes")


def test_what_is_not_there_is_told(log: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="run-2"):
        explain("nobody", "--log", log)
    (tmp_path / "no.log").write_text("hello\n")
    with pytest.raises(StoreError, match="line 1"):
        explain("last", "--log", tmp_path / "no.log")
