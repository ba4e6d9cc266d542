"""What must hold between steps. Tests call `check` after every event, drivers when they are idle.

It walks everything: the cost is proportional to what is live.
"""

from collections import Counter
from collections.abc import Iterator

from flowserve.core import budgets, exits, placement, sampling, tasks
from flowserve.core.commands import Role
from flowserve.core.engine_state import Drain, Engine, Health, ModelCall
from flowserve.core.passing import MOST_GROUPS
from flowserve.core.placements import MOST_PINS, MOST_SENT
from flowserve.core.priority import is_throughput_bound, tier
from flowserve.core.queues import SLACK, ReadyQueue
from flowserve.core.quotas import must_wait
from flowserve.core.service import Tenant
from flowserve.core.state import Frame, Phase, Run, SchedulerState, Task, Width, Window
from flowserve.core.story import story
from flowserve.errors import InternalError
from flowserve.graphs.plan import Kind
from flowserve.ids import FrameId

READY, RUNNING, OPEN, JOINING, RETRYING, COMPLETED = (
    Phase.READY, Phase.RUNNING, Phase.OPEN, Phase.JOINING, Phase.RETRYING, Phase.COMPLETED,
)  # fmt: skip
WITH_PARTS = (OPEN, JOINING)
NODE, STEP, AGENT_TOOL = Role.NODE, Role.STEP, Role.TOOL
LLM, TOOL, SEARCH = Kind.LLM, Kind.TOOL, Kind.SEARCH
WIDE, ONE_AT_A_TIME = (Kind.MAP, Kind.SAMPLE, Kind.RACE), (Kind.SWITCH, Kind.LOOP)
KNOWN, HELD, EARLY = Width.KNOWN, Width.HELD, (Width.GROWS, Width.HELD)
"""Asked of every task after every step; an attribute of an Enum takes as long as five of a module (CPython 3.11)."""


def check(state: SchedulerState) -> None:
    """Verify every cross-link and count; raises InternalError naming all that is wrong."""
    for run in state.runs.values():
        if wrong := list(_run(state, run)):
            raise _broken(wrong, story(state, run.id))
    served = [*_engines(state), *_heads(state), *_placed(state)]
    if wrong := [*_whole(state), *_places(state), *served, *_queues(state), *_timers(state)]:
        raise _broken(wrong, repr(state))


def _broken(wrong: list[str], told: str) -> InternalError:
    return InternalError("invariants are broken:\n  " + "\n  ".join(wrong), told)


def _whole(state: SchedulerState) -> Iterator[str]:
    if state.out or state.agenda or state.immediate or state.urgent or state.stirred or state.served or state.doomed:
        yield f"a step left work behind: {state.out}, {state.agenda}, {state.immediate}, {state.urgent}"
    uses = {digest: 0 for digest in state.shapes}
    for id, run in state.runs.items():
        if run.id != id or run.over:
            yield f"{run!r} is listed under {id!r}"
        uses[run.plan.digest] = uses.get(run.plan.digest, 0) + 1
    for digest, shape in state.shapes.items():
        if shape.runs != uses[digest] or not shape.runs:
            yield f"plan {digest[:12]} counts {shape.runs} runs, has {uses[digest]}"
    for name, tenant in state.tenants.items():
        own = [run for run in state.runs.values() if run.share is tenant]
        yield from _tenant(state, name, tenant, own)
    held = sum(run.held for run in state.runs.values())
    if state.held != held:
        yield f"{state.held} runs are counted as held, {held} are"
    work = sum(run.work for run in state.runs.values() if not run.held)
    if abs(state.work - work) > 1e-6 * max(1.0, work):
        yield f"{state.work} s of work are counted, the runs have {work}"
    measuring = sum(tasks.being_measured(state, task) for run in state.runs.values() for task in run.tasks.values())
    if state.measuring != measuring:
        yield f"{state.measuring} calls are counted as being measured, {measuring} are"
    at_engines = sum(len(engine.running) for engine in state.engines.values())
    if state.at_engines != at_engines:
        yield f"{state.at_engines} calls are counted at engines, {at_engines} are there"
    if len(state.runs) - held > state.config.max_live_runs:
        yield f"{len(state.runs) - held} live runs"
    if not 0 <= state.retry_tokens <= state.config.retry_reserve:
        yield f"the retry budget is {state.retry_tokens}"


def _tenant(state: SchedulerState, name: str, tenant: Tenant, own: list[Run]) -> Iterator[str]:
    """`own` are its live runs."""
    counts = (sum(not run.held for run in own), sum(not run.started for run in own))
    if (tenant.runs, tenant.queued) != counts or any(run.tenant != name for run in own):
        yield f"tenant {name!r} counts {tenant.runs} runs at work and {tenant.queued} not begun, has {counts}"
    quota = tenant.quota
    if quota is None:
        if any(run.held for run in own):
            yield f"tenant {name!r} has no bounds, and runs that are held"
        return
    limits = quota.limits
    if list(quota.held) != [run for run in own if run.held]:
        yield f"tenant {name!r} holds {list(quota.held)}"
    if limits.live_runs is not None and (tenant.runs > limits.live_runs or (quota.held and not must_wait(tenant))):
        yield f"tenant {name!r} has {tenant.runs} runs at work and holds {len(quota.held)}"
    if limits.queued_runs is not None and tenant.queued > limits.queued_runs:
        yield f"tenant {name!r} has {tenant.queued} runs that have not begun"
    for purse in quota.purses.values():
        if purse.holds(state.now) > purse.most:
            yield f"tenant {name!r} has more than it may have: {purse}"


def _run(state: SchedulerState, run: Run) -> Iterator[str]:
    if run.held:
        if run.tasks or run.frames or run.started:
            yield f"{run!r} is held and at work"
        return
    if not run.tasks or 0 not in run.frames:
        yield f"{run!r} is stuck: nothing is at work in it"
        return
    if list(run.tasks) != sorted(run.tasks) or list(run.frames) != sorted(run.frames):
        yield f"{run!r} holds tasks or frames out of order"
    if run.budget is not None and (passed := budgets.passed(run.budget, run.spent)) is not None:
        yield f"{run!r} goes on although it has passed its budget: {passed}"
    yield from _spent(run)
    if run.rank != state.policy.rank(run, state.config):
        yield f"{run!r} has rank {run.rank}, policy says {state.policy.rank(run, state.config)}"
    nodes, position = run.frames[FrameId(0)].nodes, run.shape.position
    longest = next((node for node in run.by_tail if nodes[position[node]] is not None), None)
    if longest is not None and run.by_tail[run.pointer] != longest:
        yield f"{run!r} points at node {run.by_tail[run.pointer]}, the longest tail left is node {longest}"
    if any(node not in run.shape.degradable for node in run.taken) or (run.taken and not run.may_degrade):
        yield f"{run!r} is degraded at {run.taken}"
    calls = [task.call for task in run.tasks.values() if task.call is not None]
    kv_tokens, longer_s = sum(call.kv_tokens for call in calls), sum(call.longer_s for call in calls)
    longer_s += sum(task.expansion.longer_s for task in run.tasks.values() if task.expansion is not None)
    if run.kv_tokens != kv_tokens or abs(run.longer_s - longer_s) > 1e-6 * max(1.0, abs(longer_s)):
        yield f"{run!r} counts {run.kv_tokens} tokens and {run.longer_s} s, its calls and samples make {kv_tokens} and {longer_s}"
    if len(run.history) > 2 * state.config.story_length:
        yield f"{run!r} remembers too much"
    for frame in run.frames.values():
        yield from _frame(run, frame)
    for task in run.tasks.values():
        yield from _task(state, run, task)
        yield from _phase(task)
        if task.reduced is not None:
            yield from _reduced(task, task.reduced)
        if task.call is not None:
            yield from _exit(task, task.call)


def _spent(run: Run) -> Iterator[str]:
    """What a run has spent is what its nodes have."""
    spent, nodes = run.spent, run.by_node.values()
    prompt = cached = output = 0
    seconds = 0.0
    for node in nodes:
        prompt += node.prompt
        cached += node.cached
        output += node.output
        seconds += node.seconds
    if (spent.prompt, spent.cached, spent.output) != (prompt, cached, output) or min(prompt, cached, output) < 0:
        yield f"{run!r} counts {spent}, its nodes {list(nodes)}"
    if abs(spent.seconds - seconds) > 1e-6 * max(1.0, spent.seconds):
        yield f"{run!r} counts {spent.seconds} s at engines, its nodes {list(nodes)}"
    if run.prepaid < 0 or run.prepaid_money < 0:
        yield f"{run!r} has prepaid {run.prepaid} tokens and {run.prepaid_money}"


def _frame(run: Run, frame: Frame) -> Iterator[str]:
    if run.frames.get(frame.id) is not frame or frame.run is not run:
        yield f"{frame!r} is not listed"
    owner = frame.owner
    if owner is not None:
        at_work = RUNNING if owner.kind is Kind.DYNAMIC else OPEN
        if run.tasks.get(owner.id) is not owner or owner.phase is not at_work:
            yield f"{frame!r} works for {owner!r}"
        elif owner.expansion is None or owner.expansion.live.get(frame.id) is not frame:
            yield f"{frame!r} is unknown to {owner!r}"
    position, nodes = run.shape.position, frame.nodes
    for stands, node in zip(nodes, frame.block.nodes, strict=True):
        if stands is None:
            continue
        waits = len(node.deps) - [nodes[position[dep]] for dep in node.deps].count(None)
        if isinstance(stands, Task):
            if (
                waits != _began_early(stands)
                or stands.node is not node
                or stands.frame is not frame
                or run.tasks.get(stands.id) is not stands
            ):
                yield f"{frame!r}: node {node.id} waits for {waits} and has {stands!r}"
        elif stands != waits or not waits:
            yield f"{frame!r}: node {node.id} waits for {waits}, counts {stands}"
    unfinished = len(nodes) - nodes.count(None)
    if frame.unfinished != unfinished or not unfinished:
        yield f"{frame!r}: {unfinished} nodes are not done"


def _began_early(task: Task) -> bool:
    """Its list is still being written, and that is all it waits for."""
    return task.expansion is not None and task.expansion.sure in EARLY


def _task(state: SchedulerState, run: Run, task: Task) -> Iterator[str]:
    """Links of a task to what is around it."""
    if task.run is not run or run.frames.get(task.frame.id) is not task.frame:
        yield f"{task!r} hangs in the air"
    if task.role is NODE and task.frame.nodes[run.shape.position[task.node.id]] is not task:
        yield f"{task!r} is unknown to {task.frame!r}"
    if (task.role is NODE) != (task.parent is None):
        yield f"{task!r} has parent {task.parent!r}"
    if task.parent is not None:
        parts = task.parent.expansion.parts if task.parent.expansion is not None else {}
        if parts.get(task.id) is not task:
            yield f"{task!r} is unknown to its agent"
    window = _window_of(state, task)
    needs_room = window is not None or _calls_model(task)
    measuring = task.call is not None and state.config.measure and not task.call.measured
    waits = task.lane is not None and _may_wait_in(state, task, window, task.lane.queue)
    if waits != (task.phase is READY and needs_room and not measuring):
        yield f"{task!r} waits in {task.lane}"
    if (task.place is not None) != (task.phase is RUNNING and needs_room):
        yield f"{task!r} runs in {task.place!r}"
    if task.place is not None:
        if window is not None and task.place is not window:
            yield f"{task!r} runs in {task.place!r}"
        if task not in task.place.running:
            yield f"{task!r} is unknown to {task.place!r}"


def _calls_model(task: Task) -> bool:
    return task.role is STEP or task.kind is LLM


def _window_of(state: SchedulerState, task: Task) -> Window | None:
    """Whose room `task` takes, if that is a window."""
    if _calls_model(task):
        return None
    if task.role is AGENT_TOOL or task.kind is TOOL:
        return state.tools
    return state.searches if task.kind is SEARCH else None


def _may_wait_in(state: SchedulerState, task: Task, window: Window | None, queue: ReadyQueue) -> bool:
    if window is not None:
        return queue is window.queue
    if not _calls_model(task):
        return False
    model = state.models.get(task.run.shape.models[task.node.id])
    return queue is model or any(queue is engine.queue for engine in state.engines.values())


def _reduced(task: Task, to: int) -> Iterator[str]:
    """Nothing is degraded but what was declared, and to no less than was declared."""
    node, expansion = task.node, task.expansion
    if node.degrade is None or not task.run.may_degrade or not node.degrade.least <= to < node.limit:
        yield f"{task!r} is degraded to {to}"
    elif expansion is not None and task.kind is Kind.SAMPLE and expansion.width != to:
        yield f"{task!r} is degraded to {to} samples and draws {expansion.width}"
    elif expansion is not None and task.kind is Kind.LOOP and (task.phase is not JOINING or expansion.opened != to):
        yield f"{task!r} is degraded to {to} rounds and has begun {expansion.opened}"


def _exit(task: Task, call: ModelCall) -> Iterator[str]:
    """Only what was declared so ends early, by a rule that has begun, and once."""
    if call.rule is None and call.fork_at is None and not call.exited:
        return
    if exits.spec_of(task) is None or call.rule is None or call.rival is not None:
        yield f"{task!r} may not end early, and is asked to"
    if call.exited and call.fork_at is not None:
        yield f"{task!r} has been ended by its rule, and is to be forked at {call.fork_at}"


def _phase(task: Task) -> Iterator[str]:
    """What a task has in each phase."""
    expansion, phase = task.expansion, task.phase
    if phase >= COMPLETED:
        yield f"{task!r} is over and still listed"
    if phase is RETRYING and (task.timer is None or expansion is not None):
        yield f"{task!r} does not wait for its back-off"
    limited = task.role is NODE and task.node.timeout_s is not None
    if phase in tasks.AT_WORK and (task.timer is not None) != limited:
        yield f"{task!r} has the time limit {task.timer!r}"
    if expansion is None:
        if phase in WITH_PARTS:
            yield f"{task!r} has no parts"
        return
    if phase is JOINING and (expansion.live or expansion.parts):
        yield f"{task!r} has parts at work: {list(expansion.live)}, {list(expansion.parts)}"
    if expansion.sure is not KNOWN and (task.node.streams is None or phase is not OPEN):
        yield f"{task!r} has begun early"
    if expansion.sure is HELD and expansion.opened:
        yield f"{task!r} has frames although one of them failed"
    at_work = expansion.live or expansion.parts or expansion.unlabelled
    if phase is OPEN and not at_work and expansion.sure is KNOWN:
        yield f"{task!r} is open for nothing"
    if task.kind in WIDE and phase is OPEN:
        accounted = len(expansion.live) + len(expansion.done) + expansion.failed
        if accounted != expansion.opened or expansion.opened > expansion.width:
            yield f"{task!r} opened {expansion.opened} frames of {expansion.width}, {accounted} are accounted for"
        room, rest = task.node.concurrency or expansion.width, expansion.width - len(expansion.done) - expansion.failed
        least = min(room, rest, sampling.certain(task))
        if not least <= len(expansion.live) <= min(room, rest):
            yield f"{task!r} has {len(expansion.live)} frames at work, wants {least}, room for {room}"
    if task.kind in ONE_AT_A_TIME and len(expansion.live) > 1:
        yield f"{task!r} has {len(expansion.live)} frames at work"


def _places(state: SchedulerState) -> Iterator[str]:
    places: list[Engine | Window] = [*state.engines.values(), state.tools, state.searches]
    for place in places:
        for task in place.running:
            if task.place is not place or task.phase is not Phase.RUNNING or task.run.over:
                yield f"{place!r} runs {task!r}"
    for engine in state.engines.values():
        if not engine.up and (engine.running or engine.rivals or engine.limit or engine.queue.size):
            yield f"{engine!r} is down and has work or room"
    for window in (state.tools, state.searches):
        if len(window.running) > window.limit or (window.queue.size and len(window.running) < window.limit):
            yield f"{window!r} is overfull, or lets work wait"
    waiting = [(queue, state.serving.get(model, [])) for model, queue in state.models.items()]
    waiting += [(engine.queue, [engine]) for engine in state.engines.values()]
    for queue, candidates in waiting:
        if queue.size and placement.place(state, candidates, queue.first()) is not None:
            yield f"{queue.size} calls wait in {queue.name!r} although there is room"


def _engines(state: SchedulerState) -> Iterator[str]:
    """The sums that placement decides by are those of the calls that are there."""
    if list(state.draining) != [e for e in state.draining if e.drain is not Drain.NO]:
        yield f"{list(state.draining)} are not all draining"
    for engine in state.engines.values():
        calls = [task.call for task in engine.running if task.call is not None]
        rivals = [task.call for task in engine.rivals if task.call is not None]
        seats = sum(call.choices for call in (*calls, *rivals) if not call.pushed_out)
        sums = (seats, sum(c.prefill for c in calls), sum(c.decode for c in calls), sum(c.reserve for c in calls))
        if len(engine.passages) and not 0.0 < engine.pasted <= 1.0:
            yield f"{engine!r} is thought to have {len(engine.passages)} passages, and to paste {engine.pasted} of them"
        if sums != (engine.seats, engine.backlog, engine.ahead, engine.reserved):
            stands = (engine.seats, engine.backlog, engine.ahead, engine.reserved)
            yield f"{engine!r} counts {stands}, its calls make {sums}"
        tiers = [tier(task.run.level, state.config) for task in engine.running]
        if engine.tiers != [tiers.count(number) for number in range(3)]:
            yield f"{engine!r} counts tiers {engine.tiers}, has {tiers}"
        grouped = sum(is_throughput_bound(task, state.config) for task in engine.running)
        if engine.throughput_calls != grouped:
            yield f"{engine!r} counts {engine.throughput_calls} throughput-bound calls, has {grouped}"
        if any(task.call is None or task.call.rival is not engine for task in engine.rivals):
            yield f"{engine!r} is the second engine of {list(engine.rivals)}"
        if (engine.drain is not Drain.NO) != (engine in state.draining):
            yield f"{engine!r} has drain {engine.drain}"
        waits = engine.restarting or engine.timer is not None or engine.drain is not Drain.NO
        if engine.health is Health.DOWN and engine.can_restart and not waits:
            yield f"{engine!r} is down for ever"


def _heads(state: SchedulerState) -> Iterator[str]:
    busy = {engine.head: engine for engine in state.engines.values() if engine.head is not None}
    for (run, frame, node), head in state.heads.items():
        live = state.runs.get(run)
        if live is None or live.frames.get(frame) is not head.frame or head.node != node:
            yield f"{head!r} is listed under {(run, frame, node)}, which is not there"
        if busy.pop(head, None) is not head.engine:
            yield f"{head!r} and its engine disagree"
        at = head.engine
        if at is not None and (not at.up or at.running or at.rivals or at.drain is not Drain.NO):
            yield f"{head!r} is in the way of what the engine has to do"
    if busy:
        yield f"engines compute heads that nobody lists: {list(busy)}"


def _placed(state: SchedulerState) -> Iterator[str]:
    """What is remembered of choices is bounded, and speaks of engines that are known."""
    memory, engines = state.placed, list(state.engines.values())
    if not 0 <= memory.turn <= len(engines):
        yield f"the turn is that of engine {memory.turn} of {len(engines)}"
    if len(memory.pins) > MOST_PINS or any(engine not in engines for engine in memory.pins.values()):
        yield f"{len(memory.pins)} programs are pinned, some to engines that are unknown: {memory.pins}"
    for engine, window in memory.windows.items():
        uses = Counter(number for sent in window.sent for number in sent.prefix)
        if engine not in engines or len(window.sent) > MOST_SENT or uses != window.uses:
            yield f"{engine!r} was sent {len(window.sent)} calls, their prefixes are counted wrong"
    if len(state.groups) > MOST_GROUPS or any(group.engine not in engines for group in state.groups.values()):
        yield f"{len(state.groups)} groups, or some at engines that are unknown"
    starts = [group.until for group in state.groups.values()]
    if starts != sorted(starts) or any(until > state.now + state.config.pool.near_s for until in starts):
        yield f"groups last until {starts}"


def _queues(state: SchedulerState) -> Iterator[str]:
    own = [engine.queue for engine in state.engines.values()]
    for queue in [*state.models.values(), *own, state.tools.queue, state.searches.queue]:
        waiting = queue.waiting()
        if queue.size != len(waiting) or any(task.phase is not Phase.READY or task.run.over for task in waiting):
            yield f"queue {queue.name!r} counts {queue.size}, holds {waiting}"
        listed = []
        for tenant, line in queue.lines.items():
            valid = list(line.valid())
            listed += valid
            if len(valid) != line.lanes or len(line.heap) > 2 * line.lanes + SLACK:
                yield f"queue {queue.name!r} counts {line.lanes} lanes, lists {len(valid)} in {len(line.heap)} entries"
            if any(lane.run.share is not tenant for lane in valid):
                yield f"queue {queue.name!r} lists runs of others for {tenant!r}"
        for lane in listed:
            if (
                lane.run.over
                or lane.run.lanes.get((queue.name, lane.behind)) is not lane
                or len(lane.items) > 2 * lane.live + SLACK
            ):
                yield f"queue {queue.name!r} keeps a lane of {lane.run!r}"
            if lane.live and lane.listed != lane.rank:
                yield f"queue {queue.name!r} lists {lane.run!r} at an old rank"


def _timers(state: SchedulerState) -> Iterator[str]:
    wanted = 0
    groups: list[list[Run | Task | Engine]] = [list(state.engines.values())]
    groups += [[run, *run.tasks.values()] for run in state.runs.values()]
    for owners in groups:
        for owner in owners:
            if owner.timer is not None:
                wanted += 1
                if owner.timer[2] is not owner:
                    yield f"{owner!r} has {owner.timer!r}"
    if len(state.timers) != wanted or sum(timer[2].timer is timer for timer in state.timers.heap) != wanted:
        yield f"{len(state.timers)} timers are live, {wanted} are wanted"
    due = state.timers.earliest()
    if due is not None and (state.wake_at is None or state.wake_at > due):
        yield f"a timer is due at {due}, the next wake-up is promised for {state.wake_at}"
