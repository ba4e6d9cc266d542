"""Banks and files of samples: what is read, and what is said of lines that are none."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from flowserve.errors import StoreError
from flowserve.reasoning.bank import RecordedProbe, RecordedTrial, read_bank
from flowserve.reasoning.samples_file import Sampled, read_samples

LINE: dict[str, Any] = {
    "model": "m", "dataset": "math500", "problem_id": 7, "seed": 42, "target": "9", "final_answer": "9",
    "final_correct": True, "tokens_used": 300, "finished_naturally": False,
    "probes": [[64, "4", True, 5], [128, "", False, 32]], "trials": [[90, "9", 1, 6], [170, "9", 0.5, 20, False]],
}  # fmt: skip


def written(path: Path, *lines: object) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["bank.jsonl", "bank.jsonl.gz"])
def test_a_bank_is_read_packed_or_not(tmp_path: Path, name: str) -> None:
    one, two = read_bank(written(tmp_path / name, LINE, "", LINE | {"seed": 43}))
    assert (one.problem, one.tokens, one.finished, one.seed, two.seed) == ("7", 300, False, 42, 43)
    assert one.probes == (RecordedProbe(64, "4", True, 5), RecordedProbe(128, "", False, 32))
    assert one.trials == (RecordedTrial(90, "9", 1.0, 6), RecordedTrial(170, "9", 0.5, 20, closed=False))


def test_what_was_not_recorded_is_told_from_what_found_no_place(tmp_path: Path) -> None:
    line = {name: value for name, value in LINE.items() if name not in ("probes", "finished_naturally")}
    (one,) = read_bank(written(tmp_path / "bank.jsonl", line | {"trials": [], "target": 27.0}))
    assert (one.probes, one.trials, one.finished, one.target) == (None, (), True, "27.0")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: Expecting property name"),
        ("[1]", r"line 2: expected a JSON object; got \[1\]"),
        ({"model": "m"}, r"line 2: expected a field 'dataset' \(str\); there is none"),
        (LINE | {"seed": True}, "line 2: 'seed': expected int; got true"),
        (LINE | {"tokens_used": 0}, "line 2: 'tokens_used': expected 1 or more; got 0"),
        (LINE | {"probes": [[64, "4", 1, 5]]}, r"'probes'\[0\]: expected \[position, answer, certain, cost\].*got \[64"),
        (LINE | {"trials": [[64, "4", 1.5, 5]]}, r"'trials'\[0\]: expected .*0 to 1"),
        (LINE | {"trials": [[64, "4", 0.5, 5], [64, "4", 0.5, 5]]}, r"'trials'\[1\]: expected a position after 64; got 64"),
    ],
)  # fmt: skip
def test_what_is_no_trajectory_is_told_with_its_line(tmp_path: Path, line: object, said: str) -> None:
    path = written(tmp_path / "bank.jsonl", LINE, line)
    with pytest.raises(StoreError, match=rf"bank\.jsonl, {said}" if said.startswith("line") else said):
        list(read_bank(path))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.jsonl: expected a file of JSON lines"):
        list(read_bank(tmp_path / "none.jsonl"))
    cut = written(tmp_path / "cut.jsonl.gz", LINE)
    cut.write_bytes(cut.read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"cut\.jsonl\.gz: expected a file of JSON lines"):
        list(read_bank(cut))


def test_samples_are_taken_as_written_and_null_is_unusable(tmp_path: Path) -> None:
    path = written(tmp_path / "samples.jsonl", {"target": 5, "answers": ["5", 7, None]})
    assert list(read_samples(path)) == [Sampled("5", ("5", "7", ""))]
    with pytest.raises(StoreError, match=r"line 1: 'answers': expected one or more; got none"):
        list(read_samples(written(path, {"target": "5", "answers": []})))
    with pytest.raises(StoreError, match=r"line 1: 'answers'\[1\]: expected a string, a number or null; got list"):
        list(read_samples(written(path, {"target": "5", "answers": ["5", ["7"]]})))
