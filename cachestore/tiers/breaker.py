"""A remote tier that may be away: for readers it is then empty, and asking costs microseconds instead of a time-out.

After `failures` calls in a row that could not reach it, the tier is left alone for `rest_s`; then one call tries again while
all others are still answered at once. Each try that fails doubles the rest, up to `longest_rest_s`.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import TypeVar

from flowserve.cachestore.tier import Buffer, Key, Tier
from flowserve.errors import ConfigError, StoreAway, StoreError
from flowserve.ids import Bytes, Seconds

T = TypeVar("T")


class Breaker:
    """A tier before another one. What readers ask of a tier that is away is a miss and is counted; `put` raises StoreAway.

    Deletions that did not arrive are owed: their records are not served any longer, and they are carried out as soon as the
    tier answers. A process that ends owing leaves them to the tier's own expiry.
    """

    def __init__(
        self,
        inner: Tier,
        failures: int = 3,
        rest_s: Seconds = 1.0,
        longest_rest_s: Seconds = 60.0,
        now: Callable[[], Seconds] = time.monotonic,
    ) -> None:
        if failures < 1 or not 0 < rest_s <= longest_rest_s:
            raise ConfigError(
                f"remote tier '{inner.name}': expected failures of at least 1 and 0 < rest_s <= longest_rest_s; "
                f"got failures={failures}, rest_s={rest_s}, longest_rest_s={longest_rest_s}"
            )
        self._inner = inner
        self._failures = failures
        self._first_rest_s = self._rest_s = rest_s
        self._longest_rest_s = longest_rest_s
        self._now = now
        self._lock = Lock()
        self._failed_in_a_row = 0
        self._rests_until: Seconds | None = None
        self._owed: set[Key] = set()
        self._failed: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def rests(self) -> bool:
        """Is the tier left alone, but for tries?"""
        return self._rests_until is not None

    @property
    def failed(self) -> Mapping[str, int]:
        """Calls that did not reach the tier, by operation."""
        return dict(self._failed)

    @property
    def refused(self) -> Mapping[str, int]:
        """Calls that were not tried because the tier rests, by operation."""
        return dict(self._refused)

    def put(self, key: Key, parts: Sequence[Buffer]) -> None:
        is_owed = key in self._owed
        self._owed.discard(key)
        try:
            self._call("put", lambda: self._inner.put(key, parts))
        except StoreError:
            if is_owed:
                self._owed.add(key)
            raise

    def read(self, key: Key, offset: Bytes, length: Bytes) -> Buffer | None:
        return None if key in self._owed else self._asked("read", lambda: self._inner.read(key, offset, length))

    def size(self, key: Key) -> Bytes | None:
        return None if key in self._owed else self._asked("size", lambda: self._inner.size(key))

    def delete(self, key: Key) -> None:
        try:
            self._call("delete", lambda: self._inner.delete(key))
        except StoreAway:
            self._owed.add(key)

    def keys(self) -> Iterator[tuple[Key, Bytes]]:
        """What is there, listed whole before the first is handed out; nothing of a tier that is away."""
        owed = frozenset(self._owed)  # as it was: the answer that lists them may also bring the deletions through
        found = self._asked("keys", lambda: dict(self._inner.keys())) or {}
        return ((key, size) for key, size in found.items() if key not in owed)

    def close(self) -> None:
        self._inner.close()

    def _asked(self, operation: str, call: Callable[[], T]) -> T | None:
        try:
            return self._call(operation, call)
        except StoreAway:
            return None

    def _call(self, operation: str, call: Callable[[], T]) -> T:
        is_try = self._admit(operation)
        try:
            result = call()
        except StoreAway:
            self._note_failure(operation, is_try)
            raise
        except StoreError:
            self._note_answer()
            raise
        self._note_answer()
        self._pay()
        return result

    def _admit(self, operation: str) -> bool:
        """Is this the try after a rest? Whoever comes first makes it, and for the others the rest goes on meanwhile. Raises
        StoreAway."""
        with self._lock:
            if self._rests_until is None:
                return False
            now = self._now()
            if now >= self._rests_until:
                self._rests_until = now + self._rest_s
                return True
            self._refused[operation] += 1
            left_s = self._rests_until - now
        raise StoreAway(f"remote tier '{self.name}' did not answer and is left alone for {left_s:.1f} s more")

    def _note_failure(self, operation: str, is_try: bool) -> None:
        with self._lock:
            self._failed[operation] += 1
            self._failed_in_a_row += 1
            if is_try:
                self._rest_s = min(2 * self._rest_s, self._longest_rest_s)
            if self._failed_in_a_row >= self._failures:
                self._rests_until = self._now() + self._rest_s

    def _note_answer(self) -> None:
        with self._lock:
            self._failed_in_a_row = 0
            self._rests_until = None
            self._rest_s = self._first_rest_s

    def _pay(self) -> None:
        """Carry out the deletions that are owed; what fails again stays owed."""
        with self._lock:
            owed = sorted(self._owed)
        for key in owed:
            try:
                self._inner.delete(key)
            except StoreAway:
                return
            self._owed.discard(key)
