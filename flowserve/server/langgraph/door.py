"""The LangGraph door: assistants, threads and runs as LangGraph's SDK speaks them, so that `langgraph_sdk` and `RemoteGraph` work
against workflows as they are. A workflow is an assistant, by its name or by the id that is made of it.
"""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from flowserve.errors import UnknownName
from flowserve.graphs.program import Program
from flowserve.ids import RunId, Seconds
from flowserve.runtime.records import SubmitOptions
from flowserve.runtime.run import Run
from flowserve.server.beside import Beside
from flowserve.server.door import Door
from flowserve.server.errors import BadRequest, fault_of, problem_body
from flowserve.server.langgraph import bodies as b
from flowserve.server.langgraph import convert as c
from flowserve.server.langgraph.convert import Asked
from flowserve.server.langgraph.stream import frames
from flowserve.server.langgraph.threads import Thread, Threads, busy
from flowserve.server.routes import GuardedRoute, Tenant
from flowserve.server.sse import EventStream, error_frame
from flowserve.server.states import STATES
from flowserve.server.wire import JSON

Limit = Annotated[int, Query(ge=1, le=1_000)]
Offset = Annotated[int, Query(ge=0)]


class LangGraph:
    """Endpoints of the door."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._since = door.runtime.clock.wall()
        self._threads = Threads()
        self._asked: Beside[Asked] = Beside(door.runtime)
        self._open: dict[RunId, Thread] = {}
        """Runs whose end was not written into their threads yet."""
        self._settling: set[asyncio.Task[None]] = set()

    # --- assistants ---------------------------------------------------------------------------------------------------

    async def search_assistants(self, body: b.Search, tenant: Tenant) -> Response:
        """Workflows, by name."""
        found = self._assistants(body, tenant)
        return JSON(found[body.offset : body.offset + body.limit])

    async def count_assistants(self, body: b.Search, tenant: Tenant) -> Response:
        return JSON(len(self._assistants(body, tenant)))

    def _assistants(self, body: b.Search, tenant: str) -> list[dict[str, Any]]:
        every = [c.assistant(program.plan, self._since) for program in self._door.programs(tenant).values()]
        return [
            found
            for found in every
            if body.graph_id in (None, found["graph_id"])
            and (body.name or "").lower() in found["name"].lower()
            and _within(body.metadata, found["metadata"])
        ]

    async def assistant(self, assistant_id: str, tenant: Tenant) -> Response:
        return JSON(c.assistant(self._program(assistant_id, tenant).plan, self._since))

    async def graph(self, assistant_id: str, tenant: Tenant, xray: Annotated[str, Query()] = "false") -> Response:
        """The graph of a workflow. `xray` changes nothing: bodies of maps and loops are not shown."""
        return JSON(c.graph(self._program(assistant_id, tenant).plan))

    async def schemas(self, assistant_id: str, tenant: Tenant) -> Response:
        return JSON(c.schemas(self._program(assistant_id, tenant).plan))

    async def subgraphs(self, assistant_id: str, tenant: Tenant, recurse: Annotated[str, Query()] = "") -> Response:
        """None: a workflow that another one calls is a part of it."""
        self._program(assistant_id, tenant)
        return JSON({})

    def _program(self, assistant_id: str, tenant: str) -> Program:
        programs = self._door.programs(tenant)
        if assistant_id in programs:
            return programs[assistant_id]
        for name, program in programs.items():
            if c.assistant_id(name) == assistant_id:
                return program
        raise UnknownName("assistant", assistant_id[:100], list(programs))

    # --- threads ------------------------------------------------------------------------------------------------------

    async def create_thread(self, body: b.ThreadIn, tenant: Tenant) -> Response:
        if body.supersteps:
            raise BadRequest(422, "request_invalid", "'supersteps' is not supported here; put values in by /state")
        known = self._threads.find(tenant, body.thread_id) if body.thread_id is not None else None
        if known is not None and body.if_exists != "do_nothing":
            raise BadRequest(409, "thread_exists", f"there is a thread '{known.id[:100]}' already")
        thread = known or self._threads.add(tenant, self._now(), body.thread_id, body.metadata)
        return JSON(thread.data())

    async def search_threads(self, body: b.Search, tenant: Tenant) -> Response:
        found = self._find_threads(body, tenant)
        return JSON([thread.data() for thread in found[body.offset : body.offset + body.limit]])

    async def count_threads(self, body: b.Search, tenant: Tenant) -> Response:
        return JSON(len(self._find_threads(body, tenant)))

    def _find_threads(self, body: b.Search, tenant: str) -> list[Thread]:
        return [
            thread
            for thread in self._threads.of(tenant)
            if (body.ids is None or thread.id in body.ids)
            and body.status in (None, thread.status)
            and _within(body.metadata, thread.metadata)
            and _within(body.values, thread.values)
        ]

    async def thread(self, thread_id: str, tenant: Tenant, include: Annotated[str, Query()] = "") -> Response:
        return JSON(self._threads.get(tenant, thread_id).data())

    async def update_thread(self, thread_id: str, body: b.ThreadPatch, tenant: Tenant) -> Response:
        thread = self._threads.get(tenant, thread_id)
        thread.metadata.update(body.metadata)
        return JSON(thread.data())

    async def delete_thread(self, thread_id: str, request: Request, tenant: Tenant) -> Response:
        """Forget a thread. Runs of it that go on are cancelled."""
        thread = self._threads.get(tenant, thread_id)
        self._threads.drop(thread)
        for run in self._live(thread):
            run.cancel()
        return Response(status_code=204)

    async def copy_thread(self, thread_id: str, tenant: Tenant) -> Response:
        """A new thread with the same values and history."""
        old = self._threads.get(tenant, thread_id)
        thread = self._threads.add(tenant, self._now(), None, old.metadata)
        thread.states = list(old.states)
        return JSON(thread.data())

    async def state(self, thread_id: str, tenant: Tenant, subgraphs: Annotated[str, Query()] = "false") -> Response:
        return JSON(self._threads.get(tenant, thread_id).state_data())

    async def state_at(
        self, thread_id: str, checkpoint_id: str, tenant: Tenant, subgraphs: Annotated[str, Query()] = "false"
    ) -> Response:
        """An earlier state."""
        return JSON(self._state(thread_id, checkpoint_id, tenant))

    async def state_of(self, thread_id: str, body: b.CheckpointIn, tenant: Tenant) -> Response:
        """The same, asked with a body; without an id the latest."""
        return JSON(self._state(thread_id, body.checkpoint.get("checkpoint_id"), tenant))

    def _state(self, thread_id: str, checkpoint_id: str | None, tenant: str) -> dict[str, Any]:
        thread = self._threads.get(tenant, thread_id)
        if checkpoint_id is None:
            return thread.state_data()
        for place, state in enumerate(thread.states):
            if state.id == checkpoint_id:
                return thread.state_data(place)
        raise UnknownName("checkpoint", str(checkpoint_id)[:100])

    async def update_state(self, thread_id: str, body: b.StateIn, tenant: Tenant) -> Response:
        """Put values into a thread; messages are appended."""
        thread = self._threads.get(tenant, thread_id)
        if thread.status == "busy":
            raise busy(thread)
        given = body.values or {}
        values = {**thread.values, **given}
        if c.MESSAGES in given:
            values[c.MESSAGES] = [*(thread.values.get(c.MESSAGES) or []), *given[c.MESSAGES]]
        return JSON({"checkpoint": thread.checkpoint(thread.add(values, self._now(), "update"))})

    async def history(self, thread_id: str, body: b.HistoryIn, tenant: Tenant) -> Response:
        """States, newest first."""
        thread = self._threads.get(tenant, thread_id)
        places = range(len(thread.states) - 1, -1, -1)
        return JSON([thread.state_data(place) for place in places[: body.limit]])

    # --- runs: beginning ----------------------------------------------------------------------------------------------

    async def create(self, body: b.RunIn, tenant: Tenant, thread_id: str | None = None) -> Response:
        """In the background."""
        run, asked = await self._start(body, tenant, thread_id, follows=False)
        return JSON(c.run_out(run, asked), headers=_places(run, asked, ""))

    async def create_many(self, body: list[b.RunIn], tenant: Tenant) -> Response:
        """Several in the background, each in a thread of its own."""
        begun = [await self._start(one, tenant, None, follows=False) for one in body]
        return JSON([c.run_out(run, asked) for run, asked in begun])

    async def wait(self, body: b.RunIn, request: Request, tenant: Tenant, thread_id: str | None = None) -> Response:
        """Values after it, or `__error__`."""
        run, asked = await self._start(body, tenant, thread_id, follows=True)
        return await self._join(run, asked, request, cancel=body.on_disconnect == "cancel")

    async def stream(self, body: b.RunIn, tenant: Tenant, thread_id: str | None = None) -> Response:
        """Its events."""
        run, asked = await self._start(body, tenant, thread_id, follows=True)
        return self._stream(run, asked, asked.modes, -1, cancel=body.on_disconnect == "cancel")

    async def _start(self, body: b.RunIn, tenant: str, thread_id: str | None, follows: bool) -> tuple[Run, Asked]:
        b.refuse_unsupported(body)
        program = self._program(body.assistant_id, tenant)
        thread = self._thread_for(body, tenant, thread_id)
        multitask = body.multitask_strategy or ("enqueue" if follows else "reject")
        await self._make_room(thread, multitask)
        arguments, values, chat = c.begin(program.plan, body.input, thread.values)
        metadata = body.metadata or {}
        options = SubmitOptions(
            tenant=tenant,
            session=thread.id,
            metadata={key: value[:512] for key, value in list(metadata.items())[:16] if isinstance(value, str)},
            stream=follows,
        )
        before, thread.status = thread.status, "busy"
        try:
            run = await self._door.submit(program.name, arguments, options)
        except BaseException:
            thread.status = before
            raise
        asked = Asked(thread.id, program.name, body.modes, multitask, values, chat, metadata)
        self._asked.keep(run.id, asked)
        self._open[run.id] = thread
        thread.runs.append(run.id)
        thread.metadata.setdefault("graph_id", program.name)
        task = asyncio.create_task(self._settle(run, asked))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return run, asked

    def _thread_for(self, body: b.RunIn, tenant: str, thread_id: str | None) -> Thread:
        if thread_id is None:
            thread = self._threads.add(tenant, self._now())
            thread.listed = False
            return thread
        known = self._threads.find(tenant, thread_id)
        if known is None and body.if_not_exists == "create":
            return self._threads.add(tenant, self._now(), thread_id)
        return known or self._threads.get(tenant, thread_id)

    async def _make_room(self, thread: Thread, strategy: str) -> None:
        while thread.status == "busy":
            live = self._live(thread)
            if strategy == "reject":
                raise busy(thread)
            for run in live:
                if strategy in ("interrupt", "rollback"):
                    run.cancel()
                    if strategy == "rollback":
                        self._roll_back(run, thread)
            for run in live:
                await run.wait()
                self._finish(run)
            if not live:
                await asyncio.sleep(0.01)  # another request is about to begin one

    async def _settle(self, run: Run, asked: Asked) -> None:
        await run.wait()
        self._finish(run)

    def _finish(self, run: Run) -> None:
        """Write the end of a run into its thread; once."""
        thread, asked = self._open.pop(run.id, None), self._asked.get(run.id)
        if thread is None or asked is None:
            return
        snapshot = run.snapshot()
        thread.add(c.values_after(run, asked), snapshot.ended or self._now(), "loop", run.id)
        ended = {"completed": "idle", "cancelled": "interrupted"}.get(snapshot.status, "error")
        thread.status = "busy" if self._live(thread) else ended

    def _roll_back(self, run: Run, thread: Thread) -> None:
        """As if it had never been: its end is not written."""
        self._open.pop(run.id, None)
        thread.runs.remove(run.id)
        if not self._live(thread):
            thread.status = "idle"

    def _live(self, thread: Thread) -> list[Run]:
        found = (self._remembered(id, thread.tenant) for id in thread.runs if id in self._open)
        return [run for run in found if run is not None]

    def _remembered(self, id: RunId, tenant: str) -> Run | None:
        """None: the runtime has forgotten it, of itself or at another door."""
        try:
            return self._door.run(id, tenant)
        except UnknownName:
            return None

    # --- runs: what became of them ------------------------------------------------------------------------------------

    async def runs(
        self,
        thread_id: str,
        tenant: Tenant,
        limit: Limit = 10,
        offset: Offset = 0,
        status: Annotated[str | None, Query()] = None,
    ) -> Response:
        """Runs of a thread, newest first."""
        thread = self._threads.get(tenant, thread_id)
        shown = []
        for id in reversed(thread.runs):
            asked, run = self._asked.get(id), self._remembered(id, tenant)
            if asked is not None and run is not None:
                shown.append(c.run_out(run, asked))
        found = [told for told in shown if status in (None, told["status"])]
        return JSON(found[offset : offset + limit])

    async def run(self, thread_id: str, run_id: str, tenant: Tenant) -> Response:
        return JSON(c.run_out(*self._known(thread_id, run_id, tenant)))

    async def join(self, thread_id: str, run_id: str, request: Request, tenant: Tenant) -> Response:
        """Values after it, once it has ended."""
        return await self._join(*self._known(thread_id, run_id, tenant), request, cancel=False)

    async def join_stream(
        self,
        thread_id: str,
        run_id: str,
        tenant: Tenant,
        stream_mode: Annotated[list[str] | None, Query()] = None,
        cancel_on_disconnect: Annotated[Literal["true", "false", "True", "False", "1", "0"], Query()] = "false",
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Its events from any of them on, in the modes that it was begun with or in others."""
        run, asked = self._known(thread_id, run_id, tenant)
        try:
            after = int(last_event_id) if last_event_id else -1
        except ValueError:
            raise BadRequest(422, "request_invalid", "expected a number in Last-Event-ID") from None
        cancel = cancel_on_disconnect in ("true", "True", "1")
        return self._stream(run, asked, stream_mode or asked.modes, after, cancel=cancel)

    async def cancel(
        self,
        thread_id: str,
        run_id: str,
        request: Request,
        tenant: Tenant,
        wait: Annotated[Literal["0", "1", "true", "false"], Query()] = "0",
        action: Annotated[Literal["interrupt", "rollback"], Query()] = "interrupt",
    ) -> Response:
        """End a run now. `rollback` forgets it besides, and its thread is as it was before."""
        run, _ = self._known(thread_id, run_id, tenant)
        await self._end(run, action, request if wait in ("1", "true") or action == "rollback" else None)
        return JSON({}, 202)

    async def cancel_many(
        self,
        body: b.CancelMany,
        request: Request,
        tenant: Tenant,
        action: Annotated[Literal["interrupt", "rollback"], Query()] = "interrupt",
    ) -> Response:
        """End those of these runs, or of all with a status, that go on."""
        chosen = [self._door.run(id, tenant) for id in self._open if self._is_meant(id, body, tenant)]
        for run in chosen:
            await self._end(run, action, request if action == "rollback" else None)
        return Response(status_code=204)

    def _is_meant(self, id: RunId, body: b.CancelMany, tenant: str) -> bool:
        thread = self._open[id]
        if thread.tenant != tenant or body.thread_id not in (None, thread.id):
            return False
        if body.run_ids is not None:
            return id in body.run_ids
        status = STATES[self._door.run(id, tenant).snapshot().status].langgraph
        return body.status in ("all", status)

    async def delete(self, thread_id: str, run_id: str, request: Request, tenant: Tenant) -> Response:
        """Forget a run; one that goes on is cancelled first. What it did to its thread stays."""
        run, asked = self._known(thread_id, run_id, tenant)
        await self._end(run, "interrupt", request)
        self._forget(run, self._threads.find(tenant, asked.thread))
        return Response(status_code=204)

    async def _end(self, run: Run, action: str, request: Request | None) -> None:
        thread = self._open.get(run.id)
        run.cancel()
        if action == "rollback" and thread is not None:
            self._roll_back(run, thread)
        if request is not None and await self._door.wait(run, request.receive):
            self._finish(run)
            if action == "rollback":
                self._forget(run, thread)

    def _forget(self, run: Run, thread: Thread | None) -> None:
        self._asked.drop(run.id)
        if thread is not None and run.id in thread.runs:
            thread.runs.remove(run.id)
        if run.done:
            self._door.runtime.forget(run.id)

    def _known(self, thread_id: str, run_id: str, tenant: str) -> tuple[Run, Asked]:
        run = self._door.run(run_id, tenant)
        asked = self._asked.get(run.id)
        if asked is None or asked.thread != thread_id:
            raise UnknownName("run", run_id[:100])
        return run, asked

    async def _join(self, run: Run, asked: Asked, request: Request, *, cancel: bool) -> Response:
        if not await self._door.wait(run, request.receive):
            if cancel or self._door.stops.closing:
                run.cancel()
            raise BadRequest(503, "wait_ended", "the wait ended before the run did", retry_after_s=5.0)
        self._finish(run)
        told = c.values_after(run, asked) if run.error is None else {"__error__": c.error_out(run)}
        return JSON(told, headers=_places(run, asked, "/join"))

    def _stream(self, run: Run, asked: Asked, modes: Any, after: int, *, cancel: bool) -> EventStream:
        unknown = [mode for mode in modes if mode not in b.MODES]
        if unknown:
            raise BadRequest(422, "request_invalid", f"expected stream_mode among {', '.join(b.MODES)}; got {unknown}")
        closing = fault_of(BadRequest(503, "closing", "the server is shutting down"))
        return EventStream(
            frames(run, asked, modes, after),
            stops=self._door.stops,
            limits=self._door.limits,
            on_gone=run.cancel if cancel else lambda: None,
            on_error=lambda error: error_frame(problem_body(fault_of(error), "")),
            on_stop=error_frame(problem_body(closing, "")),
            on_end=self._door.take_stream(run),
            headers=_places(run, asked, "/stream"),
        )

    def _now(self) -> Seconds:
        return self._door.runtime.clock.wall()


def _places(run: Run, asked: Asked, then: str) -> dict[str, str]:
    """Where the run is, and where a client that was cut off goes on."""
    here = f"/threads/{asked.thread}/runs/{run.id}"
    return {"content-location": here, "location": here + then}


def _within(wanted: dict[str, Any] | None, found: dict[str, Any]) -> bool:
    return all(found.get(key) == value for key, value in (wanted or {}).items())


def router(door: Door) -> APIRouter:
    """Routes of the door. They are no part of the OpenAPI document: they are LangGraph's, and described there."""
    here = LangGraph(door)
    routes = APIRouter(route_class=GuardedRoute, tags=["langgraph"])
    for method, path, endpoint in (
        ("POST", "/assistants/search", here.search_assistants),
        ("POST", "/assistants/count", here.count_assistants),
        ("GET", "/assistants/{assistant_id}", here.assistant),
        ("GET", "/assistants/{assistant_id}/graph", here.graph),
        ("GET", "/assistants/{assistant_id}/schemas", here.schemas),
        ("GET", "/assistants/{assistant_id}/subgraphs", here.subgraphs),
        ("POST", "/threads", here.create_thread),
        ("POST", "/threads/search", here.search_threads),
        ("POST", "/threads/count", here.count_threads),
        ("GET", "/threads/{thread_id}", here.thread),
        ("PATCH", "/threads/{thread_id}", here.update_thread),
        ("DELETE", "/threads/{thread_id}", here.delete_thread),
        ("POST", "/threads/{thread_id}/copy", here.copy_thread),
        ("GET", "/threads/{thread_id}/state", here.state),
        ("POST", "/threads/{thread_id}/state", here.update_state),
        ("GET", "/threads/{thread_id}/state/{checkpoint_id}", here.state_at),
        ("POST", "/threads/{thread_id}/state/checkpoint", here.state_of),
        ("POST", "/threads/{thread_id}/history", here.history),
        ("POST", "/threads/{thread_id}/runs", here.create),
        ("POST", "/threads/{thread_id}/runs/stream", here.stream),
        ("POST", "/threads/{thread_id}/runs/wait", here.wait),
        ("GET", "/threads/{thread_id}/runs", here.runs),
        ("GET", "/threads/{thread_id}/runs/{run_id}", here.run),
        ("GET", "/threads/{thread_id}/runs/{run_id}/join", here.join),
        ("GET", "/threads/{thread_id}/runs/{run_id}/stream", here.join_stream),
        ("POST", "/threads/{thread_id}/runs/{run_id}/cancel", here.cancel),
        ("DELETE", "/threads/{thread_id}/runs/{run_id}", here.delete),
        ("POST", "/runs", here.create),
        ("POST", "/runs/stream", here.stream),
        ("POST", "/runs/wait", here.wait),
        ("POST", "/runs/batch", here.create_many),
        ("POST", "/runs/cancel", here.cancel_many),
    ):
        routes.add_api_route(path, endpoint, methods=[method], include_in_schema=False)
    return routes
