import fcntl
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowserve.errors import StoreError
from flowserve.retrieval.documents import Passage
from flowserve.retrieval.snapshot import Snapshot, empty
from flowserve.retrieval.spec import parse
from flowserve.retrieval.store import IndexStore
from flowserve.retrieval.structure import unpack


def snapshot(generation: int, number: int = 3, dimension: int = 4) -> Snapshot:
    """A whole generation that can be told from every other."""
    passages = tuple(
        Passage(f"d{i}#0", f"d{i}", f"text {generation} \u2028 \ud800 {i}", 0, 9, {"g": str(generation)})
        for i in range(number)
    )
    vectors = np.full((number, dimension), generation, np.float32) + np.arange(number, dtype=np.float32)[:, None]
    return Snapshot(
        generation, "hash-4", dimension, passages, vectors, {f"d{i}": f"{generation:064}" for i in range(number)}
    )


def same(ours: Snapshot, other: Snapshot) -> bool:
    facts = [(s.generation, s.embedder, s.dimension, s.passages, dict(s.documents)) for s in (ours, other)]
    return facts[0] == facts[1] and np.array_equal(ours.vectors, other.vectors)


def commit(folder: Path, *generations: int, **settings: int) -> IndexStore:
    store = IndexStore(folder)
    with store.writing():
        for generation in generations:
            store.commit(snapshot(generation, **settings))
    return store


def contents(store: IndexStore) -> Snapshot:
    found = store.read()
    assert found is not None
    return found[1]


def test_what_is_committed_is_read_back_and_old_generations_are_gone(tmp_path: Path) -> None:
    store = commit(tmp_path / "x", 1, 2, 3)
    assert same(contents(IndexStore(tmp_path / "x")), snapshot(3))
    assert sorted(os.listdir(tmp_path / "x")) == ["LOCK", "MANIFEST.json", "gen-00000003"]
    manifest = store.manifest()
    assert manifest is not None and (manifest.generation, manifest.documents, manifest.passages) == (3, 3, 3)


def test_folders_and_files_are_private_to_their_owner(tmp_path: Path) -> None:
    commit(tmp_path / "x", 1)
    for path in [tmp_path / "x", *(tmp_path / "x").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_an_index_without_documents_survives(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "deep" / "er" / "x")
    assert store.read() is None and store.manifest() is None and not store.exists()
    with store.writing():
        store.commit(Snapshot(1, "hash-4", 4, (), np.zeros((0, 4), np.float32), {}))
    assert len(contents(store).passages) == 0
    assert contents(store).vectors.shape == (0, 4)


def of_kind(snapshot: Snapshot, kind: str, **arrays: NDArray[Any]) -> Snapshot:
    return replace(snapshot, spec=parse(kind), structure=arrays)


def test_an_exact_index_is_written_as_before_there_were_kinds(tmp_path: Path) -> None:
    commit(tmp_path / "x", 1)
    manifest = json.loads((tmp_path / "x" / "MANIFEST.json").read_text())
    assert manifest["version"] == 1 and "kind" not in manifest["index"]


def test_the_kind_and_what_it_built_are_read_back(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "x")
    built = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((0, 5), np.uint8), "c": np.array([-1])}
    with store.writing():
        store.commit(of_kind(snapshot(1), "ivf:nprobe=3", **built))
    found, manifest = contents(store), store.manifest()
    assert manifest is not None and manifest.kind == str(found.spec) == "ivf:clusters=0,nprobe=3"
    assert {name: (array.dtype, array.tolist()) for name, array in found.structure.items()} == {
        name: (array.dtype, array.tolist()) for name, array in built.items()
    }


@pytest.mark.parametrize(
    "data",
    [b"", b"no line", b"[]\n", b'{"a": ["<f4", [2]]}\n1234', b'{"a": ["<f4", [1]]}\n12345']
    + [b'{"a": ["|O", [1]]}\n12345678', b'{"a": ["<f4", [-1]]}\n', b'{"a": ["<f4", ["1"]]}\n1234', b'{"a": 1}\n'],
)
def test_arrays_that_do_not_fit_their_description_are_refused(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        unpack(data)


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_flipped_bit_anywhere_is_an_error_that_names_the_place(tmp_path: Path, kind: str) -> None:
    store = IndexStore(tmp_path / "x")
    with store.writing():
        store.commit(of_kind(snapshot(1, 1), kind, **({} if kind == "exact" else {"a": np.zeros(2, np.int64)})))
    for path in sorted((tmp_path / "x").rglob("*.*")):
        whole = path.read_bytes()
        for at, byte in enumerate(whole):
            path.write_bytes(whole[:at] + bytes([byte ^ (1 << at % 8)]) + whole[at + 1 :])
            with pytest.raises(StoreError) as caught:
                store.read()
            assert str(path) in str(caught.value)
        path.write_bytes(whole)
    assert same(contents(store), snapshot(1, number=1))


def test_truncated_lengthened_emptied_and_missing_files_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    store = commit(tmp_path / "x", 1)
    for path in sorted((tmp_path / "x").rglob("*.*")):
        whole = path.read_bytes()
        for broken in (whole[:-1], whole[: len(whole) // 2], whole + b"x", b"", b"\0" * len(whole)):
            path.write_bytes(broken)
            with pytest.raises(StoreError, match=rf"{path.name}' cannot be trusted: .*delete that folder and ingest"):
                store.read()
        if path.name != "MANIFEST.json":
            path.unlink()
            with pytest.raises(StoreError, match=rf"{path.name}' cannot be trusted: the file is missing"):
                store.read()
        path.write_bytes(whole)


def test_swapped_files_are_noticed(tmp_path: Path) -> None:
    store = commit(tmp_path / "x", 1)
    commit(tmp_path / "y", 1, 2)
    for name in ("vectors.f32", "passages.jsonl", "documents.jsonl"):
        mine, other = tmp_path / "x/gen-00000001" / name, tmp_path / "y/gen-00000002" / name
        whole = mine.read_bytes()
        mine.write_bytes(other.read_bytes())
        with pytest.raises(StoreError, match=rf"{name}' cannot be trusted: its checksum"):
            store.read()
        mine.write_bytes(whole)


@pytest.mark.parametrize(
    "manifest, message",
    [
        (b"[]", "not a manifest"),
        (b'{"format": "other"}', "not a manifest"),
        (b"\xff\xfe", "cannot be read as a manifest"),
        (b"[" * 60_000, "cannot be read as a manifest"),
        (b" " * 70_000, "70000 bytes"),
        (b'{"format": "flowserve-index", "version": 3}', "use the FlowServe that wrote it"),
        (b'{"format": "flowserve-index", "version": 1}', "cannot be read as a manifest"),
        (b'{"format": "flowserve-index", "version": 2}', "cannot be read as a manifest"),
    ],
)
def test_foreign_manifests_are_clear_errors(tmp_path: Path, manifest: bytes, message: str) -> None:
    store = commit(tmp_path / "x", 1)
    (tmp_path / "x" / "MANIFEST.json").write_bytes(manifest)
    with pytest.raises(StoreError, match=message):
        store.read()
    with pytest.raises(StoreError, match=message), store.writing():
        store.commit(snapshot(2))


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    store = commit(tmp_path / "x", 1)
    for path in (tmp_path / "x/gen-00000001/vectors.f32", tmp_path / "x/MANIFEST.json"):
        path.rename(tmp_path / "real")
        if kind == "link":
            path.symlink_to(tmp_path / "real")
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
        with pytest.raises(StoreError, match="cannot be trusted"):
            store.read()
        path.rmdir() if kind == "folder" else path.unlink()
        (tmp_path / "real").rename(path)


def test_data_without_a_manifest_is_not_overwritten(tmp_path: Path) -> None:
    store = commit(tmp_path / "x", 1, 2)
    (tmp_path / "x" / "MANIFEST.json").unlink()
    with pytest.raises(StoreError, match=r"missing, but there is data in 'gen-00000002'"), store.writing():
        store.commit(snapshot(1))
    assert (tmp_path / "x" / "gen-00000002" / "vectors.f32").exists()


def test_a_linked_index_folder_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x").symlink_to("elsewhere")
    with pytest.raises(StoreError, match="symbolic link"), IndexStore(tmp_path / "x").writing():
        pass


def test_a_second_writer_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    store = commit(tmp_path / "x", 1)
    program = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "x" / "LOCK")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(StoreError, match="being written by another process"), store.writing():
            pass
        assert same(contents(store), snapshot(1))
        other.communicate(b"\n")
    with store.writing():
        store.commit(snapshot(2))


def steps_of_a_commit(folder: Path) -> list[str]:
    steps: list[str] = []
    commit(folder, 1)
    store = IndexStore(folder, steps.append)
    with store.writing():
        store.commit(snapshot(2))
    return steps


def test_a_commit_syncs_everything_before_it_renames_the_manifest(tmp_path: Path) -> None:
    assert steps_of_a_commit(tmp_path / "x") == [
        "write vectors.f32",
        "sync vectors.f32",
        "write passages.jsonl",
        "sync passages.jsonl",
        "write documents.jsonl",
        "sync documents.jsonl",
        "sync folder generation",
        "sync folder index",
        "write MANIFEST.json.new",
        "sync MANIFEST.json.new",
        "rename manifest",
        "sync folder index",
        "clean",
    ]


def test_whichever_step_fails_a_whole_generation_remains_and_the_next_commit_works(tmp_path: Path) -> None:
    for number, failing in enumerate(steps_of_a_commit(tmp_path / "count")):
        folder = tmp_path / str(number)
        commit(folder, 1)
        seen = 0

        def fail(step: str, number: int = number) -> None:
            nonlocal seen
            seen += 1
            if seen == number + 1:
                raise OSError(28, "No space left on device")

        store = IndexStore(folder, fail)
        if failing == "clean":  # the commit stands already
            with store.writing():
                store.commit(snapshot(2))
        else:
            with pytest.raises(StoreError, match="No space left on device"), store.writing():
                store.commit(snapshot(2))
        published = number > 10
        assert same(contents(IndexStore(folder)), snapshot(2 if published else 1)), failing
        last = 3 if published else 2
        commit(folder, last)
        assert same(contents(IndexStore(folder)), snapshot(last))
        assert sorted(os.listdir(folder)) == ["LOCK", "MANIFEST.json", f"gen-{last:08d}"], failing


def test_readers_see_whole_generations_while_a_writer_commits(tmp_path: Path) -> None:
    store = commit(tmp_path / "x", 1)
    done = threading.Event()

    def watch() -> list[int]:
        seen: list[int] = []
        while not done.is_set():
            found = contents(store)
            assert same(found, snapshot(found.generation))
            seen.append(found.generation)
        return seen

    with ThreadPoolExecutor(2) as readers:
        watching = [readers.submit(watch) for _ in range(2)]
        try:
            commit(tmp_path / "x", *range(2, 30))
        finally:
            done.set()
        for seen in (reader.result() for reader in watching):
            assert seen == sorted(seen) and len(set(seen)) > 1


def test_the_signature_changes_with_every_commit_only(tmp_path: Path) -> None:
    store = commit(tmp_path / "x", 1)
    first = store.signature()
    assert store.signature() == first == (store.read() or [None])[0]
    assert commit(tmp_path / "x", 2).signature() != first


def test_a_manifest_is_readable_by_people(tmp_path: Path) -> None:
    commit(tmp_path / "x", 1)
    manifest = json.loads((tmp_path / "x" / "MANIFEST.json").read_text())
    assert manifest["index"]["embedder"] == "hash-4" and manifest["index"]["passages"] == 3


def test_the_lock_is_released_when_writing_fails(tmp_path: Path) -> None:
    store = commit(tmp_path / "x", 1)
    with pytest.raises(ZeroDivisionError), store.writing():
        raise ZeroDivisionError
    with (tmp_path / "x" / "LOCK").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_generation_zero_is_nothing() -> None:
    assert same(empty("hash-4", 4), Snapshot(0, "hash-4", 4, (), np.zeros((0, 4), np.float32), {}))
