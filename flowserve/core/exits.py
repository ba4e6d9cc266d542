"""Model calls that end before their chain of thought does, because a fork's answer is sure enough (chain exit).

A call whose node has an `ExitSpec` is given a rule of `stopping.chains` when it goes to an engine. The rule says where the chain
is forked next (Fork); the driver does so, and tells how sure the fork was of its answer and which class that is of
(TrialAnswered); the rule says go on or stop (Exit). The chain itself never waits for a trial.

A call that goes on elsewhere keeps its rule, and what was asked for is asked again; one that begins anew has a new rule.
"""

from flowserve.core.commands import Exit, Fork, Role
from flowserve.core.engine_state import Engine
from flowserve.core.events import TrialAnswered
from flowserve.core.state import SchedulerState, Task
from flowserve.core.stopping.chains import CHAIN_RULES
from flowserve.core.stopping.rules import Continue, Decision, ProbeAt, Stop
from flowserve.core.stopping.signals import Probe, Trial
from flowserve.errors import InternalError
from flowserve.graphs.plan import ExitSpec, Kind
from flowserve.ids import EngineId, Tokens


def spec_of(task: Task) -> ExitSpec | None:
    """How `task` may end early; None: not at all."""
    if task.kind is not Kind.LLM or task.role is not Role.NODE:
        return None
    return task.run.plan.llms[task.node.target].exit


def begun(state: SchedulerState, task: Task) -> None:
    """`task` was dispatched: ask for its next trial, if it may end early."""
    call = task.call
    if call is None or spec_of(task) is None:
        return
    if call.rule is None or not call.written:
        name, args = call.told
        call.rule, call.fork_at, call.exited = CHAIN_RULES[name](dict(args)), None, False
        _obey(state, task, call.rule.begin())
    elif call.fork_at is not None:
        _fork(state, task, call.fork_at, call.fork_confident)


def answered(state: SchedulerState, task: Task, event: TrialAnswered) -> None:
    """The trial that was asked for has answered."""
    call = task.call
    assert call is not None and call.rule is not None
    call.fork_at = None
    signal: Trial | Probe = Probe(event.position, event.label, event.hesitates, event.cost)
    if event.confidence is not None:
        signal = Trial(event.position, event.label, event.confidence, event.cost, event.closed)
    _obey(state, task, call.rule.observe(signal))


def _obey(state: SchedulerState, task: Task, decision: Decision) -> None:
    call = task.call
    assert call is not None
    match decision:
        case Continue():
            pass
        case ProbeAt(position, confident):
            _fork(state, task, position, confident)
        case Stop(label, why):
            call.exited = True
            state.out.append(Exit(task.run.id, task.id, task.attempt, _engine(task), label, why))
        case _:
            raise InternalError(f"a rule of one chain cannot decide {decision!r}", repr(task))


def _fork(state: SchedulerState, task: Task, position: Tokens, confident: bool) -> None:
    assert task.call is not None
    task.call.fork_at, task.call.fork_confident = position, confident
    state.out.append(Fork(task.run.id, task.id, task.attempt, _engine(task), position, confident))


def _engine(task: Task) -> EngineId:
    assert isinstance(task.place, Engine)
    return task.place.id
