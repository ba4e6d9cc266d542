"""Logs: what was recorded replays to the same commands, in any process."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from flowserve.core.codec import decode, encode
from flowserve.core.config import Config
from flowserve.core.events import EngineChanged, RunSubmitted, Tick
from flowserve.core.log import LogWriter, read, replay
from flowserve.core.predict.table import PREDICTORS
from flowserve.core.priority import POLICIES
from flowserve.errors import StoreError
from flowserve.graphs.plan import Arg, Const, Get, Op, Output, Param, Plan
from flowserve.ids import BlockId, EngineId, NodeId, RunId

REPLAY = """
import sys
from flowserve.core.log import replay
for out in replay(open(sys.argv[1], encoding="utf-8")):
    print(out)
"""


def recorded(kit: ModuleType, seed: int, **config: Any) -> tuple[list[str], list[list[Any]]]:
    """The log of a random run with everything in it, and its commands."""
    rnd = Random(seed)
    driver = kit.Driver(rnd, max_live_runs=4, tool_window=2, **config)
    plans = [kit.random_plan(rnd) for _ in range(3)]
    for _ in range(150):
        if rnd.random() < 0.15:
            driver.start(rnd.choice(plans), deadline_s=rnd.choice([None, 20.0]), priority=rnd.randint(-2, 2))
        else:
            driver.random_event()
    driver.drain()
    lines: list[str] = []
    writer = LogWriter(lines.append, driver.state.config)
    for now, event in driver.log:
        writer.record(now, event)
    return lines, driver.outs


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_log_replays_to_the_same_commands(kit: ModuleType, policy: str) -> None:
    for seed in range(10):
        lines, outs = recorded(kit, seed, policy=policy)
        assert list(replay(lines)) == outs


@pytest.mark.parametrize("predictor", sorted(PREDICTORS))
def test_a_log_replays_to_the_same_commands_with_every_predictor(kit: ModuleType, predictor: str) -> None:
    for seed in range(4):
        lines, outs = recorded(kit, seed, predictor=predictor, measure=True)
        assert list(replay(lines)) == outs


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_a_log_replays_to_the_same_commands_in_another_process_with_another_hash_seed(
    kit: ModuleType, tmp_path: Path, hash_seed: str
) -> None:
    lines, outs = recorded(kit, 77)
    path = tmp_path / "log.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", REPLAY, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(out) for out in outs]


def test_every_plan_is_written_once(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm()
    plan = b.build()
    lines: list[str] = []
    writer = LogWriter(lines.append, Config())
    for number in range(3):
        writer.record(float(number), RunSubmitted(RunId(f"r{number}"), plan, deadline_s=1.0, tier="batch"))
    assert [next(iter(json.loads(line))) for line in lines] == ["flowserve_log", "plan", "now", "now", "now"]
    config, events = read(lines)
    assert config == Config()
    assert list(events)[2] == (2.0, RunSubmitted(RunId("r2"), plan, deadline_s=1.0, tier="batch"))


def test_plans_survive_the_way_through_json_with_all_kinds_of_sources(kit: ModuleType) -> None:
    for seed in range(20):
        plan = kit.random_plan(Random(seed))
        assert decode(Plan, json.loads(json.dumps(encode(plan)))) == plan
    source = Op("and", (Get(Param(BlockId(1), 2), "is"), Op("in", (Const(0), Get(Output(NodeId(3)), 4)))))
    assert decode(Arg, json.loads(json.dumps(encode(Arg("x", source))))) == Arg("x", source)


def test_values_that_programs_wrote_pass_as_they_are(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm()
    consts = ({"is": "Const", "index": [1, None]}, "\ud800", 2**70, -0.0, [[]])
    plan = replace(b.build(), consts=consts)
    assert decode(Plan, json.loads(json.dumps(encode(plan)))).consts == consts


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"now": 1.0}',
        '{"now": 1.0, "event": {"is": "Bogus"}}',
        '{"now": 1.0, "event": {"is": "CancelRequested"}}',
        '{"now": 1.0, "event": {"is": "CancelRequested", "run": 5}}',
        '{"now": 1.0, "event": {"is": "CancelRequested", "run": "r", "colour": 1}}',
        '{"now": 1.0, "event": {"is": "TaskFailed", "run": "r", "task": 1, "attempt": 1, "code": "bogus"}}',
        '{"now": 1.0, "event": {"is": "RunSubmitted", "run": "r", "plan": "unknown"}}',
        '{"now": 1.0, "event": {"is": "EngineChanged", "engine": "e", "up": true, "models": "x"}}',
        '{"now": 1.0, "event": {"is": "EngineChanged", "engine": "e", "up": 1}}',
        '{"now": 1.0, "event": 5}',
        '{"plan": 5}',
        '{"plan": {"name": "p", "digest": "d", "nodes": [[]], "blocks": [], "input": {}, "output": {}}}',
        '{"plan": {"is": "Plan", "name": "p"}}',
        '{"now": 1.0, "ev',
    ],
)
def test_a_torn_or_foreign_line_is_named(line: str) -> None:
    lines: list[str] = []
    LogWriter(lines.append, Config()).record(0.5, Tick())
    with pytest.raises(StoreError, match="^line 3: "):
        list(replay([*lines, line]))


def test_a_file_that_is_no_log_is_refused() -> None:
    for lines in ([], ["{}"], ['{"flowserve_log": 99}']):
        with pytest.raises(StoreError, match="^line 1: "):
            read(lines)


def test_times_come_back_exactly() -> None:
    lines: list[str] = []
    writer = LogWriter(lines.append, Config(ageing=1 / 3))
    writer.record(0.1 + 0.2, EngineChanged(EngineId("e"), True, ("", "large"), 4))
    config, events = read(lines)
    assert config.ageing == 1 / 3
    assert list(events) == [(0.1 + 0.2, EngineChanged(EngineId("e"), True, ("", "large"), 4))]
