"""What one tier holds, by its owner's books: which records, whose, how large, and which of them goes when room is needed. Pure.

A tenant has a quota of each tier and may borrow what others leave free; whoever borrows gives back first.
"""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass

from flowserve.cachestore.eviction import Eviction
from flowserve.cachestore.tier import Key
from flowserve.errors import ConfigError
from flowserve.ids import Bytes, Seconds


@dataclass(frozen=True, slots=True)
class Held:
    """A record in the books."""

    nbytes: Bytes
    tenant: str


class _These:
    """The keys that a question is true of, for `Eviction.victim`."""

    def __init__(self, holds: Callable[[Key], bool]) -> None:
        self._holds = holds

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self._holds(key)


class Shelf:
    """The books of one tier."""

    def __init__(self, capacity_bytes: Bytes, policy: Eviction, quotas: Mapping[str, Bytes] | None = None) -> None:
        """quotas: bytes by tenant, `*` for those that are not named; a tenant without one has all."""
        if capacity_bytes < 0:
            raise ConfigError(f"store: expected a capacity of at least 0 bytes, got {capacity_bytes}")
        self.capacity_bytes = capacity_bytes
        self.used_bytes: Bytes = 0
        self._policy = policy
        self._quotas = dict(quotas or {})
        self._held: dict[Key, Held] = {}
        self._of_tenant: dict[str, Bytes] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, key: Key) -> Held:
        return self._held[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._held)

    def has_room(self, nbytes: Bytes) -> bool:
        """Does so much fit as it is?"""
        return self.used_bytes + nbytes <= self.capacity_bytes

    def bytes_of(self, tenant: str) -> Bytes:
        """What the records of a tenant take."""
        return self._of_tenant.get(tenant, 0)

    def victims(self, nbytes: Bytes, leased: Container[Key]) -> list[tuple[Key, Held]] | None:
        """What has to go, in this order, before `nbytes` more fit; None: they fit in no way. They are taken out of the books."""
        if nbytes > self.capacity_bytes:
            return None
        gone: list[tuple[Key, Held]] = []
        while not self.has_room(nbytes):
            key = self._policy.victim(_These(lambda key: key in leased or not self._borrows(key)))
            key = key or self._policy.victim(leased)
            if key is None:
                for kept, held in reversed(gone):
                    self.add(kept, held.nbytes, held.tenant, 0.0, 0.0)
                return None
            gone.append((key, self._held[key]))
            self.remove(key, evicted=True)
        return gone

    def add(self, key: Key, nbytes: Bytes, tenant: str, saved_s: Seconds, load_s: Seconds) -> None:
        """It has come in."""
        self.remove(key)
        self._held[key] = Held(nbytes, tenant)
        self._count(tenant, nbytes)
        self._policy.add(key, nbytes, saved_s, load_s)

    def own(self, key: Key, tenant: str) -> None:
        """Whose it is: books that were made of what lay on a tier do not know."""
        held = self._held.get(key)
        if held is not None and held.tenant != tenant:
            self._count(held.tenant, -held.nbytes)
            self._count(tenant, held.nbytes)
            self._held[key] = Held(held.nbytes, tenant)

    def touch(self, key: Key, saved_s: Seconds, load_s: Seconds) -> None:
        """It was used."""
        self._policy.touch(key, saved_s, load_s)

    def remove(self, key: Key, evicted: bool = False) -> None:
        """It is gone; unknown ones are ignored."""
        held = self._held.pop(key, None)
        if held is not None:
            self._count(held.tenant, -held.nbytes)
            self._policy.remove(key, evicted)

    def _borrows(self, key: Key) -> bool:
        """Does its tenant take more than its quota?"""
        tenant = self._held[key].tenant
        quota = self._quotas.get(tenant, self._quotas.get("*", self.capacity_bytes))
        return self.bytes_of(tenant) > quota

    def _count(self, tenant: str, nbytes: Bytes) -> None:
        self.used_bytes += nbytes
        total = self._of_tenant.get(tenant, 0) + nbytes
        if total:
            self._of_tenant[tenant] = total
        else:
            del self._of_tenant[tenant]
