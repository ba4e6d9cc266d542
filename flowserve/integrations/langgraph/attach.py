"""`attach(graph)`: a graph whose model calls say where in it they come from. Nothing else about it changes."""

import re
from typing import Any, TypeVar

from langgraph.pregel import Pregel

from flowserve.integrations.langchain.carrier import Carrier
from flowserve.integrations.langgraph.announce import Announcer

Graph = TypeVar("Graph", bound=Pregel[Any, Any, Any, Any])


def attach(
    graph: Graph,
    *,
    name: str | None = None,
    session: str | None = None,
    priority: int = 0,
    announce: "Announcer | str | None" = None,
) -> Graph:
    """The same graph with a `Carrier` among its callbacks.

    Every call of a model that carries (`ChatFlowServe`, for FlowServe, vLLM, Dynamo and more by its `dialect`) says thread, run, node,
    step, what triggered it and its place in a fan-out, in words of its server; so does a call by hand with `**hints(...)`.

    name: of the program, the graph's own by default. session: whose calls belong together, by default the thread, else each run.
    priority: of all its calls, higher goes first, whatever the server's direction. announce: URL of a FlowServe server, with its
    `/v1`, or an `Announcer`: it is told, beside the run, of the graph and, where runs have no thread that may go on, of each end.
    Raises TypeError for what is no compiled graph.
    """
    if not isinstance(graph, Pregel):
        raise TypeError(f"attach(graph): expected a compiled graph (graph.compile()), got {type(graph).__name__}")
    announcer = Announcer(announce) if isinstance(announce, str) else announce
    program = re.sub(r"[^A-Za-z0-9_.-]+", "-", name or graph.get_name())
    if announcer is not None:
        announcer.declare(program, graph.get_graph())
    ended = announcer.ended if announcer is not None else None
    carrier = Carrier(session=session, program=program, priority=priority, ended=ended)
    attached: Graph = graph.with_config(callbacks=[carrier])
    return attached
