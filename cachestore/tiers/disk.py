"""Records in files: one each, named by its key, in 256 folders.

The names are the index: there is no second truth to disagree with the first. A file is written under another name, synced and renamed, so
a reader, and whoever opens the folder after a crash, sees whole records only; what an interrupted write left is removed at the next
opening. One process owns a folder.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowserve.cachestore.tier import Buffer, Key
from flowserve.errors import StoreError
from flowserve.ids import Bytes

SUFFIX = ".kv"
PARTIAL = ".part"


class DiskTier:
    """The records in one folder, which is made when it is missing."""

    def __init__(self, folder: Path, name: str = "disk") -> None:
        """Raises StoreError where another process has the folder, or where it cannot be used."""
        self.name = name
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"tier '{name}': the folder {folder} cannot be used: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StoreError(
                f"tier '{name}': another process has the folder {folder}: give each server a folder of its own"
            ) from error
        self._sizes = self._found()

    def put(self, key: Key, parts: Sequence[Buffer]) -> None:
        path = self._path(key)
        partial = path.with_name(f"{secrets.token_hex(8)}{PARTIAL}")
        try:
            path.parent.mkdir(exist_ok=True)
            try:
                size = _write(partial, parts)
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            _sync(path.parent)
        except OSError as error:
            raise StoreError(f"tier '{self.name}': writing {path} failed: {error}") from error
        self._sizes[key] = size

    def read(self, key: Key, offset: Bytes, length: Bytes) -> Buffer | None:
        try:
            file = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"tier '{self.name}': reading {self._path(key)} failed: {error}") from error
        try:
            return _read(file, offset, length)
        except OSError as error:
            raise StoreError(f"tier '{self.name}': reading {self._path(key)} failed: {error}") from error
        finally:
            os.close(file)

    def size(self, key: Key) -> Bytes | None:
        return self._sizes.get(key)

    def delete(self, key: Key) -> None:
        self._sizes.pop(key, None)
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"tier '{self.name}': deleting {self._path(key)} failed: {error}") from error

    def keys(self) -> Iterator[tuple[Key, Bytes]]:
        yield from list(self._sizes.items())

    def close(self) -> None:
        """Let another process have the folder."""
        os.close(self._lock)

    def _path(self, key: Key) -> Path:
        name = key.hex()
        return self._folder / name[:2] / f"{name}{SUFFIX}"

    def _found(self) -> dict[Key, Bytes]:
        """What lies there, in the order of the names; what interrupted writes left is removed."""
        sizes: dict[Key, Bytes] = {}
        for path in sorted(self._folder.glob("[0-9a-f][0-9a-f]/*")):
            if path.suffix == PARTIAL:
                path.unlink(missing_ok=True)
                continue
            key = _key(path)
            if key is not None and path == self._path(key):
                sizes[key] = path.stat().st_size
        return sizes


def _key(path: Path) -> Key | None:
    """Of a record's file; None: it is something else."""
    try:
        key = bytes.fromhex(path.stem)
    except ValueError:
        return None
    return key if path.suffix == SUFFIX and len(key) == 32 else None


def _write(path: Path, parts: Sequence[Buffer]) -> Bytes:
    with open(path, "xb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _read(file: int, offset: Bytes, length: Bytes) -> memoryview:
    """So many bytes, fewer where the file ends."""
    data = bytearray(length)
    view, at = memoryview(data), 0
    while at < length:
        count = os.preadv(file, [view[at:]], offset + at)
        if count == 0:
            break
        at += count
    return view[:at]


def _sync(folder: Path) -> None:
    """A rename is only as durable as its folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
