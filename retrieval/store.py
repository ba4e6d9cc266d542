"""An index on disk: whole generations, of which a manifest names the one that counts.

    <folder>/<index>/
        LOCK                    held by the one writer (flock)
        MANIFEST.json           generation, embedder, dimension, counts, and size and SHA-256 of each file below
        gen-00000007/           written once, never changed
            vectors.f32         float32, little-endian, (passages, dimension)
            passages.jsonl      one line per row of the vectors
            documents.jsonl     id and digest

A commit writes and syncs a new generation beside the old one and then renames the manifest over the old one: whoever is
killed at any moment leaves either the old or the new generation. Readers check size and digest before they look at a
byte, and the FAISS index is built from the vectors when an index is opened; FAISS's own files would have to be trusted
with their sizes, and building a flat index is one copy. A commit costs time in proportion to the whole index.

Checksums find accidents, not forgers: whoever may write to the folder may write what they like.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from flowserve.errors import InputError, StoreError
from flowserve.ids import Bytes
from flowserve.retrieval.documents import Passage
from flowserve.retrieval.snapshot import Snapshot
from flowserve.retrieval.spec import EXACT, parse
from flowserve.retrieval.structure import pack, unpack

FORMAT = "flowserve-index"
VERSIONS = {False: 1, True: 2}
"""By whether the index is of another kind than `exact`: one that is not stays readable by what was written before kinds."""
MANIFEST = "MANIFEST.json"
NEW_MANIFEST = "MANIFEST.json.new"
LOCK = "LOCK"
VECTORS, PASSAGES, DOCUMENTS = FILES = ("vectors.f32", "passages.jsonl", "documents.jsonl")
STRUCTURE = "structure.bin"
MAX_MANIFEST_BYTES: Bytes = 1 << 16
CHUNK_BYTES: Bytes = 1 << 20
PASSAGE_FIELDS = tuple(field.name for field in fields(Passage))
GENERATION = re.compile(r"gen-\d{8,}")

Step = Callable[[str], None]
"""Called with the name of each I/O step just before it; tests kill the process or raise OSError there."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file of a generation must be."""

    bytes: Bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known about an index without opening it."""

    generation: int
    embedder: str
    dimension: int
    documents: int
    passages: int
    files: dict[str, FileRecord]
    kind: str = str(EXACT)
    """An `IndexSpec` in words. Only an index of another kind than `exact` has it on disk, and has a structure."""

    @property
    def folder(self) -> str:
        return f"gen-{self.generation:08d}"


class IndexStore:
    """One index's folder. Any number of readers; writers take turns by `writing`."""

    def __init__(self, folder: Path, step: Step = lambda name: None) -> None:
        self._folder = folder
        self._step = step

    def __repr__(self) -> str:
        return f"IndexStore({str(self._folder)!r})"

    def signature(self) -> bytes | None:
        """The manifest's bytes: equal as long as nothing was committed. None: there is no such index.

        Raises StoreError.
        """
        path = self._folder / MANIFEST
        try:
            return _read(path, MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, _WrongSize) as error:
            raise self._untrusted(path, str(error)) from error

    def exists(self) -> bool:
        """Whether something was committed here, trustworthy or not."""
        return os.path.lexists(self._folder / MANIFEST)

    def manifest(self) -> Manifest | None:
        """What the committed generation is. None: there is no such index. Raises StoreError."""
        data = self.signature()
        return None if data is None else self._parse_manifest(data)

    def read(self) -> tuple[bytes, Snapshot] | None:
        """The committed generation and the signature it was found under. None: there is no such index.

        Raises StoreError for anything that is not exactly what was written.
        """
        before: bytes | None = None
        while (data := self.signature()) is not None:
            manifest = self._parse_manifest(data)
            try:
                return data, self._read_generation(manifest)
            except FileNotFoundError as error:
                if data == before:  # not a writer that has cleaned up under us
                    raise self._untrusted(Path(str(error.filename)), "the file is missing") from error
                before = data
        return None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer, of all processes. Creates the folder. Raises StoreError if somebody else is."""
        with self._translated("locked"):
            _make_folder(self._folder)
            descriptor = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"index '{self._folder.name}' is being written by another process (it holds '{LOCK}' in "
                    f"'{self._folder}'); try again when it is done"
                ) from None
            yield
        finally:
            os.close(descriptor)  # which unlocks; so does the end of the process

    def commit(self, snapshot: Snapshot) -> bytes:
        """Make `snapshot` what readers find; durable when this returns its signature. Call it inside `writing`.

        `snapshot.generation` must be one more than the committed one. Raises StoreError; then the old generation
        stands, except that after a failed sync of the folder itself either of the two may be found.
        """
        old = self.manifest()
        committed = 0 if old is None else old.generation
        assert snapshot.generation == committed + 1, (snapshot.generation, committed)
        self._refuse_orphans(old)
        target = self._folder / f"gen-{snapshot.generation:08d}"
        published = False
        try:
            with self._translated("written"):
                self._clean(keep=old)
                os.mkdir(target, 0o700)
                files = {name: self._write(target / name, chunks) for name, chunks in _encode(snapshot)}
                self._sync_folder(target)
                self._sync_folder(self._folder)
                manifest = Manifest(
                    snapshot.generation,
                    snapshot.embedder,
                    snapshot.dimension,
                    len(snapshot.documents),
                    len(snapshot.passages),
                    files,
                    str(snapshot.spec),
                )
                data = _encode_manifest(manifest)
                with suppress(FileNotFoundError):
                    os.unlink(self._folder / NEW_MANIFEST)
                self._write(self._folder / NEW_MANIFEST, [data])
                self._step("rename manifest")
                os.rename(self._folder / NEW_MANIFEST, self._folder / MANIFEST)
                published = True
            with self._translated("made durable, though it is written: a power cut may bring back the old state"):
                self._sync_folder(self._folder)
        except StoreError:
            if not published:
                shutil.rmtree(target, ignore_errors=True)
            raise
        with suppress(OSError):  # the commit stands; the next writer cleans what is left
            self._step("clean")
            self._clean(keep=manifest)
        return data

    def _read_generation(self, manifest: Manifest) -> Snapshot:
        folder = self._folder / manifest.folder
        raw = {name: self._read_checked(folder / name, manifest.files[name]) for name in _files_of(manifest.kind)}
        try:
            vectors = np.frombuffer(raw[VECTORS], "<f4").astype(np.float32, copy=False)
            vectors = vectors.reshape(manifest.passages, manifest.dimension)
            passages = tuple(Passage(**json.loads(line)) for line in raw[PASSAGES].splitlines())
            documents = {str(name): str(digest) for name, digest in map(json.loads, raw[DOCUMENTS].splitlines())}
            spec = parse(manifest.kind)
            structure = unpack(raw[STRUCTURE]) if STRUCTURE in raw else {}
        except (ValueError, TypeError, InputError) as error:
            raise self._untrusted(folder, f"its contents are not of this format ({error})") from error
        if (len(passages), len(documents)) != (manifest.passages, manifest.documents):
            raise self._untrusted(
                folder,
                f"expected {manifest.passages} passages of {manifest.documents} documents, "
                f"found {len(passages)} of {len(documents)}",
            )
        facts = (manifest.generation, manifest.embedder, manifest.dimension)
        return Snapshot(*facts, passages, vectors, documents, spec, structure)

    def _read_checked(self, path: Path, record: FileRecord) -> bytes:
        try:
            data = _read(path, record.bytes)
        except FileNotFoundError:
            raise
        except (OSError, _WrongSize) as error:
            raise self._untrusted(path, f"{error}; expected {record.bytes} bytes") from error
        if len(data) != record.bytes:
            raise self._untrusted(path, f"it has {len(data)} bytes where {record.bytes} were written")
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise self._untrusted(path, "its checksum differs from what was written")
        return data

    def _parse_manifest(self, data: bytes) -> Manifest:
        path = self._folder / MANIFEST
        try:
            outer = json.loads(data)
            if not isinstance(outer, dict) or outer.get("format") != FORMAT:
                raise self._untrusted(path, f"it is not a manifest of format '{FORMAT}'")
            if outer.get("version") not in VERSIONS.values():
                raise StoreError(
                    f"'{path}' has version {outer.get('version')!r}, this FlowServe reads {max(VERSIONS.values())}: use the FlowServe "
                    "that wrote it, or delete the folder and ingest again"
                )
            body = outer["index"]
            if outer["sha256"] != _manifest_digest(body):
                raise self._untrusted(path, "its checksum does not fit its contents")
            names = _files_of(body.get("kind", str(EXACT)))
            files = {name: FileRecord(**body["files"][name]) for name in names}
            manifest = Manifest(**{**body, "files": files})
            if _encode_manifest(manifest) != data:
                raise self._untrusted(path, "it is not in the form in which it was written")
            return manifest
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._untrusted(path, f"it cannot be read as a manifest ({type(error).__name__}: {error})") from error

    def _refuse_orphans(self, old: Manifest | None) -> None:
        """A first commit that was killed leaves generation 1 at most; more without a manifest is somebody's data."""
        if old is None:
            orphans = [name for name in self._generations() if name != "gen-00000001"]
            if orphans:
                raise self._untrusted(self._folder / MANIFEST, f"it is missing, but there is data in '{orphans[-1]}'")

    def _generations(self) -> list[str]:
        return sorted(name for name in os.listdir(self._folder) if GENERATION.fullmatch(name))

    def _clean(self, keep: Manifest | None) -> None:
        """Remove every generation but the committed one: older ones, and those of writers that were killed."""
        for name in self._generations():
            if keep is None or name != keep.folder:
                shutil.rmtree(self._folder / name)

    def _write(self, path: Path, chunks: Iterable[bytes]) -> FileRecord:
        digest, size = hashlib.sha256(), 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0) as file:
            for chunk in _resized(chunks):
                self._step(f"write {path.name}")
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view) :]
                digest.update(chunk)
                size += len(chunk)
            self._step(f"sync {path.name}")
            os.fsync(file.fileno())
        return FileRecord(size, digest.hexdigest())

    def _sync_folder(self, folder: Path) -> None:
        self._step(f"sync folder {'generation' if GENERATION.fullmatch(folder.name) else 'index'}")
        _sync_folder(folder)

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"index '{self._folder.name}' could not be {what} ('{self._folder}': {error.strerror or error}). "
                "Check the disk, its free space and the permissions"
            ) from error

    def _untrusted(self, path: Path, why: str) -> StoreError:
        return StoreError(
            f"'{path}' cannot be trusted: {why}. Restore '{self._folder}' from a backup, or delete that folder and "
            "ingest the documents again"
        )


class _WrongSize(Exception):
    """A file is larger than it may be, or is no regular file."""


def _read(path: Path, most: Bytes) -> bytes:
    """A regular file of at most `most` bytes, not through a link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _WrongSize("it is not a regular file")
        if status.st_size > most:
            raise _WrongSize(f"it has {status.st_size} bytes")
        return file.read(most)


def _encode(snapshot: Snapshot) -> Iterator[tuple[str, Iterable[bytes]]]:
    vectors = np.ascontiguousarray(snapshot.vectors, "<f4")
    assert vectors.shape == (len(snapshot.passages), snapshot.dimension), vectors.shape
    yield VECTORS, [vectors.tobytes()]
    yield PASSAGES, (_line({name: getattr(passage, name) for name in PASSAGE_FIELDS}) for passage in snapshot.passages)
    yield DOCUMENTS, (_line(item) for item in sorted(snapshot.documents.items()))
    if snapshot.spec != EXACT:
        yield STRUCTURE, pack(snapshot.structure)


def _files_of(kind: str) -> tuple[str, ...]:
    return FILES if kind == str(EXACT) else (*FILES, STRUCTURE)


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"  # ASCII: no line ends inside


def _resized(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of about CHUNK_BYTES."""
    gathered = bytearray()
    for chunk in chunks:
        if len(chunk) > CHUNK_BYTES:
            if gathered:
                yield bytes(gathered)
                gathered.clear()
            for start in range(0, len(chunk), CHUNK_BYTES):
                yield chunk[start : start + CHUNK_BYTES]
            continue
        gathered += chunk
        if len(gathered) >= CHUNK_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _encode_manifest(manifest: Manifest) -> bytes:
    body = asdict(manifest)
    if not (other := manifest.kind != str(EXACT)):
        del body["kind"]
    outer = {"format": FORMAT, "version": VERSIONS[other], "index": body, "sha256": _manifest_digest(body)}
    return json.dumps(outer, indent=2).encode() + b"\n"


def _manifest_digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _make_folder(folder: Path) -> None:
    """Create `folder` durably, with its parents. Refuses a link in its place."""
    if folder.is_symlink():
        raise NotADirectoryError(None, "it is a symbolic link, which an index may not be", str(folder))
    if folder.is_dir():
        return
    missing = [folder]
    while not missing[-1].parent.is_dir():
        missing.append(missing[-1].parent)
    for path in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
