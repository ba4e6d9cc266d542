"""The scheduler's benchmark measures what it says, and reports are complete."""

import json
from pathlib import Path

import pytest

from flowserve.bench import core, report
from flowserve.core.commands import Complete
from flowserve.core.invariants import check
from flowserve.core.log import LogWriter, replay


def test_the_load_keeps_about_as_many_nodes_live_as_asked_for() -> None:
    load = core.Load(200, seed=3)
    check(load.state)
    assert 200 <= load.live <= 220
    assert load.live == sum(len(run.tasks) for run in load.state.runs.values())


def test_the_recorded_mix_has_failures_ticks_and_ends_and_replays_without_stale_events() -> None:
    load = core.Load(50, seed=1)
    kinds = {type(event).__name__ for _, event in load.log}
    assert kinds == {"EngineChanged", "RunSubmitted", "Evaluated", "TaskFinished", "TaskFailed", "Tick"}
    assert load.state.stale == 0
    lines: list[str] = []
    writer = LogWriter(lines.append, core.CONFIG)
    for now, event in load.log:
        writer.record(now, event)
    assert sum(isinstance(command, Complete) for out in replay(lines) for command in out) > 10


def test_figures_are_positive_and_named_by_size() -> None:
    assert 0 < core.us_per_event(10, events=50, repeats=3, seed=0) < 1e5
    assert 100 < core.bytes_per_node(100, seed=0) < 1e5


def test_a_report_says_where_and_when_it_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = {"us_per_event": {"10": 1.5, "1000": 2.0}, "bytes_per_node": {"10": 900}}
    path = tmp_path / "core.json"
    written = report.write("flowserve bench core", results, 7, path)
    assert json.loads(path.read_text(encoding="utf-8")) == written
    assert set(written) == {"command", "commit", "machine", "date", "seed", "results"}
    assert written["results"] == results and written["seed"] == 7
    shown = capsys.readouterr().out
    assert "us_per_event" in shown and "1,000" not in shown and "900" in shown


def test_a_flat_report_is_a_row_per_figure_without_the_content_of_lists(capsys: pytest.CaptureFixture[str]) -> None:
    report.write("flowserve bench x", {"recall": {"5": 0.75}, "seconds": 12345.6, "wrong": ["secret"]}, 0, None)
    shown = capsys.readouterr().out
    assert "recall 5" in shown and "12,346" in shown and "secret" not in shown
