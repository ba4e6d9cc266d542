"""`serve(graph)`: a compiled LangGraph without super-step barriers where its data allows it, with the same results.

LangGraph still runs every super-step, in its order, with its checkpoints, streams and retries: the graph that `serve` returns is a
`CompiledStateGraph`. Beside it, nodes of later steps are begun as soon as the `Frontier` is certain of their inputs, and when
LangGraph comes to such a node it takes over the result (awaiting it if need be) after it found the input equal. What cannot
be foreseen runs as LangGraph would run it; `graph.held` and `graph.refused` say what and why.

One thing differs and cannot be otherwise: when a slow node fails, nodes of later steps may have run already whose effects LangGraph
would never have begun. Name nodes with effects outside in `hold`.
"""

from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph

from flowserve.integrations.langgraph.inspect_graph import Inspected, Keys, inspect_graph, refused
from flowserve.integrations.langgraph.invocation import CURRENT, MISSING, Invocation
from flowserve.integrations.langgraph.workers import Tasks, Threads
from flowserve.integrations.langgraph.wrapping import watched


def serve(
    graph: CompiledStateGraph[Any, Any, Any, Any],
    *,
    reads: Keys | None = None,
    writes: Keys | None = None,
    hold: Collection[str] = (),
    pure: Collection[str] = (),
) -> "DataflowGraph":
    """The same graph, whose nodes begin when their data is ready instead of at the next super-step.

    reads, writes: per node, the keys of the state that it uses, where its source does not show them (they are checked while it
    runs). hold: nodes never begun early, such as those with effects outside. pure: keys whose reducer is yours and neither
    changes its arguments nor draws lots; LangGraph's and Python's own reducers need not be named.

    Raises GraphError for names that the graph does not have, TypeError for anything but a compiled `StateGraph`.
    """
    if not isinstance(graph, CompiledStateGraph):
        raise TypeError(f"serve(graph): expected a compiled StateGraph (graph.compile()), got {type(graph).__name__}")
    inspected = inspect_graph(graph, reads or {}, writes or {}, hold)
    nodes = watched(graph)
    attributes = {key: value for key, value in graph.__dict__.items() if key != "__orig_class__"}
    return DataflowGraph(**{**attributes, "nodes": nodes, "inspected": inspected, "pure": frozenset(pure)})


class DataflowGraph(CompiledStateGraph[Any, Any, Any, Any]):
    """What `serve` returns. held: nodes that never begin early, with the reason. refused: why the whole graph runs as LangGraph runs it.

    last_run: of the run that ended last: how many nodes began early, were taken over, and what was not as foreseen.
    """

    def __init__(self, *, inspected: Inspected, pure: frozenset[str], **attributes: Any) -> None:
        attributes.pop("refused", None)
        attributes.pop("last_run", None)
        super().__init__(**attributes)
        self.inspected = inspected
        self.pure = pure
        self.refused = refused(self)
        self.last_run: Mapping[str, Any] = {}

    @property
    def held(self) -> Mapping[str, str]:
        return self.inspected.shape.held

    def stream(self, input: Any, config: RunnableConfig | None = None, **options: Any) -> Iterator[Any]:
        steps = super().stream(input, config, **options)
        if not self._looks_ahead(options):
            yield from steps
            return
        run = Invocation(self, config, Threads())
        try:
            while (part := run.inside(lambda: next(steps, MISSING))) is not MISSING:
                yield part
        finally:
            steps.close()  # type: ignore[attr-defined]
            run.close()

    async def astream(self, input: Any, config: RunnableConfig | None = None, **options: Any) -> AsyncIterator[Any]:
        steps = super().astream(input, config, **options)
        if not self._looks_ahead(options):
            async for part in steps:
                yield part
            return
        tasks = Tasks()
        run = Invocation(self, config, tasks)
        try:
            while True:
                token = CURRENT.set(run)
                try:
                    part = await anext(steps, MISSING)
                finally:
                    CURRENT.reset(token)
                if part is MISSING:
                    break
                yield part
        finally:
            await steps.aclose()  # type: ignore[attr-defined]
            run.close()
            await tasks.ended()

    def _looks_ahead(self, options: Mapping[str, Any]) -> bool:
        return not (self.refused or options.get("interrupt_before") or options.get("interrupt_after"))
