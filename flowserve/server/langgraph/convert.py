"""Between LangGraph's words and ours, once in each direction: assistants are workflows, values are inputs and results. No I/O.

Values of a thread are kept as a graph's channels are: what a run is not given it takes from there. A workflow without a parameter
`messages` takes a chat all the same: the last human message fills its one text parameter, and its result is appended as an answer.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from flowserve.graphs.plan import Node, Plan
from flowserve.ids import Seconds
from flowserve.runtime.run import Run
from flowserve.server.errors import BadRequest, Fault, fault_of
from flowserve.server.openai_convert import result_text, workflow_inputs
from flowserve.server.states import STATES

MESSAGES = "messages"
OUTPUT = "output"
"""Where a result stands that is no object."""
_HUMAN = ("human", "user")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is remembered of a run: for whom it was, and what it began with."""

    thread: str
    graph: str
    modes: tuple[str, ...]
    multitask: str
    before: dict[str, Any]
    """Values that it began with."""
    chat: bool
    """Its result is a message."""
    metadata: dict[str, Any] = field(default_factory=dict)


# --- assistants -------------------------------------------------------------------------------------------------------


def assistant_id(name: str) -> str:
    """The same for a name on every server; the name itself is taken too."""
    return str(uuid5(NAMESPACE_URL, f"flowserve:workflow:{name}"))


def assistant(plan: Plan, since: Seconds) -> dict[str, Any]:
    return {
        "assistant_id": assistant_id(plan.name),
        "graph_id": plan.name,
        "name": plan.name,
        "description": plan.description or None,
        "config": {},
        "context": {},
        "metadata": {"created_by": "system", "version": plan.digest},
        "version": 1,
        "created_at": moment(since),
        "updated_at": moment(since),
    }


def schemas(plan: Plan) -> dict[str, Any]:
    return {
        "graph_id": plan.name,
        "input_schema": plan.input,
        "output_schema": plan.output,
        "state_schema": {
            "type": "object",
            "properties": {**plan.input.get("properties", {}), **_output_properties(plan)},
        },
        "config_schema": None,
        "context_schema": None,
    }


def _output_properties(plan: Plan) -> dict[str, Any]:
    return dict(plan.output.get("properties", {})) if plan.output.get("type") == "object" else {OUTPUT: plan.output}


def graph(plan: Plan) -> dict[str, Any]:
    """The nodes of the workflow itself, without those inside maps and loops, between `__start__` and `__end__`."""
    nodes = [node for node in plan.nodes if node.block == 0]
    names = [node.name for node in nodes]
    ids = {node.id: node.name if names.count(node.name) == 1 else f"{node.name}:{node.id}" for node in nodes}
    edges: list[dict[str, Any]] = []
    read = set()
    for node in nodes:
        sources = [ids[dep] for dep in node.deps if dep in ids]
        read.update(sources)
        edges += [_edge(source, ids[node.id]) for source in sources or ["__start__"]]
    edges += [_edge(name, "__end__") for name in ids.values() if name not in read]
    shown = [{"id": ids[node.id], "type": "runnable", "data": _about(node)} for node in nodes]
    ends = [{"id": name, "type": "schema", "data": name} for name in ("__start__", "__end__")]
    return {"nodes": [ends[0], *shown, ends[1]], "edges": edges}


def _edge(source: str, target: str) -> dict[str, Any]:
    return {"source": source, "target": target}


def _about(node: Node) -> dict[str, Any]:
    return {"id": [node.kind.name.lower()], "name": node.name}


# --- in ---------------------------------------------------------------------------------------------------------------


def begin(
    plan: Plan, given: dict[str, Any] | None, kept: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """(arguments of the workflow, values that it begins with, whether its result is a message).

    `kept`: values of the thread. Values that are no parameter are kept and not passed on, as channels are that a graph does not read.
    """
    given = given or {}
    properties: dict[str, Any] = plan.input.get("properties", {})
    values = {**kept, **given}
    if MESSAGES in given:
        values[MESSAGES] = [*_listed(kept.get(MESSAGES)), *_listed(given[MESSAGES])]
    arguments = {name: values[name] for name in properties if name in values}
    missing = [name for name in plan.input.get("required", ()) if name not in given]
    if MESSAGES in properties or MESSAGES not in given or not (missing or not arguments):
        return arguments, values, False
    text = next((said for message in reversed(values[MESSAGES]) if (said := _said(message)) is not None), None)
    others = {name: value for name, value in arguments.items() if name in given}
    try:
        return workflow_inputs(plan, text, others), values, True
    except BadRequest as error:
        raise BadRequest(422, "input_invalid", str(error), param=MESSAGES) from None


def _listed(messages: Any) -> list[Any]:
    return messages if isinstance(messages, list) else [] if messages is None else [messages]


def _said(message: Any) -> str | None:
    """Text of a human's message; None of another's."""
    if isinstance(message, str):
        return message
    if not isinstance(message, dict) or message.get("type", message.get("role")) not in _HUMAN:
        return message[1] if isinstance(message, list) and len(message) == 2 and message[0] in _HUMAN else None
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else None


# --- out --------------------------------------------------------------------------------------------------------------


def values_after(run: Run, asked: Asked) -> dict[str, Any]:
    """Values after a run: those that it began with, and its result if it has one."""
    snapshot = run.snapshot()
    if snapshot.status != "completed" or not run.settled:
        return asked.before
    result = snapshot.result
    named = result if isinstance(result, dict) else {} if asked.chat else {OUTPUT: result}
    values = {**asked.before, **named}
    if asked.chat:
        values[MESSAGES] = [*asked.before[MESSAGES], message(answer_id(run), result_text(result))]
    return values


def answer_id(run: Run) -> str:
    return f"msg_{run.id}"


def message(id: str, text: str, kind: str = "ai") -> dict[str, Any]:
    """As LangChain serialises one. `kind`: `ai`, or `AIMessageChunk` for a part."""
    return {
        "content": text,
        "additional_kwargs": {},
        "response_metadata": {},
        "type": kind,
        "name": None,
        "id": id,
        "tool_calls": [],
        "invalid_tool_calls": [],
        "usage_metadata": None,
    }


def run_out(run: Run, asked: Asked) -> dict[str, Any]:
    snapshot = run.snapshot()
    updated = snapshot.ended or snapshot.started or snapshot.created
    return {
        "run_id": run.id,
        "thread_id": asked.thread,
        "assistant_id": assistant_id(asked.graph),
        "created_at": moment(snapshot.created),
        "updated_at": moment(updated),
        "status": STATES[snapshot.status].langgraph,
        "metadata": {**asked.metadata, "graph_id": asked.graph},
        "multitask_strategy": asked.multitask,
        "kwargs": {"stream_mode": list(asked.modes)},
    }


def error_out(run: Run) -> dict[str, Any]:
    """How a run without a result is told inside an answer."""
    fault: Fault = fault_of(run.error) if run.error is not None else fault_of(RuntimeError())
    return {"error": fault.code, "message": fault.detail}


def moment(seconds: Seconds) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
