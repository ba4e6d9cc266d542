"""Native door, runs: start, wait, stream, look, cancel, forget."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import Response

from flowserve.errors import InputError, UnknownName
from flowserve.runtime.records import RunSnapshot
from flowserve.runtime.run import Run
from flowserve.server import schemas as s
from flowserve.server.convert import event_data, options_of, run_detail, run_result, run_summary
from flowserve.server.door import Door
from flowserve.server.errors import BadRequest, declared, fault_of, problem_body
from flowserve.server.routes import GuardedRoute, Tenant
from flowserve.server.sse import EventStream, error_frame, frame
from flowserve.server.strict_json import SAFE_INTEGER
from flowserve.server.wire import JSON, dumps

LONG_TABLE = 500
"""Nodes; a table of more is written in a thread."""
RECONNECT_MS = 2_000
"""How long an EventSource waits before it comes back."""
EVENT_STREAM = {
    "text/event-stream": {
        "schema": {
            "type": "string",
            "description": "Events: `id` is `seq`, `event` is `type`, `data` is JSON of the schema EventOut. "
            "Lines that begin with a colon keep the connection alive. The terminal event comes last.",
        }
    }
}
_LOCATION = {"Location": {"description": "The run.", "schema": {"type": "string"}}}


class Runs:
    """Endpoints of runs."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def create(self, name: str, body: s.RunRequest, request: Request, tenant: Tenant) -> Response:
        """Run a workflow.

        `wait` answers with the finished run (or with the error that it ended with), `stream` with its events as they
        come, `background` at once. `Location` names the run in all three.
        """
        mode = body.mode or ("stream" if wants_stream(request) else "wait")
        if mode == "background" and body.on_disconnect == "cancel":
            raise BadRequest(422, "request_invalid", "expected on_disconnect 'continue' with mode 'background'")
        try:
            run = await self._door.submit(name, body.input, options_of(body, tenant, stream=mode == "stream"))
        except InputError as error:
            raise InputError(str(error), [_in_body(where, what) for where, what in error.problems]) from None
        headers = {"location": f"/v1/runs/{run.id}"}
        if mode == "background":
            return JSON(run_summary(run.snapshot()), 202, headers)
        cancel = body.on_disconnect != "continue"
        if mode == "stream":
            return self._stream(run, 0, headers, cancel=cancel)
        if not await self._door.wait(run, request.receive):
            if cancel or self._door.stops.closing:
                run.cancel()
            raise BadRequest(503, "wait_ended", "the wait ended before the run did", retry_after_s=5.0)
        await self._door.outcome(run)
        return JSON(run_result(run.snapshot()), 200, headers)

    async def page(
        self,
        tenant: Tenant,
        workflow: Annotated[str | SkipJsonSchema[None], Query(max_length=200)] = None,
        status: Annotated[s.RunStatus | SkipJsonSchema[None], Query()] = None,
        after: Annotated[
            str | SkipJsonSchema[None], Query(max_length=100, description="`next` of the page before.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> Response:
        """Runs that are remembered, newest first."""
        runs = [run for run in self._door.runtime.runs(limit=SAFE_INTEGER) if run.tenant == tenant]
        if after is not None:
            place = next((i for i, run in enumerate(runs) if run.id == after), None)
            if place is None:
                raise UnknownName("run", after)
            runs = runs[place + 1 :]
        wanted = [
            run for run in runs if workflow in (None, run.program.plan.name) and status in (None, run.status.value)
        ]
        shown = wanted[:limit]
        more = len(wanted) > limit
        rows = []
        for run in shown:
            rows.append(run_summary(run.snapshot()))
            await asyncio.sleep(0)  # a snapshot goes through all nodes of its run
        return JSON(
            {
                "object": "list",
                "data": rows,
                "has_more": more,
                "next": shown[-1].id if more else None,
            }
        )

    async def detail(self, run_id: str, tenant: Tenant) -> Response:
        """A run as it stands: status, table of nodes, usage, timings."""
        return Response(await _detail(self._door.run(run_id, tenant).snapshot()), media_type="application/json")

    async def events(
        self,
        run_id: str,
        tenant: Tenant,
        after: Annotated[int, Query(ge=0, le=SAFE_INTEGER, description="Only events with a higher `seq`.")] = 0,
        snapshot: Annotated[
            Literal["true", "false"],
            Query(description="`true` sends the run as it stands first, then what comes after."),
        ] = "false",
        last_event_id: Annotated[
            Annotated[int, Field(ge=0, le=SAFE_INTEGER)] | SkipJsonSchema[None],
            Header(description="What an EventSource sends; wins over `after`."),
        ] = None,
    ) -> Response:
        """The events of a run, from any point on, until it ends.

        Leaving does not touch the run. 204 tells an EventSource that nothing comes after what it has.
        """
        run = self._door.run(run_id, tenant)
        start = after if last_event_id is None else last_event_id
        if run.done and start >= run.log.last_seq and snapshot == "false":
            return Response(status_code=204)
        first = b""
        if snapshot == "true":
            state = run.snapshot()
            start = max(start, state.last_seq)
            first = frame(await _detail(state), "run.snapshot", state.last_seq)
        return self._stream(run, start, {}, cancel=False, first=first)

    async def result(
        self,
        run_id: str,
        request: Request,
        tenant: Tenant,
        timeout: Annotated[float, Query(ge=0, le=60, description="Seconds to wait for the end.")] = 30.0,
    ) -> Response:
        """The result of a run, waiting for it: 202 when it takes longer, an error when it has none."""
        run = self._door.run(run_id, tenant)
        ended = await self._door.wait(run, request.receive, min(timeout, self._door.settings.max_poll_s))
        if not ended:
            return JSON(run_summary(run.snapshot()), 202, {"retry-after": "1"})
        await self._door.outcome(run)
        return JSON(run_result(run.snapshot()))

    async def cancel(self, run_id: str, tenant: Tenant) -> Response:
        """End a run now: calls at engines are aborted. Does nothing to a run that has ended (200)."""
        run = self._door.run(run_id, tenant)
        if run.done:
            return JSON(run_summary(run.snapshot()))
        run.cancel()
        shown = run_summary(run.snapshot())
        return JSON(shown if run.done else {**shown, "status": "cancelling"}, 202)

    async def forget(self, run_id: str, request: Request, tenant: Tenant) -> Response:
        """Forget a run and its events. One that is still going on is cancelled first."""
        run = self._door.run(run_id, tenant)
        run.cancel()
        if await self._door.wait(run, request.receive):
            self._door.runtime.forget(run.id)
        return Response(status_code=204)

    def _stream(
        self, run: Run, after: int, headers: dict[str, str], *, cancel: bool, first: bytes = b""
    ) -> EventStream:
        return EventStream(
            _frames(run, after, first),
            stops=self._door.stops,
            limits=self._door.limits,
            on_gone=run.cancel if cancel else lambda: None,
            on_error=lambda error: error_frame(problem_body(fault_of(error), "")),
            on_stop=frame(dumps({"run_id": run.id}), "reconnect"),
            on_end=self._door.take_stream(run),
            headers=headers,
            prelude=b"retry: %d\n\n" % RECONNECT_MS,
        )


async def _detail(run: RunSnapshot) -> bytes:
    """In a thread when the table is long."""
    if len(run.nodes) > LONG_TABLE:
        return await asyncio.to_thread(lambda: dumps(run_detail(run)))
    return dumps(run_detail(run))


async def _frames(run: Run, after: int, first: bytes) -> AsyncGenerator[bytes, None]:
    if first:
        yield first
    async for event in run.events(after):
        yield frame(event_data(event), event.type, event.seq)


def _in_body(where: str, what: str) -> tuple[str, str]:
    """The runtime points into the input (or at an override); the client wants to know where in the body that is."""
    return (where if where.startswith("/overrides/") else f"/input{where}"), what


def wants_stream(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "").lower()


def router(door: Door) -> APIRouter:
    """Routes of runs."""
    runs = Runs(door)
    routes = APIRouter(route_class=GuardedRoute, tags=["runs"])
    result_doc = {"model": s.RunResult, "description": "The finished run."}
    failed = (409, 500, 502, 503, 504)
    routes.add_api_route(
        "/v1/workflows/{name}/runs",
        runs.create,
        methods=["POST"],
        operation_id="createRun",
        summary="Run a workflow",
        responses={
            200: {**result_doc, "content": EVENT_STREAM, "headers": _LOCATION},
            202: {"model": s.RunSummary, "description": "Started; `Location` names it.", "headers": _LOCATION},
            **declared((400, 401, 404, 408, 413, 415, 422, 429, *failed)),
        },
    )
    routes.add_api_route(
        "/v1/runs",
        runs.page,
        methods=["GET"],
        operation_id="listRuns",
        summary="List runs",
        responses={200: {"model": s.RunPage, "description": "One page."}, **declared((401, 404, 422))},
    )
    routes.add_api_route(
        "/v1/runs/{run_id}",
        runs.detail,
        methods=["GET"],
        operation_id="getRun",
        summary="Look at a run",
        responses={200: {"model": s.RunDetail, "description": "The run."}, **declared((401, 404, 422))},
    )
    routes.add_api_route(
        "/v1/runs/{run_id}/events",
        runs.events,
        methods=["GET"],
        operation_id="streamRun",
        summary="Follow a run",
        response_class=Response,
        responses={
            200: {"description": "The events.", "content": EVENT_STREAM},
            204: {"description": "The run has ended and there is nothing after that event."},
            **declared((401, 404, 422, 429)),
        },
    )
    routes.add_api_route(
        "/v1/runs/{run_id}/result",
        runs.result,
        methods=["GET"],
        operation_id="getResult",
        summary="Wait for a result",
        responses={
            200: result_doc,
            202: {"model": s.RunSummary, "description": "Not yet."},
            **declared((401, 404, 413, 422, 429, *failed)),
        },
    )
    routes.add_api_route(
        "/v1/runs/{run_id}/cancel",
        runs.cancel,
        methods=["POST"],
        operation_id="cancelRun",
        summary="Cancel a run",
        responses={
            200: {"model": s.RunSummary, "description": "It had ended already."},
            202: {"model": s.RunSummary, "description": "It is being cancelled."},
            **declared((401, 404, 422)),
        },
    )
    routes.add_api_route(
        "/v1/runs/{run_id}",
        runs.forget,
        methods=["DELETE"],
        operation_id="forgetRun",
        summary="Forget a run",
        status_code=204,
        response_class=Response,
        responses=declared((401, 404, 422)),
    )
    return routes
