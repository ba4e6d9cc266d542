"""LangGraph's nodes and conditional edges, wrapped: they tell the invocation what ended and take over what was begun early."""

from copy import copy
from dataclasses import replace
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.constants import START

from flowserve.integrations.langgraph.invocation import CURRENT, MISSING
from flowserve.integrations.langgraph.seams import BranchSpec, GraphBubbleUp, PregelNode, RunnableCallable


class _Node(Runnable[Any, Any]):
    """A node's own runnable, in LangGraph's place for it: takes over what was begun early, and tells the run what ended."""

    def __init__(self, name: str, inner: RunnableCallable) -> None:
        self.name = name
        self.node = name
        self.inner = inner

    def invoke(self, input: Any, config: RunnableConfig | None = None, **more: Any) -> Any:
        run = CURRENT.get()
        if run is None or config is None:
            return self.inner.invoke(input, config, **more)
        task, begun = run.enter(self.node, input, config)
        if begun is not None:
            try:
                return begun.result()
            except GraphBubbleUp:
                pass  # an interrupt needs the node's own place in the run
        result = self.inner.invoke(input, config, **more)
        run.ended(task, result)
        return result

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **more: Any) -> Any:
        run = CURRENT.get()
        if run is None or config is None:
            return await self.inner.ainvoke(input, config, **more)
        task, begun = run.enter(self.node, input, config)
        if begun is not None:
            try:
                return await begun
            except GraphBubbleUp:
                pass
        result = await self.inner.ainvoke(input, config, **more)
        run.ended(task, result)
        return result


class _Router(Runnable[Any, Any]):
    """A conditional edge's function, in LangGraph's place for it."""

    def __init__(self, node: str, branch: str, inner: Any) -> None:
        self.node = node
        self.branch = branch
        self.inner = inner

    def invoke(self, input: Any, config: RunnableConfig | None = None, **more: Any) -> Any:
        run = CURRENT.get()
        if run is None or config is None:
            return self.inner.invoke(input, config, **more)
        task, decided = run.route_known(config, self.branch, input)
        if decided is MISSING:
            decided = self.inner.invoke(input, config, **more)
            run.routed(task, self.node, self.branch, decided)
        return decided

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **more: Any) -> Any:
        run = CURRENT.get()
        if run is None or config is None:
            return await self.inner.ainvoke(input, config, **more)
        task, decided = run.route_known(config, self.branch, input)
        if decided is MISSING:
            decided = await self.inner.ainvoke(input, config, **more)
            run.routed(task, self.node, self.branch, decided)
        return decided


class _Watched(PregelNode):
    """LangGraph asks a node for its runnable once for every task of the coming super-step, before any of them begins."""

    name = ""

    @property
    def node(self) -> Runnable[Any, Any] | None:  # pyright: ignore[reportIncompatibleVariableOverride]  # asked, not kept
        run = CURRENT.get()
        if run is not None:
            run.coming.append(self.name)
        return self.whole

    @property
    def whole(self) -> Runnable[Any, Any] | None:
        if "_whole" not in self.__dict__:
            self.__dict__["_whole"] = vars(PregelNode)["node"].func(self)
        found: Runnable[Any, Any] | None = self.__dict__["_whole"]
        return found


def watched(graph: Any) -> dict[str, PregelNode]:
    """The graph's nodes built anew around `_Node` and `_Router`; the graph itself stays as it is."""
    builder = copy(graph.builder)
    builder.nodes = {
        name: replace(spec, runnable=_Node(name, spec.runnable))
        if isinstance(spec.runnable, RunnableCallable)
        else spec
        for name, spec in graph.builder.nodes.items()
    }
    builder.branches = {
        node: {name: _wrapped(node, name, branch) for name, branch in named.items()}
        for node, named in graph.builder.branches.items()
    }
    rebuilt = builder.compile()
    nodes: dict[str, PregelNode] = {}
    for name, node in rebuilt.nodes.items():
        attributes = {k: v for k, v in node.__dict__.items() if k not in ("flat_writers", "node", "input_cache_key")}
        attributes["subgraphs"] = graph.nodes[name].subgraphs
        if name not in builder.nodes:
            nodes[name] = PregelNode(**attributes)
            continue
        nodes[name] = watched = _Watched(**attributes)
        watched.name = name
    return nodes


def _wrapped(node: str, name: str, branch: BranchSpec) -> BranchSpec:
    return branch if node == START else branch._replace(path=_Router(node, name, branch.path))
