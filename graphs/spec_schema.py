"""The JSON Schema of a workflow spec (`flowserve/v1`), for editors, the server's door and codec.py."""

from typing import Any

from flowserve.graphs.declaration import MAX_NODES, OPS
from flowserve.graphs.exits import ANSWERS, DELIVERIES, MEANS, RULES
from flowserve.graphs.plan import Kind
from flowserve.graphs.retrieving import MODES, MOST_EVERY

NAME = {"type": "string", "minLength": 1, "maxLength": 400}
SECONDS = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e9}
TOKENS = {"type": "integer", "minimum": 1, "maximum": 10**15}
MONEY = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e15}
COUNT = {"type": "integer", "minimum": 1, "maximum": 1_000_000}
OBJECT_SCHEMA = {"type": "object"}


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


EXIT = _object(
    ("answer",),
    answer={"enum": list(ANSWERS)},
    rule={"enum": list(RULES)},
    deliver={"enum": list(DELIVERIES)},
    trial={"type": "string", "minLength": 1, "maxLength": 2_000},
    at={"type": "string", "minLength": 1, "maxLength": 100},
    think={
        "type": ["array", "null"],
        "items": {"type": "string", "minLength": 1, "maxLength": 100},
        "minItems": 2,
        "maxItems": 2,
    },
    budget={"type": ["integer", "null"], "minimum": 1, "maximum": 1_000_000},
    mean={"enum": list(MEANS)},
    skip={"type": "integer", "minimum": 0, "maximum": 100},
    must_close={"type": "boolean"},
    task={"type": "string", "maxLength": 200},
)

_LLM = _object(
    ("params", "prompt"),
    model={"type": ["string", "null"]},
    max_tokens=COUNT,
    temperature={"type": "number", "minimum": 0, "maximum": 10},
    top_p={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    top_k={"type": "integer", "minimum": 0, "maximum": 1_000_000},
    seed={"type": ["integer", "null"], "minimum": -(2**63), "maximum": 2**63 - 1},
    stop={"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 16},
    quality={"enum": ["exact", "balanced", "fast"]},
    reuse={"enum": ["exact", "balanced", "fast", None]},
    stream={"type": "boolean"},
    regex={"type": ["string", "null"], "minLength": 1, "maxLength": 10_000},
    grammar={"type": ["string", "null"], "minLength": 1, "maxLength": 100_000},
    thinking_budget={"type": ["integer", "null"], "minimum": 0, "maximum": 1_000_000},
    on_loss={"enum": ["restart", "continue", "fail", None]},
    any_order={"type": ["string", "null"], "minLength": 1, "maxLength": 400},
    exit={"anyOf": [{"type": "null"}, EXIT]},
    retrieve_every={"type": ["integer", "null"], "minimum": 1, "maximum": MOST_EVERY},
    retrieve_from={"type": ["string", "null"], "minLength": 1, "maxLength": 200},
    retrieve_mode={"enum": [*MODES, None]},
    params=OBJECT_SCHEMA,
    output=OBJECT_SCHEMA,
    prompt=_object(user={"type": "string"}, system={"type": "string"}, history=NAME),
)

_EXPRESSION = {
    "type": "object",
    "oneOf": [
        _object(("const",), const={}),
        _object(("param",), param=NAME, of=NAME),
        _object(("output",), output=NAME),
        _object(("get", "key"), get={"$ref": "#/$defs/expression"}, key={"type": ["string", "integer"]}),
        _object(
            ("op", "args"),
            op={"enum": sorted(OPS)},
            args={"type": "array", "items": {"$ref": "#/$defs/expression"}, "maxItems": 10_000},
        ),
    ],
}

_NODE = _object(
    ("name", "kind", "args"),
    name=NAME,
    kind={"enum": [kind.name.lower() for kind in Kind]},
    args={"type": "object", "additionalProperties": {"$ref": "#/$defs/expression"}, "maxProperties": 1_000},
    order={"type": "array", "items": NAME},
    uses=NAME,
    index={"type": "string", "minLength": 1, "maxLength": 200},
    rerank={"type": "integer", "minimum": 1, "maximum": 1000},
    where={"type": "object", "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 2048}},
    sample=_object(
        vote={"type": "string", "maxLength": 200},
        rule=NAME,
        rule_args={"type": "object", "additionalProperties": {"type": "number"}, "maxProperties": 20},
        wave={"type": "integer", "minimum": 0, "maximum": 1_000_000},
    ),
    bodies={"type": "array", "items": {"$ref": "#/$defs/block"}, "maxItems": 1_000},
    limit=COUNT,
    concurrency=COUNT,
    retry=_object(
        attempts={"type": "integer", "minimum": 1, "maximum": 101},
        backoff_s={"type": "number", "minimum": 0, "maximum": 1e6},
        max_backoff_s={"type": "number", "minimum": 0, "maximum": 1e6},
        on={"type": "array", "items": {"type": "string"}, "maxItems": 50},
    ),
    timeout_s=SECONDS,
    cache={"type": "boolean"},
    degrade=_object(
        ("least", "harm"),
        least={"type": "integer", "minimum": 0, "maximum": 1_000_000},
        harm={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    ),
)

_BLOCK = _object(
    ("name", "params", "nodes", "result"),
    name=NAME,
    params={"type": "array", "items": NAME, "uniqueItems": True, "maxItems": 1_000},
    nodes={"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": MAX_NODES},
    result={"$ref": "#/$defs/expression"},
    until={"$ref": "#/$defs/expression"},
)


def _table(name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": {"$ref": f"#/$defs/{name}"},
        "propertyNames": NAME,
        "maxProperties": MAX_NODES,
    }


SPEC_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "FlowServe workflow",
    **_object(
        ("apiVersion", "kind", "name", "input", "output", "body"),
        apiVersion={"const": "flowserve/v1"},
        kind={"const": "Workflow"},
        version={"type": "string"},
        name=NAME,
        description={"type": "string", "maxLength": 100_000},
        budget=_object(tokens=TOKENS, seconds=SECONDS, money=MONEY),
        slo=_object(
            ttft=SECONDS,
            e2e=SECONDS,
            tpot=SECONDS,
            tier={"enum": ["interactive", "standard", "batch"]},
            binding={"type": "boolean"},
        ),
        input=OBJECT_SCHEMA,
        output=OBJECT_SCHEMA,
        llms=_table("llm"),
        tools=_table("tool"),
        agents=_table("agent"),
        dynamics=_table("dynamic"),
        body={"$ref": "#/$defs/block"},
    ),
    "$defs": {
        "expression": _EXPRESSION,
        "node": _NODE,
        "block": _BLOCK,
        "llm": _LLM,
        "tool": _object(
            ("params", "returns"),
            description={"type": "string"},
            params=OBJECT_SCHEMA,
            returns=OBJECT_SCHEMA,
            effects={"type": "boolean"},
        ),
        "agent": _object(
            ("llm", "tools"),
            llm={"$ref": "#/$defs/llm"},
            tools={"type": "array", "items": NAME, "uniqueItems": True, "maxItems": 1_000},
            max_parallel_tools=COUNT,
        ),
        "dynamic": _object(
            ("params", "callees"),
            params=OBJECT_SCHEMA,
            returns=OBJECT_SCHEMA,
            callees={"type": "array", "items": NAME, "uniqueItems": True, "maxItems": 1_000},
        ),
    },
}
