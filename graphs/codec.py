"""Specs read back into Programs, and Programs written as specs.

A spec comes from outside and is trusted with nothing: it is measured, checked against its JSON Schema, then
against the tools of this process, then built into a Declaration and compiled as a traced workflow is. Whatever
is wrong gives a GraphError with every problem that could be found.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from flowserve.errors import GraphError, Problem
from flowserve.graphs.compile import compile_declaration
from flowserve.graphs.declaration import MAX_BLOCK_DEPTH, MAX_EXPR_DEPTH, Declaration
from flowserve.graphs.decode import Decoder
from flowserve.graphs.dynamic import DynamicNode
from flowserve.graphs.encode import encode
from flowserve.graphs.plan import SLO, Budget
from flowserve.graphs.program import Program, Shapes
from flowserve.graphs.shapes import SchemaShape, Shape, TypedShape, pointer
from flowserve.graphs.signature import Signature
from flowserve.graphs.tool import ToolNode

MAX_VALUES = 400_000
"""Values in a spec, all told."""
MAX_DEPTH = 2 * MAX_EXPR_DEPTH + 4 * MAX_BLOCK_DEPTH
MAX_REPORTED = 50


def to_spec(program: Program) -> dict[str, Any]:
    """The program as a versioned JSON document; `version` is the hash of the rest."""
    return encode(program.plan)


def from_spec(
    spec: Any,
    tools: Mapping[str, ToolNode[..., Any]] | Iterable[ToolNode[..., Any]] = (),
    dynamics: Mapping[str, DynamicNode[..., Any]] | Iterable[DynamicNode[..., Any]] = (),
) -> Program:
    """The Program of a spec. `tools` and `dynamics` are what this process offers. Raises GraphError only."""
    name = str(spec.get("name", "?"))[:100] if isinstance(spec, dict) else "?"
    problems = _misshapen(spec)
    if problems:
        raise GraphError(name, problems)
    known_tools, known_dynamics = _by_name(tools), _by_name(dynamics)
    decoder = Decoder(spec, known_tools, known_dynamics)
    declaration = decoder.declaration(_slo(spec.get("slo", {})), _budget(spec.get("budget", {})))
    if decoder.problems:
        raise GraphError(name, list(decoder.problems)[:MAX_REPORTED])
    plan = compile_declaration(declaration)
    if "version" in spec and spec["version"] != plan.digest:
        came = f"{spec['version'][:20]}, while its content has {plan.digest[:20]}"
        remedy = "The spec was changed after it was written: remove `version`, or take the original."
        raise GraphError(name, [Problem(name, "a version that is the hash of the content", came, remedy)])
    functions = {t.name: known_tools[t.name].fn for t in plan.tools}
    used = {d.name: known_dynamics[d.name] for d in plan.dynamics}
    signatures = {t.name: known_tools[t.name].signature for t in plan.tools} | {n: d.signature for n, d in used.items()}
    shapes = _shapes(declaration, signatures, decoder.outputs)
    return Program(plan, functions, {n: d.fn for n, d in used.items()}, shapes)


def _by_name(registry: Any) -> dict[str, Any]:
    if isinstance(registry, Mapping):
        return dict(registry)
    return {node.signature.name: node for node in registry}


def _slo(data: dict[str, Any]) -> SLO:
    times = {key: float(data[key]) for key in ("ttft", "e2e", "tpot") if key in data}
    return SLO(**times, tier=data.get("tier", "standard"), binding=data.get("binding", False))


def _budget(data: dict[str, Any]) -> Budget:
    amounts = {key: float(data[key]) for key in ("seconds", "money") if key in data}
    return Budget(tokens=data.get("tokens"), **amounts)


def _shapes(
    declaration: Declaration, signatures: Mapping[str, Signature], models: Mapping[str, dict[str, Any] | None]
) -> Shapes:
    from flowserve.graphs.shapes import property_shapes

    properties = declaration.input.get("properties", {})
    return Shapes(
        inputs=property_shapes(declaration.input),
        defaults={n: p["default"] for n, p in properties.items() if isinstance(p, dict) and "default" in p},
        models={n: None if schema is None else _model_shape(schema) for n, schema in models.items()},
        params={n: {p.name: TypedShape(p.type) for p in s.params} for n, s in signatures.items()},
        returns={n: TypedShape(s.returns) for n, s in signatures.items()},
        optional={n: {p.name: p.default for p in s.params if not p.required} for n, s in signatures.items()},
    )


def _model_shape(schema: dict[str, Any]) -> Shape:
    return SchemaShape(schema)


# --- is it a spec at all? -----------------------------------------------------------------------------------


def _misshapen(spec: Any) -> list[Problem]:
    problems = _unmeasured(spec)
    if problems:
        return problems
    from jsonschema import Draft202012Validator

    from flowserve.graphs.spec_schema import SPEC_SCHEMA

    found: list[Problem] = []
    for error in Draft202012Validator(SPEC_SCHEMA).iter_errors(spec):
        deepest = _deepest(error)
        where = pointer([str(p) for p in deepest.absolute_path]) or "/"
        remedy = "Correct the document; `flowserve draw --format json` writes a valid one for every workflow."
        found.append(Problem(where, _expected(deepest), _came(deepest), remedy))
        if len(found) >= MAX_REPORTED:
            break
    return found


def _deepest(error: Any) -> Any:
    """Of a `oneOf`, the complaint of the alternative that was meant: the one that went furthest."""
    while error.context:
        error = max(error.context, key=lambda e: (len(e.absolute_path), e.validator != "required", -e.schema_path[0]))
    return error


def _expected(error: Any) -> str:
    if error.validator in (
        "required",
        "additionalProperties",
        "type",
        "enum",
        "const",
        "minimum",
        "maximum",
        "maxItems",
    ):
        return f"{error.validator} {str(error.validator_value)[:120]}"
    return f"what '{error.validator}' asks"


def _came(error: Any) -> str:
    return f"{len(error.instance):,} items" if error.validator in ("maxItems", "maxProperties") else error.message[:200]


def _unmeasured(spec: Any) -> list[Problem]:
    """Bounds that must hold before anything recursive may look at the document."""
    if not isinstance(spec, dict):
        return [Problem("/", "a JSON object", type(spec).__name__, "Give the document as written by to_spec.")]
    count = 0
    stack: list[tuple[Any, int]] = [(spec, 1)]
    while stack:
        value, level = stack.pop()
        count += 1
        if count > MAX_VALUES or level > MAX_DEPTH:
            came = "a larger one" if count > MAX_VALUES else "deeper nesting"
            expected = f"a document of at most {MAX_VALUES:,} values, nested at most {MAX_DEPTH} deep"
            return [Problem("/", expected, came, "Split the workflow.")]
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                return [Problem("/", "objects with strings as keys", "another key", "Give plain JSON.")]
            stack += [(v, level + 1) for v in value.values()]
        elif isinstance(value, list):
            stack += [(v, level + 1) for v in value]
        elif isinstance(value, float) and (not math.isfinite(value)):
            return [Problem("/", "finite numbers", repr(value), "Give plain JSON.")]
        elif not isinstance(value, str | int | float | None):
            return [Problem("/", "plain JSON", type(value).__name__, "Give plain JSON.")]
    return []
