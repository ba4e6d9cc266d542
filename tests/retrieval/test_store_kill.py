"""A writer is killed with SIGKILL; whoever opens the index finds the old or the new generation, whole."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flowserve.retrieval.snapshot import empty
from flowserve.retrieval.store import IndexStore

WRITER = """
import os, signal, sys
import numpy as np
from flowserve.retrieval.documents import Passage
from flowserve.retrieval.snapshot import Snapshot
from flowserve.retrieval.store import IndexStore
from pathlib import Path

folder, fatal, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
seen = 0

def step(name):
    global seen
    seen += name == fatal.rsplit(":")[0]
    if ":" in fatal and name == fatal.split(":")[0] and seen == int(fatal.split(":")[1]):
        os.kill(os.getpid(), signal.SIGKILL)

def snapshot(generation):
    passages = tuple(Passage(f"d{i}#0", f"d{i}", f"{generation} " * 50, 0, 1) for i in range(number))
    vectors = np.full((number, 64), generation, np.float32)
    return Snapshot(generation, "hash-64", 64, passages, vectors, {f"d{i}": str(generation) for i in range(number)})

store = IndexStore(folder, step)
with store.writing():
    manifest = store.manifest()
    generation = manifest.generation if manifest else 0
    print("ready", flush=True)
    while generation < int(sys.argv[4]):
        generation += 1
        store.commit(snapshot(generation))
        print(generation, flush=True)
"""


def writer(folder: Path, fatal: str = "never", number: int = 40, until: int = 10**9) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(folder), fatal, str(number), str(until)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def whole_generation(folder: Path) -> int:
    """The generation found, after a look at every part of it. 0: there is none."""
    found = IndexStore(folder).read()
    if found is None:
        return 0
    generation = found[1].generation
    assert len(found[1].passages) == len(found[1].vectors) > 0
    assert {passage.text for passage in found[1].passages} == {f"{generation} " * 50}
    assert (found[1].vectors == generation).all()
    assert set(found[1].documents.values()) == {str(generation)}
    return generation


@pytest.mark.parametrize(
    "fatal, expected",
    [
        # the number counts over two commits: generation 1 uses up its own steps first
        ("write vectors.f32:1", 0),
        ("sync documents.jsonl:1", 0),
        ("rename manifest:1", 0),
        ("clean:1", 1),
        ("write vectors.f32:2", 1),
        ("sync vectors.f32:2", 1),
        ("write passages.jsonl:2", 1),
        ("sync folder generation:2", 1),
        ("write MANIFEST.json.new:2", 1),
        ("sync MANIFEST.json.new:2", 1),
        ("rename manifest:2", 1),
        ("sync folder index:4", 2),
        ("clean:2", 2),
    ],
)
def test_killed_at_a_named_step_it_leaves_a_whole_generation(tmp_path: Path, fatal: str, expected: int) -> None:
    folder = tmp_path / "x"
    with writer(folder, fatal, until=2) as process:
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert whole_generation(folder) == expected
    store = IndexStore(folder)
    with store.writing():  # the lock went with the process
        store.commit(replace(empty("hash-64", 64), generation=expected + 1))
    found = store.read()
    assert found is not None and found[1].generation == expected + 1
    assert sorted(os.listdir(folder)) == ["LOCK", "MANIFEST.json", f"gen-{expected + 1:08d}"]


def test_killed_at_random_times_it_leaves_what_it_announced_or_the_next_generation(tmp_path: Path) -> None:
    folder, rng, reached = tmp_path / "x", random.Random(7), 0
    for _ in range(8):
        with writer(folder, number=400) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            announced = [int(process.stdout.readline()) for _ in range(rng.randint(0, 2))]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=rng.uniform(0, 0.03))
            process.kill()
            announced += [int(line) for line in process.stdout]
        last = announced[-1] if announced else reached
        reached = whole_generation(folder)
        assert reached in (last, last + 1)
