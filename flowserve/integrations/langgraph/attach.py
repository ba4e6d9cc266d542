"""`attach(graph)`: a graph whose model calls say where in it they come from. Nothing else about it changes."""

from typing import Any, TypeVar

from langgraph.pregel import Pregel

from flowserve.integrations.langchain.carrier import Carrier

Graph = TypeVar("Graph", bound=Pregel[Any, Any, Any, Any])


def attach(graph: Graph, *, name: str | None = None, session: str | None = None, priority: int = 0) -> Graph:
    """The same graph with a `Carrier` among its callbacks.

    Every call of a model that carries (`ChatFlowServe`, for FlowServe, vLLM, Dynamo and more by its `dialect`) says thread, run, node,
    step, what triggered it and its place in a fan-out, in words of its server; so does a call by hand with `**hints(...)`.

    name: of the program, the graph's own by default. session: whose calls belong together, by default the thread, else each run.
    priority: of all its calls, higher goes first, whatever the server's direction. Raises TypeError for what is no compiled graph.
    """
    if not isinstance(graph, Pregel):
        raise TypeError(f"attach(graph): expected a compiled graph (graph.compile()), got {type(graph).__name__}")
    carrier = Carrier(session=session, program=name or graph.get_name(), priority=priority)
    attached: Graph = graph.with_config(callbacks=[carrier])
    return attached
