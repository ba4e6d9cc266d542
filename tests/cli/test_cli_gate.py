"""`flowserve gate stopping` as a user meets it."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flowserve.cli.gating import classes_of
from flowserve.errors import ConfigError
from flowserve.reasoning.certificates import Absent, Certificate, Certificates, Subject

SUBJECT = Subject("m", "boxed", "set")


def gate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from flowserve.cli import main; main()", "gate", "stopping", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def write_bank(path: Path, said: str, count: int = 400) -> None:
    """Chains that are right in the end, and say `said` surely at a twentieth of the way."""
    base: dict[str, Any] = {"model": "m", "dataset": "set", "seed": 1, "target": "9", "final_answer": "9"}
    base |= {"final_correct": True, "tokens_used": 2000, "trials": [[100, said, 0.99999, 6]]}
    path.write_text("".join(json.dumps(base | {"problem_id": number}) + "\n" for number in range(count)))


def test_a_certificate_is_written_and_a_later_refusal_of_the_rule_revokes_it(tmp_path: Path) -> None:
    bank, out = tmp_path / "bank.jsonl", tmp_path / "certificates"
    write_bank(bank, "9")
    first = gate("--bank", str(bank), "--out", str(out), "--rule", "deer")
    assert first.returncode == 0
    assert "certified" in first.stdout
    assert "m, set: deer, threshold 0.9999, agreeing 1, apart 1, trials 10" in first.stdout
    store, now = Certificates(out), datetime.now(UTC)
    assert isinstance(store.lookup(SUBJECT, now), Certificate)

    write_bank(bank, "7")
    other = gate("--bank", str(bank), "--out", str(out), "--rule", "agree")
    assert other.returncode == 1
    assert isinstance(store.lookup(SUBJECT, now), Certificate)
    second = gate("--bank", str(bank), "--out", str(out), "--rule", "deer")
    assert second.returncode == 1
    assert "REFUSED" in second.stdout
    assert "m, set: refused: deer(threshold=0.9999" in second.stdout
    found = store.lookup(SUBJECT, now)
    assert isinstance(found, Absent)
    assert "was revoked: refused on " in found.reason


def test_json_has_the_figures_of_both_kinds(tmp_path: Path) -> None:
    bank = tmp_path / "bank.jsonl"
    write_bank(bank, "9")
    done = gate("--bank", str(bank), "--out", str(tmp_path / "out"), "--rule", "deer", "--rule", "certaindex", "--json")
    refused, certified = json.loads(done.stdout)
    assert (refused["certified"], refused["rules"], refused["figures"]) == (False, ["certaindex"], None)
    assert refused["reason"].startswith("rule 'certaindex' observes probes, and the bank has none")
    assert (certified["certified"], certified["reason"]) == (True, None)
    assert certified["figures"]["num_problems"] == 400
    assert certified["cross_fit"]["refused_folds"] == 0
    assert Path(certified["file"]).exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rule", "dear"], "no rule 'dear' for chains; known: default"),
        (["--risk", "0"], "margin: expected a share of problems between 0 and 1; got 0.0"),
        (["--confidence", "1"], "error: expected a chance between 0 and 0.5; got 0.0"),
        (["--task", "math"], "--task: expected CLASS=SET"),
        (["--bank", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_is_asked_wrongly_is_told(tmp_path: Path, arguments: list[str], told: str) -> None:
    write_bank(tmp_path / "bank.jsonl", "9", count=2)
    done = gate("--bank", str(tmp_path / "bank.jsonl"), "--out", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert told in done.stderr


def test_an_empty_bank_is_told(tmp_path: Path) -> None:
    (tmp_path / "bank.jsonl").write_text("")
    done = gate("--bank", str(tmp_path / "bank.jsonl"), "--out", str(tmp_path))
    assert done.returncode == 2
    assert "has no trajectories" in done.stderr


def test_sets_are_dealt_into_classes() -> None:
    assert classes_of(["math=math500, amc23", "code=humaneval"]) == {
        "math500": "math",
        "amc23": "math",
        "humaneval": "code",
    }


@pytest.mark.parametrize("wrong", ["math", "=x", "math=", "math=a,,b"])
def test_a_class_without_sets_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="expected CLASS=SET"):
        classes_of([wrong])


def test_a_set_has_one_class() -> None:
    with pytest.raises(ConfigError, match="a is in 'x' and in 'y'"):
        classes_of(["x=a", "y=a"])
