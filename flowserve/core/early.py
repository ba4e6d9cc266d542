"""Maps that begin while their list is being written (decode pipelining, Teola/Ayo, ASPLOS'25).

`Node.streams` names the LLM node. While that runs, `Items` says how many items are whole by now; when the map waits for
nothing else, its task is made and its frames are opened, as many as there are items and `concurrency` lets. The task is
OPEN from then on and keeps its place until its node's frame ends, whatever becomes of the call:

| `Expansion.sure` | since                               | frames                   | then                                              |
|------------------|-------------------------------------|--------------------------|---------------------------------------------------|
| GROWS            | the first Items came                | one per item             | HELD, or ASKED when the call has ended well       |
| HELD             | one of its frames failed            | none, all were dropped   | GROWS when the call begins anew, ASKED at its end |
| ASKED            | the call has ended: Evaluate is out | those that were, no more | KNOWN                                             |
| KNOWN            | Evaluated came                      | all; it may join         |                                                   |

Nothing of a list that is not whole leaves: the map cannot join before KNOWN. When the call begins anew, when the list is
another in the end (`Evaluated.anew`), and when a frame fails, all that was begun is dropped. A failure is thereby judged
only when the list is certain: the frame is made again, and fails the map then.
"""

from collections.abc import Iterator

from flowserve.core import dispatching, expansion, tasks
from flowserve.core.commands import Evaluate
from flowserve.core.events import Code, Evaluated, Items
from flowserve.core.state import Consequence, Expansion, Phase, SchedulerState, Task, Width


def items(state: SchedulerState, call: Task, event: Items) -> None:
    """A running call has written items of the list of a map: the map begins with them, or goes on."""
    assert call.call is not None
    call.call.items = True
    place = call.run.shape.position[event.map]
    stands = call.frame.nodes[place]
    if stands == 1:  # it waits for this call alone
        stands = tasks.create(state, call.frame, place)
        dispatching.begin(state, stands, Phase.OPEN)
        stands.expansion = Expansion(0, Width.GROWS)
    if isinstance(stands, Task):
        known = stands.expansion
        assert known is not None
        if known.sure is Width.GROWS:
            known.width = max(known.width, min(event.count, stands.node.limit))
            expansion.open_more(state, stands)


def void(state: SchedulerState, item: Consequence) -> None:
    """A call begins anew, and may write another list: what its maps have begun is dropped."""
    call = item.subject
    assert isinstance(call, Task)
    for task in _maps(call):
        expansion.start_over(state, task, Expansion(0, Width.GROWS))


def whole(state: SchedulerState, item: Consequence) -> None:
    """The list of a map that began early is whole: ask how many items it has."""
    task = item.subject
    assert isinstance(task, Task)
    if task.phase is Phase.OPEN:
        assert task.expansion is not None
        task.expansion.sure, task.expansion.width = Width.ASKED, task.expansion.opened
        state.out.append(Evaluate(task.run.id, task.id, task.attempt, None))


def settled(state: SchedulerState, task: Task, event: Evaluated) -> None:
    """The width of a map that began early is known; what began with another list starts over."""
    width, known = event.choice, task.expansion
    assert known is not None
    if width < 0 or width > task.node.limit:
        expansion.refuse(state, task, Code.INTERNAL if width < 0 else Code.LIMIT)
        return
    if event.anew or width < known.opened:
        known = expansion.start_over(state, task, Expansion())
    known.width, known.sure = width, Width.KNOWN
    if known.complete:
        expansion.join(state, task)
    else:
        expansion.open_more(state, task)


def _maps(call: Task) -> Iterator[Task]:
    """Those that have begun with what `call` writes, and have not gone with its frame meanwhile."""
    frame = call.frame
    for place in frame.block.dependents[call.run.shape.position[call.node.id]]:
        stands = frame.nodes[place]
        if isinstance(stands, Task) and stands.phase is Phase.OPEN:
            yield stands
