"""Where records lie: one protocol for device, host, disk and remote memory.

A tier keeps bytes under keys and knows nothing of what they mean; record.py checks them, store.py decides what goes where.
All methods may be called from any thread and may block: the caller is a thread of the store, never an event loop.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from flowserve.ids import Bytes

Key = bytes
"""32 bytes: see keys.py."""
Buffer = bytes | bytearray | memoryview


class Tier(Protocol):
    """What keeps records."""

    @property
    def name(self) -> str:
        """`device`, `host`, `disk`, `remote`: what metrics call it."""
        ...

    def put(self, key: Key, parts: Sequence[Buffer]) -> None:
        """Keep the concatenation of `parts`. Atomic: a reader sees all of it or nothing, also after a crash. What was there
        under the key is replaced. Raises StoreError when it cannot (full, unreachable); then nothing is there."""
        ...

    def read(self, key: Key, offset: Bytes, length: Bytes) -> Buffer | None:
        """A range of a record; shorter where the record ends, None where there is none. Raises StoreError."""
        ...

    def size(self, key: Key) -> Bytes | None:
        """Of a record; None: it is not there. Raises StoreError."""
        ...

    def delete(self, key: Key) -> None:
        """Forget a record; unknown ones are ignored. Ranges that were read stay valid."""
        ...

    def keys(self) -> Iterator[tuple[Key, Bytes]]:
        """All records, each with its size: what a restarted process finds."""
        ...

    def close(self) -> None: ...
