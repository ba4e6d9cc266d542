"""Whole simulations: determinism, replay, the soak, and what workloads give."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flowserve.core.invariants import check
from flowserve.core.log import read, replay
from flowserve.errors import ConfigError, UnknownName
from flowserve.graphs.plan import Plan
from flowserve.sim import soak
from flowserve.sim.drive import Drive
from flowserve.sim.report import percentiles, quantile, table, text
from flowserve.sim.simulate import compare, simulate
from flowserve.sim.workload import Workload, parse_workload

BUSY: dict[str, Any] = {
    "duration_s": 20,
    "engine": {"count": 2, "max_num_seqs": 3, "kv_tokens": 8192},
    "scheduler": {"max_live_runs": 200},
    "services": {"start": 3},
    "chaos": {"call_failure": 0.02, "tool_failure": 0.02, "engine_life_s": 15, "cancelled": 0.05},
    "mix": [
        {"workflow": "rag", "rate": 1.5, "tier": "interactive"},
        {"workflow": "map-reduce", "rate": 0.5, "deadline_s": 30},
        {"workflow": "agent", "rate": 0.5, "sessions": 3},
        {"workflow": "triage", "clients": 2, "think_s": {"median": 1, "sigma": 0.5}},
    ],
}


def nowhere(target: str) -> Plan:
    raise AssertionError(f"nobody asks for {target}")


def load(value: Mapping[str, Any]) -> Workload:
    return parse_workload(value, "test", Path(), nowhere)


def test_equal_seeds_give_equal_figures_and_other_seeds_do_not() -> None:
    figures = [json.dumps(simulate(load(BUSY), seed=seed).figures) for seed in (3, 3, 4)]
    assert figures[0] == figures[1] != figures[2]


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_another_process_with_another_hash_seed_gives_the_same_bytes(tmp_path: Path, hash_seed: str) -> None:
    workload, outs = tmp_path / "busy.json", [tmp_path / "here", tmp_path / "there"]
    workload.write_text(json.dumps(BUSY))
    command = [sys.executable, "-c", "from flowserve.cli import main; main()", "simulate", str(workload), "--seed", "7"]
    for out, seed in zip(outs, ("0", hash_seed), strict=True):
        log = f"{out}.log"
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run(
            [*command, "--json", str(out), "--record", log], env=environment, check=True, capture_output=True
        )
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert Path(f"{outs[0]}.log").read_bytes() == Path(f"{outs[1]}.log").read_bytes()


def test_a_recorded_simulation_replays_to_the_same_commands() -> None:
    workload, lines = load(BUSY), list[str]()
    drive = Drive(
        workload.config(None),
        workload.members(),
        workload.arrivals(5),
        seed=5,
        services=workload.services,
        chaos=workload.chaos,
        log_line=lines.append,
        check=check,
    )
    drive.commands = []
    drive.run()
    assert drive.num_runs > 40 and len(drive.commands) > 1000
    assert [command for out in replay(lines) for command in out] == drive.commands


def test_a_recorded_log_is_a_workload_that_gives_the_same_runs_again(tmp_path: Path) -> None:
    value = {**BUSY, "chaos": {}, "services": {"tool": 0.3, "search": 0.1}, "mix": BUSY["mix"][:3]}
    log = tmp_path / "log.jsonl"
    with log.open("w") as file:
        recorded = simulate(load(value), seed=2, log_line=file.write)
    again = {"duration_s": 1e6, "engine": value["engine"], "services": {"tool": 9, "search": 9}}
    mix = {"trace": str(log), "kind": "log", "name": "again"}
    replayed = simulate(load({**again, "mix": [mix]}))
    assert replayed.figures["all"]["completed"] == recorded.figures["all"]["completed"]
    assert replayed.figures["all"]["calls"] == recorded.figures["all"]["calls"]
    before = sorted(value for values in recorded.latencies.values() for value in values)
    assert sorted(replayed.latencies["again"]) == pytest.approx(before, rel=1e-6)


def test_policies_meet_the_same_work() -> None:
    value = {**BUSY, "chaos": {}, "mix": BUSY["mix"][:1] + BUSY["mix"][2:3], "engine": {"max_num_seqs": 2}}
    first, second = compare(load(value), ["fcfs", "critical_path"], None, 1)
    for name in ("submitted", "completed", "prompt_tokens", "output_tokens"):
        assert first.figures["all"][name] == second.figures["all"][name]
    assert first.figures["all"]["latency_s"] != second.figures["all"]["latency_s"]
    rows = table([first.figures, second.figures])
    assert rows[0] == ["", "fcfs", "critical_path"] and text(rows).count("\n") == len(rows) - 1


def test_placements_meet_the_same_work() -> None:
    value = {**BUSY, "chaos": {}, "mix": BUSY["mix"][:1] + BUSY["mix"][2:3], "engine": {"max_num_seqs": 2, "count": 3}}
    found = [outcome.figures for outcome in compare(load(value), [None], None, 1, ["priced", "round_robin"])]
    for name in ("submitted", "completed", "prompt_tokens", "output_tokens"):
        assert found[0]["all"][name] == found[1]["all"][name]
    assert found[0]["all"]["latency_s"] != found[1]["all"]["latency_s"]
    assert table(found)[0] == ["", "priced", "round_robin"]


def test_an_unknown_placement_names_those_there_are() -> None:
    with pytest.raises(UnknownName, match="priced"):
        simulate(load(BUSY), placement="luck")


def test_a_lone_call_takes_what_its_engine_takes() -> None:
    costs = {"step_s": 0.01, "prefill_s": 0.0001, "decode_s": 0.001, "kv_s": 0.0}
    node = {"shared": 100, "prompt": 100, "output": 11}
    value = {
        "duration_s": 5,
        "engine": {"costs": costs},
        "mix": [{"workflow": "rag", "rate": 0.1, "cv": 0, "nodes": {"answer": node, "search": {"seconds": 0.5}}}],
    }
    assert simulate(load(value)).figures["all"]["submitted"] == 0
    figures = simulate(load({**value, "duration_s": 10})).figures["all"]
    assert figures["latency_s"]["mean"] == pytest.approx(0.5 + 0.01 + 0.02 + 10 * 0.011)


def test_a_client_of_a_closed_loop_has_one_run_at_a_time() -> None:
    value = {"duration_s": 50, "mix": [{"workflow": "rag", "clients": 1, "think_s": 1}]}
    outcome = simulate(load(value))
    latencies = outcome.latencies["rag"]
    assert len(latencies) > 10
    assert sum(latencies) + len(latencies) == pytest.approx(outcome.figures["simulated_s"], abs=2.0)


def test_a_rejected_client_comes_again_when_it_was_told_to() -> None:
    value = {"duration_s": 20, "scheduler": {"max_live_runs": 1}, "mix": [{"workflow": "rag", "clients": 3}]}
    figures = simulate(load(value)).figures["all"]
    assert 0 < figures["rejected"] <= 2 * 20 and figures["completed"] > 10


def test_sessions_find_their_history_in_the_cache() -> None:
    node = {"shared": 64, "prompt": 256, "output": 64, "history": True, "max_history": 100_000}
    mix = {"workflow": "chain", "clients": 1, "nodes": {"draft": node}}
    alone, talk = (
        simulate(load({"duration_s": 30, "mix": [mix | more]})).figures["pool"]["prefix_hit_share"]
        for more in ({}, {"sessions": 1})
    )
    assert talk > alone + 0.3


def test_the_warm_up_counts_for_nothing() -> None:
    value = {**BUSY, "chaos": {}, "mix": BUSY["mix"][:1]}
    whole, later = (simulate(load(value | {"warmup_s": at})).figures["all"]["submitted"] for at in (0, 10))
    assert 0 < later < whole


def test_hundreds_of_random_runs_with_everything_going_wrong_keep_the_invariants() -> None:
    total = soak.soak(runs=400, seed=100)
    assert total["runs"] == 400 and total["completed"] > 150 and total["failed"] > 20


def test_a_case_that_breaks_names_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(state: object) -> None:
        raise AssertionError("a count is wrong")

    monkeypatch.setattr(soak, "check", broken)
    with pytest.raises(soak.Broken, match="case 3 broke: AssertionError: a count is wrong"):
        soak.soak(runs=40, seed=3)


def test_an_unknown_policy_names_those_there_are() -> None:
    with pytest.raises(UnknownName, match="fcfs"):
        simulate(load(BUSY), policy="luck")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mix": []}, "mix"),
        ({"mix": [{"workflow": "rag"}]}, "rate"),
        ({"mix": [{"workflow": "rag", "rate": 1, "clients": 1}]}, "rate"),
        ({"mix": [{"workflow": 5, "rate": 1}]}, "workflow"),
        ({"mix": [{"workflow": "rag", "rate": 1, "nodes": {"nobody": {}}}]}, "nobody"),
        ({"mix": [{"workflow": "rag", "rate": 1, "nodes": {"answer": {"outptu": 3}}}]}, "outptu"),
        ({"mix": [{"workflow": "rag", "rate": 1, "nodes": {"answer": {"output": "long"}}}]}, "output"),
        ({"mix": [{"trace": "none.jsonl", "kind": "mooncake"}]}, "none.jsonl"),
        ({"mix": [{"trace": "none.jsonl", "kind": "other"}]}, "kind"),
        ({"engine": {"costs": "unknown"}}, "costs"),
        ({"engine": {"count": 0}}, "count"),
        ({"services": {"tool": -1}}, "services.tool"),
        ({"chaos": {"call_failure": "often"}}, "call_failure"),
        ({"scheduler": {"nothing": 1}}, "scheduler"),
        ({"color": 1}, "color"),
    ],
)
def test_what_is_wrong_in_a_workload_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        simulate(load({**BUSY, **change}))


def test_a_workload_without_an_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="duration_s"):
        load({"mix": [{"workflow": "rag", "rate": 1.0}]})


def test_a_log_of_a_simulation_carries_its_settings() -> None:
    lines: list[str] = []
    simulate(load({**BUSY, "duration_s": 1}), policy="fcfs", log_line=lines.append)
    config, _ = read(lines)
    assert config.policy == "fcfs" and config.measure


def test_percentiles_are_those_of_the_sorted_values() -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert percentiles([4.0, 1.0, 3.0, 2.0])["mean"] == 2.5
    assert percentiles([]) == {}
