"""Native door, workflows: what is served, its shapes and its picture; and specs that clients bring.

A spec is data: it may only name tools that this process knows. One that a client brought belongs to its tenant, and
nothing that a client brings replaces what the operator serves.
"""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query
from starlette.responses import Response

from flowserve.errors import GraphError, Problem
from flowserve.graphs.codec import from_spec
from flowserve.graphs.draw import Drawing
from flowserve.graphs.lint import lint
from flowserve.graphs.plan import LLMSpec
from flowserve.graphs.program import Program
from flowserve.server import schemas as s
from flowserve.server.convert import graph_out, problem_out, workflow_out, workflow_summary
from flowserve.server.door import Door
from flowserve.server.errors import BadRequest, declared
from flowserve.server.routes import GuardedRoute, Tenant
from flowserve.server.wire import JSON

_PICTURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
Spec = Annotated[
    dict[str, Any],
    Body(description="A workflow as JSON without code: what `flowserve draw --format json` and `wf.spec()` give."),
]


class Workflows:
    """Endpoints of workflows."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def page(self, tenant: Tenant) -> Response:
        """All workflows, by name."""
        return JSON(
            {
                "object": "list",
                "data": [workflow_summary(program.plan) for program in self._door.programs(tenant).values()],
            }
        )

    async def detail(self, name: str, tenant: Tenant) -> Response:
        """One workflow."""
        return JSON(workflow_out(self._door.program(name, tenant).plan))

    async def schema(self, name: str, tenant: Tenant) -> Response:
        """JSON Schemas of what goes in and what comes out."""
        plan = self._door.program(name, tenant).plan
        return JSON({"input": plan.input, "output": plan.output})

    async def graph(
        self, name: str, tenant: Tenant, format: Annotated[Literal["json", "mermaid", "svg"], Query()] = "json"
    ) -> Response:
        """The compiled graph, as data or as a picture."""
        plan = self._door.program(name, tenant).plan
        if format == "json":
            return JSON(graph_out(plan))
        if format == "mermaid":
            return Response(await asyncio.to_thread(lambda: Drawing(plan).mermaid), media_type="text/plain")
        picture = await asyncio.to_thread(lambda: Drawing(plan).svg)
        return Response(picture, media_type="image/svg+xml", headers={"content-security-policy": _PICTURE_POLICY})

    async def put(self, name: str, spec: Spec, tenant: Tenant) -> Response:
        """Serve a spec under its name. 201 when it is new, 200 when it takes the place of one that this tenant brought."""
        program = await asyncio.to_thread(self._read, spec)
        if program.name != name:
            raise BadRequest(
                422, "name_mismatch", f"expected a spec named '{name[:100]}' at this path, got '{program.name[:100]}'"
            )
        await asyncio.to_thread(lambda: program.rewritten)  # here, so that the first run does not hold up the loop
        new = self._door.adopt(program, tenant)
        return JSON(workflow_out(program.plan), 201 if new else 200, {"location": f"/v1/workflows/{name}"})

    async def check(self, spec: Spec, tenant: Tenant) -> Response:
        """Whether a spec could be served: all that is wrong with it, and what could be better. Serves nothing."""
        try:
            program = await asyncio.to_thread(self._read, spec)
        except GraphError as error:
            problems = [problem_out(problem) for problem in error.problems]
            return JSON({"ok": False, "name": error.name, "version": None, "problems": problems, "advice": []})
        advice = [problem_out(problem) for problem in await asyncio.to_thread(lint, program.plan)]
        return JSON(
            {"ok": True, "name": program.name, "version": program.plan.digest, "problems": [], "advice": advice}
        )

    def _read(self, spec: dict[str, Any]) -> Program:
        program = from_spec(spec, self._door.tools, self._door.dynamics)
        foreign = [_no_pattern(llm) for llm in program.plan.llms if llm.regex is not None or llm.grammar is not None]
        if foreign:
            raise GraphError(program.name, foreign)
        return program


def _no_pattern(llm: LLMSpec) -> Problem:
    """Patterns are compiled by the engine that everybody shares, and some take for ever."""
    came = "regex" if llm.regex is not None else "grammar"
    return Problem(llm.name, "no pattern in a spec that a client brings", f"{came}=", "Use an output schema instead.")


def router(door: Door) -> APIRouter:
    """Routes of workflows."""
    workflows = Workflows(door)
    routes = APIRouter(route_class=GuardedRoute, tags=["workflows"])
    routes.add_api_route(
        "/v1/workflows",
        workflows.page,
        methods=["GET"],
        operation_id="listWorkflows",
        summary="List workflows",
        responses={200: {"model": s.WorkflowList, "description": "All of them."}, **declared((401, 422))},
    )
    routes.add_api_route(
        "/v1/workflows/{name}",
        workflows.detail,
        methods=["GET"],
        operation_id="getWorkflow",
        summary="Look at a workflow",
        responses={200: {"model": s.WorkflowOut, "description": "The workflow."}, **declared((401, 404, 422))},
    )
    routes.add_api_route(
        "/v1/workflows/{name}/schema",
        workflows.schema,
        methods=["GET"],
        operation_id="getSchema",
        summary="Input and output of a workflow",
        responses={200: {"model": s.SchemaOut, "description": "JSON Schemas."}, **declared((401, 404, 422))},
    )
    pictures = {
        "text/plain": {"schema": {"type": "string", "description": "Mermaid."}},
        "image/svg+xml": {"schema": {"type": "string"}},
    }
    routes.add_api_route(
        "/v1/workflows/{name}/graph",
        workflows.graph,
        methods=["GET"],
        operation_id="getGraph",
        summary="The graph of a workflow",
        responses={
            200: {"model": s.GraphOut, "description": "The graph.", "content": pictures},
            **declared((401, 404, 422)),
        },
    )
    body = (400, 401, 408, 413, 415, 422)
    routes.add_api_route(
        "/v1/workflows/{name}",
        workflows.put,
        methods=["PUT"],
        operation_id="putWorkflow",
        summary="Serve a spec",
        responses={
            200: {"model": s.WorkflowOut, "description": "It took the place of another version."},
            201: {"model": s.WorkflowOut, "description": "It is new."},
            **declared((*body, 409)),
        },
    )
    routes.add_api_route(
        "/v1/workflows:check",
        workflows.check,
        methods=["POST"],
        operation_id="checkWorkflow",
        summary="Check a spec",
        responses={200: {"model": s.CheckOut, "description": "What was found."}, **declared(body)},
    )
    return routes
