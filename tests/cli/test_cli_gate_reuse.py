"""`flowserve gate reuse` as a user meets it."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flowserve.bench.reuse.quality import Case, Measured, write_cases
from flowserve.cachestore.gatefiles import Absent, Gates
from flowserve.cachestore.gates import Gate, Subject
from flowserve.cachestore.policies import Policy

SAME = Case(1.0, 1.0, 1.0, 1.0, 0.01, True)
LOST = Case(1.0, 0.0, 1.0, 0.0, 4.0, False)
SUBJECT = Subject("f" * 64, "main", Policy("first_k"), "raw16")


def gate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from flowserve.cli import main; main()", "gate", "reuse", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def measured(path: Path, cases: list[Case], policy: str = "first_k") -> str:
    subject = Subject(SUBJECT.model, SUBJECT.revision, Policy(policy), SUBJECT.codec)
    write_cases(path, Measured(subject, "org/m", "musique", "0" * 64, {"torch": "2.9"}), cases)
    return str(path)


def test_a_gate_opens_and_a_later_refusal_shuts_it(tmp_path: Path) -> None:
    out = tmp_path / "gates"
    good = measured(tmp_path / "good.jsonl", [SAME] * 300)
    first = gate("--cases", good, "--out", str(out))
    assert first.returncode == 0, first.stderr
    assert "passed" in first.stdout
    store, now = Gates(out), datetime.now(UTC)
    found = store.lookup(SUBJECT, now)
    assert isinstance(found, Gate)
    assert (found.figures.n, found.figures.loss, found.dataset, found.versions) == (
        300,
        0.0,
        "musique",
        {"torch": "2.9"},
    )

    bad = measured(tmp_path / "bad.jsonl", [SAME] * 270 + [LOST] * 30)
    second = gate("--cases", bad, "--out", str(out))
    assert second.returncode == 1
    assert "org/m, first_k:k=16: refused: loss of f1: 0.1000 in 300 cases" in second.stdout
    shut = store.lookup(SUBJECT, now)
    assert isinstance(shut, Absent)
    assert "was revoked: refused on " in shut.reason


def test_what_never_passed_leaves_no_file_and_others_pass_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "gates"
    paths = [
        measured(tmp_path / "few.jsonl", [SAME] * 20),
        measured(tmp_path / "good.jsonl", [SAME] * 300, "hkvd"),
    ]
    done = gate("--cases", paths[0], "--cases", paths[1], "--out", str(out), "--json")
    assert done.returncode == 0
    refused, passed = json.loads(done.stdout)
    assert (refused["passed"], refused["file"]) == (False, None)
    assert refused["reason"].endswith("allowed is 0.02; more cases would tell")
    assert passed["policy"] == "hkvd:ratio=0.15,check_layer=1,metric=v_l2"
    assert [str(file) for file in out.iterdir()] == [passed["file"]]


def test_other_limits_are_other_gates(tmp_path: Path) -> None:
    bad = measured(tmp_path / "bad.jsonl", [SAME] * 270 + [LOST] * 30)
    limits = ("--loss", "0.2", "--far", "0.2", "--differing", "0.2")
    assert gate("--cases", bad, "--out", str(tmp_path / "gates"), *limits).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--loss", "0"], "gate loss: expected a share between 0 and 1, got 0.0"),
        (["--confidence", "0.3"], "gate error: expected a chance between 0 and 0.5; got 0.7"),
        (["--score", "bleu"], "score: expected f1 or exact, got 'bleu'"),
        (["--cases", "nowhere.jsonl"], "nowhere.jsonl: expected a file of measured cases"),
    ],
)
def test_what_is_asked_wrongly_is_told(tmp_path: Path, arguments: list[str], told: str) -> None:
    cases = measured(tmp_path / "cases.jsonl", [SAME])
    done = gate("--cases", cases, "--out", str(tmp_path / "gates"), *arguments)
    assert done.returncode == 2
    assert told in done.stderr
