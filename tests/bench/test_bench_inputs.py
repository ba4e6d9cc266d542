"""Inputs of the workflows' comparison: the same by seed, from a folder of anybody's data, in words that are tokens."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from flowserve.bench.random_model import WORDS
from flowserve.bench.workflows import inputs
from flowserve.bench.workflows.inputs import Segment
from flowserve.bench.workflows.shape import scaled
from flowserve.errors import ConfigError

CACHED = (
    inputs._documents,
    inputs._questions,
    inputs._answers,
    inputs._searches,
    inputs._programs,
    inputs._talk_lengths,
    inputs.passages,
)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was read for one folder is not there for the next."""
    monkeypatch.delenv(inputs.FOLDER, raising=False)
    yield
    for read in CACHED:
        read.cache_clear()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small folder of each kind."""
    for kind in ("documents/mine", "math", "reasoning", "rag", "tools", "traces"):
        (tmp_path / kind).mkdir(parents=True)
    (tmp_path / "documents/mine/a.txt").write_text(" ".join(f"w{n}" for n in range(2500)))
    (tmp_path / "math/q.jsonl").write_text('{"question": "What is two and two?"}\n')
    (tmp_path / "rag/q.jsonl").write_text('{"question": "who is it", "passages": ["' + "one two " * 40 + '"]}\n')
    (tmp_path / "reasoning/r.jsonl").write_text(
        "".join(f'{{"dataset": "d", "problem_id": {n // 2}, "final_answer": "{n}"}}\n' for n in range(4))
    )
    segments = [
        {"prompt_tokens": 100, "completion_tokens": 20, "tool_seconds": 1.5, "tool_result_tokens": 7},
        {"prompt_tokens": 127, "completion_tokens": 30, "tool_seconds": None, "tool_result_tokens": None},
    ]
    with gzip.open(tmp_path / "tools/t.jsonl.gz", "wt") as file:
        for program in (segments, segments[1:]):
            file.write(json.dumps({"segments": program}) + "\n")
    (tmp_path / "traces/my_conv.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023,374,44\n")
    monkeypatch.setenv(inputs.FOLDER, str(tmp_path))
    return tmp_path


MAKERS: list[Callable[[Random], object]] = [
    lambda rnd: inputs.chunks(rnd, 1024, (9, 10, 11)),
    lambda rnd: inputs.question(rnd, 400),
    lambda rnd: inputs.search_question(rnd, 256),
    inputs.agent_program,
    inputs.talk_program,
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("recorded", [False, True])
def test_inputs_are_those_of_the_seed(
    make: Callable[[Random], object], recorded: bool, request: pytest.FixtureRequest
) -> None:
    if recorded:
        request.getfixturevalue("data")
    assert make(Random("a")) == make(Random("a"))
    assert len({repr(make(Random(seed))) for seed in range(8)}) > 1


def test_words_are_exchanged_one_for_one_and_always_alike() -> None:
    text = inputs.renamed("the cat and the dog")
    assert len(text.split()) == 5 and set(text.split()) <= set(WORDS)
    assert text.split()[0] == text.split()[3] == inputs.renamed("The")


@pytest.mark.usefixtures("data")
def test_a_document_gives_a_stretch_of_each_of_its_chunks() -> None:
    chunks = inputs.chunks(Random(1), 1024, ())
    assert [len(chunk.split()) for chunk in chunks] == [scaled(1024)] * 2, "2,500 words hold two chunks of 1,024"
    assert chunks != inputs.chunks(Random(2), 1024, ()), "other runs read other stretches"


@pytest.mark.usefixtures("data")
def test_recorded_programs_and_passages_are_read() -> None:
    programs = {inputs.agent_program(Random(seed)) for seed in range(20)}
    assert programs == {(Segment(100, 20, 1.5), Segment(7, 30, 0.0)), (Segment(127, 30, 0.0),)}
    assert set(inputs.talk_program(Random(1))) == {Segment(374, 44, 0.0)}
    assert {tuple(inputs.answers(Random(seed))) for seed in range(20)} == {("0", "1"), ("2", "3")}
    passages = inputs.passages(256, 10)
    assert [len(passage.split()) for passage in passages] == [32, 32, 16]


@pytest.mark.parametrize(
    ("line", "message"), [("{}", "q.jsonl, line 2.*question"), ("no", "q.jsonl, line 2"), ("[1]", "q.jsonl, line 2")]
)
def test_a_line_of_another_form_is_told_with_its_place(data: Path, line: str, message: str) -> None:
    with (data / "math/q.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match=message):
        inputs.question(Random(1), 400)


def test_a_folder_without_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(inputs.FOLDER, str(tmp_path))
    with pytest.raises(ConfigError, match=r"expected documents/\*.txt in"):
        inputs.chunks(Random(1), 1024, ())
    monkeypatch.setenv(inputs.FOLDER, str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="there is none at"):
        inputs.chunks(Random(1), 1024, ())
