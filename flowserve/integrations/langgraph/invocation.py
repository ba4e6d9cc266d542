"""One invocation of a served graph: the frontier behind a lock, what LangGraph's nodes tell it, and what it begins early."""

import contextvars
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

from langchain_core.runnables import RunnableConfig
from langgraph.types import Command, Send

from flowserve.integrations.langgraph.frontier import Frontier, Push, Task, Unfoldable
from flowserve.integrations.langgraph.inspect_graph import Inspected
from flowserve.integrations.langgraph.reducers import foldable
from flowserve.integrations.langgraph.seams import (
    CONF,
    CONFIG_KEY_CHECKPOINT_NS,
    CONFIG_KEY_CHECKPOINTER,
    CONFIG_KEY_READ,
    CONFIG_KEY_SEND,
    CONFIG_KEY_TASK_ID,
)

MISSING = object()
CURRENT: contextvars.ContextVar["Invocation | None"] = contextvars.ContextVar("flowserve_langgraph", default=None)


class Served(Protocol):
    """What an invocation uses of the graph (`DataflowGraph`)."""

    inspected: Inspected
    pure: frozenset[str]
    last_run: Mapping[str, Any]
    builder: Any
    channels: Any
    checkpointer: Any
    schema_to_mapper: Any
    nodes: Any


class Workers(Protocol):
    """Where early work is done: threads or tasks of the event loop."""

    def begin(self, run: "Invocation", task: Task) -> Any: ...

    def close(self) -> None: ...


class Invocation:
    """One invocation: the frontier behind a lock, and the work that was begun early."""

    def __init__(self, graph: Served, config: RunnableConfig | None, workers: Workers) -> None:
        nested = (config or {}).get(CONF, {}).get(CONFIG_KEY_CHECKPOINTER)
        shape = graph.inspected.shape
        if not graph.checkpointer and not nested:  # nobody could resume what is interrupted, so nobody interrupts
            shape = replace(shape, pauses=frozenset())
        self.graph = graph
        self.workers = workers
        self.frontier = Frontier(shape, self._fold, last_step=0)
        self.lock = threading.Lock()
        self.coming: list[str] = []
        self.paths: dict[tuple[int, Any], Task] = {}
        self.ahead: dict[int, Any] = {}  # id(task) -> future of what was begun early
        self.routes: dict[tuple[int, str], tuple[Seen, Any]] = {}
        self.config: RunnableConfig = {}
        self.room = 1 << 30
        self.counts = {"begun_early": 0, "taken_over": 0}

    def inside(self, act: Callable[[], Any]) -> Any:
        token = CURRENT.set(self)
        try:
            return act()
        finally:
            CURRENT.reset(token)

    def close(self) -> None:
        self.workers.close()
        self.graph.last_run = {**self.counts, "surprised": self.frontier.surprised}

    # what the nodes tell

    def enter(self, node: str, value: Any, config: RunnableConfig) -> tuple[Task | None, Any]:
        """The task of this node, and the future of its result when it was begun early."""
        metadata = config.get("metadata", {})
        step, path = metadata["langgraph_step"], metadata["langgraph_path"]
        with self.lock:
            if step != self.frontier.step:
                self._begin(step, config)
            self.config = config
            if (step, path) in self.paths:  # LangGraph tries a node again that failed
                return self.paths[step, path], None
            task = self.frontier.enter(node, value, sent=path[0] != "__pregel_pull", equal=_equal)
            if task is not None:
                self.paths[step, path] = task
            begun = self.ahead.pop(id(task), None) if task is not None and task.ahead else None
            if begun is not None:
                self.counts["taken_over"] += 1
        return task, begun

    def ended(self, task: Task | None, result: Any) -> None:
        if task is not None:
            with self.lock:
                self.frontier.finish(task, self._writes(result))
            self.look_ahead()

    def route_known(self, config: RunnableConfig, branch: str, value: Any) -> tuple[Task | None, Any]:
        """The task that a conditional edge belongs to, and the decision that was made early on the same values."""
        metadata = config.get("metadata", {})
        task = self.paths.get((metadata.get("langgraph_step", -1), metadata.get("langgraph_path")))
        saw, decided = self.routes.get((id(task), branch), (None, MISSING))
        same = saw is not None and all(key in value and _equal(value[key], each) for key, each in saw.items())
        return task, decided if same else MISSING

    def routed(self, task: Task | None, node: str, branch: str, decision: Any) -> None:
        if task is not None:
            ends = self.graph.builder.branches[node][branch].ends
            with self.lock:
                self.frontier.route(task, branch, _targets(decision, ends))
            self.look_ahead()

    # looking ahead

    def look_ahead(self) -> None:
        with self.lock:
            working = sum(task.status == "running" for task in self.frontier.tasks)
            ready = self.frontier.ready(self.room - working)
            for task in ready:
                self.counts["begun_early"] += 1
                self.ahead[id(task)] = self.workers.begin(self, task)

    def input_of(self, task: Task) -> Any:
        return task.given if task.push else Seen(task.given, self.frontier.shape.reads[task.node])

    def early_route(self, task: Task, branch: str, result: Any) -> "Seen | None":
        """What a conditional edge is given; None when it is LangGraph's to decide in its turn."""
        reads = self.graph.inspected.routers.get((task.node, branch))
        schema = self.graph.builder.branches[task.node][branch].input_schema
        if reads is None or self.graph.schema_to_mapper.get(schema) is not None:
            return None
        with self.lock:
            try:
                state = self.frontier.routable(task, reads)
            except Unfoldable:
                return None
        if state is None:
            return None
        beside = {} if schema is not None or result is None else result  # LangGraph passes on what the node returned
        return Seen({**beside, **state}, reads | set(beside))

    def config_of(self, task: Task) -> RunnableConfig:
        """LangGraph's configuration of a node, said of this task; reading and sending by hand are not possible ahead of its step."""
        path = ("__pregel_push", -1) if task.push else ("__pregel_pull", task.node)
        space = f"{task.node}:ahead-{task.step}-{id(task):x}"
        triggers = ("__pregel_push",) if task.push else (f"branch:to:{task.node}",)
        about = {
            "langgraph_step": task.step,
            "langgraph_node": task.node,
            "langgraph_triggers": triggers,
            "langgraph_path": path,
            "langgraph_checkpoint_ns": space,
        }
        inner = {
            **self.config.get(CONF, {}),
            CONFIG_KEY_TASK_ID: space,
            CONFIG_KEY_CHECKPOINT_NS: space,
            CONFIG_KEY_READ: _no_reading,
            CONFIG_KEY_SEND: _no_sending,
        }
        metadata = {**self.config.get("metadata", {}), **about}
        return {**self.config, "metadata": metadata, CONF: inner, "run_name": task.node}

    def _begin(self, step: int, config: RunnableConfig) -> None:
        if not self.frontier.begun:
            limit = config.get("recursion_limit", 25)
            self.frontier.last_step = step + limit - 2
            self.room = config.get("max_concurrency") or self.room
            if step > 1 and self.frontier.shape.joins:
                self.frontier.surprise("a thread goes on whose joins may be half complete")
        keys = list(self.graph.builder.channels)
        self.frontier.begin(step, self.coming, config.get(CONF, {})[CONFIG_KEY_READ](keys, False))
        self.coming = []

    def _writes(self, result: Any) -> dict[str, Any] | None:
        if result is None:
            return {}
        if type(result) is not dict:
            return None
        return {key: value for key, value in result.items() if key in self.graph.builder.channels}

    def _fold(self, key: str, state: Mapping[str, Any], values: list[Any]) -> Any:
        channel: Any = self.graph.channels[key]
        if not foldable(channel, values, key in self.graph.pure):
            raise Unfoldable(key)
        channel = channel.from_checkpoint(state[key]) if key in state else channel.copy()
        channel.update(values)
        return channel.get()


class Seen(dict[str, Any]):
    """The part of the state that a node was said to read; asking for another key is an error, not a missing value."""

    def __init__(self, values: Mapping[str, Any], allowed: Collection[str]) -> None:
        super().__init__(values)
        self.allowed = frozenset(allowed)

    def __missing__(self, key: str) -> Any:
        self._check(key)
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        self._check(key)
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._check(key)
        return super().get(key, default)

    def _check(self, key: object) -> None:
        if key not in self.allowed:
            raise LookupError(
                f"a node that was begun early read {key!r}; it was said to read {sorted(self.allowed)} only: correct serve(reads=...)"
            )


def _targets(decision: Any, ends: Mapping[Any, str] | None) -> list[str | Push]:
    many = decision if isinstance(decision, list | tuple) else [decision]
    found: list[str | Push] = []
    for each in many:
        if isinstance(each, Send):
            found.append(Push(each.node, each.arg))
        elif not isinstance(each, Command):
            found.append(ends[each] if ends else each)
    return found


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001  # an array, or a type that cannot be compared: then it is not known to be equal
        return False


def _no_reading(*_: Any) -> Any:
    raise RuntimeError(
        "a node that was begun before its super-step cannot read the state by hand; name it in serve(hold=...)"
    )


def _no_sending(*_: Any) -> Any:
    raise RuntimeError("a node that was begun before its super-step cannot write by hand; name it in serve(hold=...)")
