"""Which call may go before the one whose turn it is, and why: because its prefix is where it was sent a moment ago, or
because it is longer. Proposals only; `dispatching` acts on them.

*Who.* Calls of one queue that are nearly as urgent as the first: of the same tenant and level, their run's rank at most
`near_s` behind that of the first. *How long.* A call is passed for at most `near_s` seconds after it was passed first;
from then on it goes when it is its turn. So whatever is sent ahead, nobody waits longer than that for it.

*Groups* (`group_tokens`; BatchLLM's prefix sharing groups, arXiv 2412.03594). Calls whose prompts begin with the same
`group_tokens` are a group, which begins when one of them goes to an engine and ends `near_s` later; those with twice as much
in common are a group within it, and so on, doubling. Those that come or wait meanwhile go there too, one after the other, while
the engine has room and is the only one that holds what they have in common: it is computed once, by the first, and is used up
before others need the memory. Of a call's groups the deepest counts, which saves most; so documents behind one instruction,
which every engine holds, are groups of their own. Where two engines hold all of it, or what more there is of a prompt,
the placement decides. BatchLLM finds the best cut of the whole tree of prefixes, which it knows beforehand; ours are cuts at
fixed depths, since calls arrive. It also orders groups by how much they write, and fills batches by memory: here order is
the policy's, and `placement` fills engines by memory in any case.

The first is not waited for: vLLM finds the blocks of a prompt from the step on in which they are scheduled, so calls that
arrive together compute a common prefix once.

*Longest first* (the scls placement). Of those calls, the one with most to compute and to write.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowserve.core import placement, placements
from flowserve.core.engine_state import Engine, Group
from flowserve.core.queues import ReadyQueue

if TYPE_CHECKING:
    from flowserve.core.state import SchedulerState, Task

MOST_NEAR = 32
"""Calls that are looked at behind the first one, at most one per run."""
MOST_GROUPS = 4096
"""Groups at once; the oldest goes first."""


def ahead(state: "SchedulerState", queue: ReadyQueue, engines: Sequence[Engine]) -> "tuple[Task, Engine] | None":
    """A call of `queue` that goes now, and where. None: the first one goes, where it likes."""
    grouped = state.config.pool.group_tokens and state.groups
    if not grouped and not state.placement.longest_first:
        return None
    first = queue.first()
    near = _near(state, queue) if _may_be_passed(state, first) else [first]
    if state.placement.longest_first and len(near) > 1:
        near.sort(key=lambda task: -_length(state, task))  # stable: of equals, the more urgent
    for task in near:
        engine = _place(state, engines, task)
        if engine is not None:
            return task, engine
    return None


def _near(state: "SchedulerState", queue: ReadyQueue) -> "list[Task]":
    """The first call and those nearly as urgent, in order."""
    lanes = queue.near(state.config.pool.near_s, MOST_NEAR)
    level = lanes[0].run.level
    return [lane.items[0][2] for lane in lanes if lane.run.level == level]


def _may_be_passed(state: "SchedulerState", task: "Task") -> bool:
    call = task.call
    assert call is not None
    return call.passed_at is None or state.now < call.passed_at + state.config.pool.near_s


def _place(state: "SchedulerState", engines: Sequence[Engine], task: "Task") -> Engine | None:
    """Where `task` goes if it goes ahead: to its group; longest first, also where the placement wants it."""
    group = group_of(state, engines, task)
    if group is not None and placement.place(state, [group.engine], task) is not None:
        return group.engine
    return placement.place(state, engines, task) if state.placement.longest_first else None


def _length(state: "SchedulerState", task: "Task") -> float:
    asked = placement.asked(state, task)
    return placements.work(asked, asked.prompt, asked.output)


# --- groups -------------------------------------------------------------------------------------------


def group_of(state: "SchedulerState", engines: Sequence[Engine], task: "Task") -> Group | None:
    """The group that `task` can join now, of several the deepest: it lasts, and its engine is the only one that holds what they
    have in common."""
    call = task.call
    assert call is not None
    for number in reversed(_common(state, task)):
        group = state.groups.get(number)
        if group is None or group.until <= state.now or group.engine is call.avoid:
            continue
        if [engine for engine in engines if number in engine.resident] == [group.engine]:
            return group
    return None


def went(state: "SchedulerState", task: "Task", engine: Engine) -> None:
    """`task` goes to `engine`: its groups begin there, but for those that last."""
    groups = state.groups
    for number in _common(state, task):
        known = groups.get(number)
        if known is None or known.until <= state.now:
            groups.pop(number, None)
            groups[number] = Group(engine, state.now + state.config.pool.near_s)
    while groups and (len(groups) > MOST_GROUPS or next(iter(groups.values())).until <= state.now):
        del groups[next(iter(groups))]


def _common(state: "SchedulerState", task: "Task") -> list[int]:
    """The numbers of what each of its groups begins with, the shallowest first; none where there are no groups."""
    pool, call = state.config.pool, task.call
    assert call is not None
    depth, found = -(-pool.group_tokens // pool.prefix_tokens), []
    while 0 < depth <= len(call.prefix):
        found.append(call.prefix[depth - 1])
        depth *= 2
    return found
