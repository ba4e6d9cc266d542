"""A Plan written as a spec: one versioned JSON document without code, numbers or import paths.

Inside a spec, nodes refer to each other by name and parameters by the name of their block. The digest of a
workflow is the hash of this document. Reading it back is codec.py.
"""

import dataclasses
import hashlib
import json
from typing import Any

from flowserve.graphs.plan import (
    SAMPLING,
    SLO,
    AgentSpec,
    Block,
    Const,
    DynamicSpec,
    ExitSpec,
    Get,
    Kind,
    LLMSpec,
    Node,
    Op,
    Output,
    Param,
    Plan,
    Retry,
    Source,
    ToolSpec,
)

API_VERSION = "flowserve/v1"


def canonical(document: Any) -> str:
    """The one JSON text of a document: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(plan: Plan) -> str:
    """sha256 (hex) of the canonical spec."""
    return hashlib.sha256(canonical(body_of(plan)).encode("ascii")).hexdigest()


def encode(plan: Plan) -> dict[str, Any]:
    """The spec of a plan, its own hash included as `version`."""
    return {**body_of(plan), "version": plan.digest}


def body_of(plan: Plan) -> dict[str, Any]:
    """The spec without its hash."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Workflow",
        "name": plan.name,
        "description": plan.description,
        "slo": _slo(plan.slo),
        **({"budget": budget} if (budget := _without_none(dataclasses.asdict(plan.budget))) else {}),
        "input": plan.input,
        "output": plan.output,
        "llms": {spec.name: _llm(spec) for spec in plan.llms},
        "tools": {spec.name: _tool(spec) for spec in plan.tools},
        "agents": {spec.name: _agent(spec, plan) for spec in plan.agents},
        "dynamics": {spec.name: _dynamic(spec) for spec in plan.dynamics},
        "body": _block(plan, plan.blocks[0]),
    }


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value is not None}


def _slo(slo: SLO) -> dict[str, Any]:
    """`binding` only where it is said: specs that do not know it keep their version."""
    return {key: value for key, value in _without_none(dataclasses.asdict(slo)).items() if value is not False}


def _llm(spec: LLMSpec) -> dict[str, Any]:
    defaults = {f.name: f.default for f in dataclasses.fields(LLMSpec)}
    found: dict[str, Any] = {k: getattr(spec, k) for k in SAMPLING if k != "stop" and getattr(spec, k) != defaults[k]}
    if spec.stop:
        found["stop"] = list(spec.stop)
    if spec.exit is not None:
        found["exit"] = exit_data(spec.exit)
    if spec.output is not None:
        found["output"] = spec.output
    prompt = {"user": spec.template.source, "system": spec.template.system_source, "history": spec.template.history}
    return {**found, "params": spec.params, "prompt": {k: v for k, v in prompt.items() if v}}


def exit_data(exit: ExitSpec) -> dict[str, Any]:
    """What differs from the defaults, as a spec says it."""
    fields = dataclasses.fields(ExitSpec)
    found = {f.name: getattr(exit, f.name) for f in fields if getattr(exit, f.name) != f.default}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def _tool(spec: ToolSpec) -> dict[str, Any]:
    return {"description": spec.description, "params": spec.params, "returns": spec.returns, "effects": spec.effects}


def _agent(spec: AgentSpec, plan: Plan) -> dict[str, Any]:
    tools = [plan.tools[i].name for i in spec.tools]
    return {"llm": _llm(spec.llm), "tools": tools, "max_parallel_tools": spec.max_parallel_tools}


def _dynamic(spec: DynamicSpec) -> dict[str, Any]:
    return _without_none({"params": spec.params, "returns": spec.returns, "callees": list(spec.callees)})


def _block(plan: Plan, block: Block) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": block.name,
        "params": list(block.params),
        "nodes": [_node(plan, plan.nodes[i]) for i in block.nodes],
        "result": _source(plan, block, block.result),
    }
    if block.until is not None:
        found["until"] = _source(plan, block, block.until)
    return found


def _node(plan: Plan, node: Node) -> dict[str, Any]:
    block = plan.blocks[node.block]
    found: dict[str, Any] = {
        "name": node.name,
        "kind": node.kind.name.lower(),
        "args": {arg.name: _source(plan, block, arg.source) for arg in node.args},
    }
    if len(node.args) > 1 and node.kind == Kind.MAP:
        found["order"] = [arg.name for arg in node.args]
    found |= _target(plan, node)
    if node.bodies:
        found["bodies"] = [_block(plan, plan.blocks[b]) for b in node.bodies]
    if node.kind in (Kind.MAP, Kind.SAMPLE, Kind.LOOP, Kind.AGENT, Kind.DYNAMIC, Kind.RACE):
        found["limit"] = node.limit
    if node.concurrency:
        found["concurrency"] = node.concurrency
    if node.retry != Retry():
        found["retry"] = {**dataclasses.asdict(node.retry), "on": list(node.retry.on)}
    if node.timeout_s is not None:
        found["timeout_s"] = node.timeout_s
    if node.cache:
        found["cache"] = True
    if node.degrade is not None:
        found["degrade"] = dataclasses.asdict(node.degrade)
    if node.streams is not None:
        found["streams"] = plan.nodes[node.streams].name
    return found


def _target(plan: Plan, node: Node) -> dict[str, Any]:
    match node.kind:
        case Kind.LLM:
            return {"uses": plan.llms[node.target].name}
        case Kind.TOOL:
            return {"uses": plan.tools[node.target].name}
        case Kind.AGENT:
            return {"uses": plan.agents[node.target].name}
        case Kind.DYNAMIC:
            return {"uses": plan.dynamics[node.target].name}
        case Kind.SEARCH:
            search = plan.searches[node.target]
            asked = {"where": dict(search.where) or None, "rerank": search.rerank or None}
            return {"index": search.index, **_without_none(asked)}
        case Kind.SAMPLE:
            spec = plan.samples[node.target]
            told = {"vote": spec.vote, "rule": spec.rule, "rule_args": dict(spec.rule_args), "wave": spec.wave}
            return {"sample": _without_none(told)}
        case _:
            return {}


def _source(plan: Plan, block: Block, source: Source) -> dict[str, Any]:
    match source:
        case Const(index):
            return {"const": plan.consts[index]}
        case Param(owner, index):
            home = plan.blocks[owner]
            name = {"param": home.params[index]}
            return name if owner == block.id else {**name, "of": home.name}
        case Output(node):
            return {"output": plan.nodes[node].name}
        case Get(of, key):
            return {"get": _source(plan, block, of), "key": key}
        case Op(name, args):
            return {"op": name, "args": [_source(plan, block, a) for a in args]}
