"""Records in the memory of this process."""

import threading
from collections.abc import Iterator, Sequence

from flowserve.cachestore.tier import Buffer, Key
from flowserve.errors import StoreError
from flowserve.ids import Bytes


class HostTier:
    """Each record is one `bytes` object: a range that was read keeps its record alive, whatever becomes of the key."""

    def __init__(self, capacity_bytes: Bytes, name: str = "host") -> None:
        self.name = name
        self._capacity = capacity_bytes
        self._records: dict[Key, bytes] = {}
        self._held: Bytes = 0
        self._lock = threading.Lock()

    def put(self, key: Key, parts: Sequence[Buffer]) -> None:
        data = b"".join(parts)
        with self._lock:
            held = self._held - len(self._records.pop(key, b""))
            self._held = held
            if held + len(data) > self._capacity:
                raise StoreError(
                    f"tier '{self.name}': a record of {len(data)} bytes does not fit; {held} of {self._capacity} bytes are in use"
                )
            self._records[key] = data
            self._held = held + len(data)

    def read(self, key: Key, offset: Bytes, length: Bytes) -> Buffer | None:
        data = self._records.get(key)
        return None if data is None else memoryview(data)[offset : offset + length]

    def size(self, key: Key) -> Bytes | None:
        data = self._records.get(key)
        return None if data is None else len(data)

    def delete(self, key: Key) -> None:
        with self._lock:
            self._held -= len(self._records.pop(key, b""))

    def keys(self) -> Iterator[tuple[Key, Bytes]]:
        with self._lock:
            found = [(key, len(data)) for key, data in self._records.items()]
        yield from found

    def close(self) -> None:
        with self._lock:
            self._records.clear()
            self._held = 0
