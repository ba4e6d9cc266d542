"""Threads: values that stay between runs, with what they were before. In memory, per tenant."""

import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from flowserve.errors import UnknownName
from flowserve.ids import RunId, Seconds
from flowserve.server.errors import BadRequest
from flowserve.server.langgraph.convert import moment

MAX_THREADS = 10_000
"""Of all tenants. Beyond it the one that was idle longest is forgotten."""
MAX_STATES = 100
"""Of a thread; the oldest is forgotten."""


@dataclass(frozen=True, slots=True)
class State:
    """Values as they were left."""

    id: str
    at: Seconds
    values: dict[str, Any]
    source: str
    """`input`, `loop` (a run), `update`."""
    run: RunId | None = None


@dataclass(slots=True)
class Thread:
    """A conversation, or any other sequence of runs that build on each other's values."""

    id: str
    tenant: str
    created: Seconds
    metadata: dict[str, Any] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    runs: list[RunId] = field(default_factory=list)
    """In order of their beginning."""
    status: str = "idle"
    """Of its last run that has ended: `idle`, `error`, `interrupted`; `busy` while one goes on."""
    listed: bool = True
    """False: made for one run that named none."""

    @property
    def values(self) -> dict[str, Any]:
        return self.states[-1].values if self.states else {}

    @property
    def updated(self) -> Seconds:
        return self.states[-1].at if self.states else self.created

    def add(self, values: dict[str, Any], at: Seconds, source: str, run: RunId | None = None) -> State:
        state = State(str(uuid.uuid4()), at, values, source, run)
        self.states.append(state)
        del self.states[:-MAX_STATES]
        return state

    def data(self) -> dict[str, Any]:
        return {
            "thread_id": self.id,
            "created_at": moment(self.created),
            "updated_at": moment(self.updated),
            "state_updated_at": moment(self.updated),
            "metadata": self.metadata,
            "status": self.status,
            "values": self.values or None,
            "interrupts": {},
            "config": {},
            "error": None,
        }

    def state_data(self, place: int | None = None) -> dict[str, Any]:
        """A `ThreadState`; `place`: which of the states, None: the latest, which may be none yet."""
        states = self.states
        place = len(states) - 1 if place is None else place
        state = states[place] if 0 <= place < len(states) else None
        parent = states[place - 1] if place > 0 else None
        metadata = {"source": state.source, "step": place, "parents": {}} if state is not None else {}
        return {
            "values": state.values if state is not None else {},
            "next": [],
            "tasks": [],
            "interrupts": [],
            "metadata": metadata,
            "created_at": moment(state.at) if state is not None else None,
            "checkpoint": self.checkpoint(state),
            "parent_checkpoint": self.checkpoint(parent) if parent is not None else None,
        }

    def checkpoint(self, state: State | None) -> dict[str, Any]:
        return {"thread_id": self.id, "checkpoint_ns": "", "checkpoint_id": state.id if state is not None else None}


class Threads:
    """All of them, the longest untouched first."""

    def __init__(self, most: int = MAX_THREADS) -> None:
        self._most = most
        self._threads: OrderedDict[tuple[str, str], Thread] = OrderedDict()

    def add(self, tenant: str, now: Seconds, id: str | None = None, metadata: dict[str, Any] | None = None) -> Thread:
        thread = Thread(id or str(uuid.uuid4()), tenant, now, dict(metadata or {}))
        self._threads[tenant, thread.id] = thread
        idle = (key for key, old in self._threads.items() if old.status != "busy" and old is not thread)
        while len(self._threads) > self._most and (key := next(idle, None)) is not None:
            del self._threads[key]
            idle = (key for key, old in self._threads.items() if old.status != "busy" and old is not thread)
        return thread

    def find(self, tenant: str, id: str) -> Thread | None:
        thread = self._threads.get((tenant, id))
        if thread is not None:
            self._threads.move_to_end((tenant, id))
        return thread

    def get(self, tenant: str, id: str) -> Thread:
        """UnknownName for one that is not this tenant's as for one that is not."""
        thread = self.find(tenant, id)
        if thread is None:
            raise UnknownName("thread", id[:100])
        return thread

    def drop(self, thread: Thread) -> None:
        self._threads.pop((thread.tenant, thread.id), None)

    def of(self, tenant: str) -> list[Thread]:
        """Newest first; those that were made for one run only are left out."""
        own = [thread for thread in self._threads.values() if thread.tenant == tenant and thread.listed]
        return sorted(own, key=lambda thread: (-thread.created, thread.id))


def busy(thread: Thread) -> BadRequest:
    return BadRequest(
        409,
        "thread_busy",
        f"the thread '{thread.id[:100]}' has a run that goes on; wait for it, or ask for multitask_strategy "
        "'enqueue' (runs that are waited for or streamed), 'interrupt' or 'rollback'",
    )
