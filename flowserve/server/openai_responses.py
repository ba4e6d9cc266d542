"""OpenAI's Responses: at once, streamed, or in the background; looked at, followed from any event on, cancelled, gone on from.

A response is a run of the same kind as a chat's; what it was asked with is kept as long as its run is remembered.
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import Response

from flowserve.errors import UnknownName
from flowserve.runtime.run import Run
from flowserve.server import openai_responses_convert as convert
from flowserve.server import openai_responses_schemas as r
from flowserve.server.beside import Beside
from flowserve.server.carriers import heard
from flowserve.server.door import Door
from flowserve.server.errors import BadRequest, declared, fault_of, openai_body
from flowserve.server.openai_door import OpenAI
from flowserve.server.openai_responses_convert import PREFIX, Kept
from flowserve.server.openai_responses_stream import frames
from flowserve.server.openai_schemas import ChatMessage
from flowserve.server.routes import BodyRoute, GuardedRoute, SessionHeader, Tenant
from flowserve.server.sse import EventStream, frame
from flowserve.server.strict_json import SAFE_INTEGER
from flowserve.server.wire import JSON, dumps

CANCEL_WAIT_S = 5.0
"""How long a cancellation is waited for before the response is told as it stands."""


class Responses:
    """Endpoints of responses."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._openai = OpenAI(door)
        self._kept: Beside[Kept] = Beside(door.runtime)

    async def create(
        self, body: r.ResponseRequest, request: Request, tenant: Tenant, session: SessionHeader = None
    ) -> Response:
        """A response by an engine's model or by a workflow."""
        convert.refuse_unsupported(body)
        chat, kept = convert.chat_of(body, self._before(body, tenant))
        try:
            run = await self._openai.start(chat, tenant, heard(request.scope["headers"]))
        except BadRequest as error:
            raise convert.renamed(error) from None
        if body.store is not False:
            self._kept.keep(run.id, kept)
        if body.stream:
            return self._stream(run, kept, -1, leaving_ends=not body.background)
        if not body.background:
            if not await self._door.wait(run, request.receive):
                run.cancel()
                raise BadRequest(503, "wait_ended", "the wait ended before the answer came", retry_after_s=5.0)
            await self._door.outcome(run)
        return self._answer(run, kept)

    async def get(
        self,
        response_id: str,
        tenant: Tenant,
        stream: Annotated[
            Literal["true", "false"] | SkipJsonSchema[None], Query(description="Its events instead.")
        ] = None,
        starting_after: Annotated[
            Annotated[int, Field(ge=0, le=SAFE_INTEGER)] | SkipJsonSchema[None],
            Query(description="With `stream`: only events with a higher `sequence_number`."),
        ] = None,
    ) -> Response:
        """A response as it stands, or its events from any of them on. Leaving does not touch it."""
        run, kept = self._known(response_id, tenant)
        if stream == "true":
            return self._stream(run, kept, -1 if starting_after is None else starting_after, leaving_ends=False)
        return self._answer(run, kept)

    async def cancel(self, response_id: str, request: Request, tenant: Tenant) -> Response:
        """End a response now; does nothing to one that has ended."""
        run, kept = self._known(response_id, tenant)
        run.cancel()
        await self._door.wait(run, request.receive, CANCEL_WAIT_S)
        return self._answer(run, kept)

    async def delete(self, response_id: str, request: Request, tenant: Tenant) -> Response:
        """Forget a response. One that is still going on is cancelled first."""
        run, _ = self._known(response_id, tenant)
        run.cancel()
        self._kept.drop(run.id)
        if await self._door.wait(run, request.receive):
            self._door.runtime.forget(run.id)
        return JSON({"id": response_id, "object": "response", "deleted": True})

    async def items(
        self,
        response_id: str,
        tenant: Tenant,
        order: Annotated[Literal["asc", "desc"], Query()] = "desc",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | SkipJsonSchema[None], Query(max_length=100, description="Id of an item.")] = None,
    ) -> Response:
        """What a response was asked with."""
        run, kept = self._known(response_id, tenant)
        found = convert.input_items(run, kept)
        if order == "desc":
            found.reverse()
        if after is not None:
            place = next((i for i, item in enumerate(found) if item["id"] == after), None)
            if place is None:
                raise BadRequest(404, "not_found", str(UnknownName("item", after)), param="after")
            found = found[place + 1 :]
        page = found[:limit]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return JSON({"object": "list", "data": page, **ends, "has_more": len(found) > limit})

    # --- what is kept -------------------------------------------------------------------------------------------------

    def _known(self, response_id: str, tenant: str) -> tuple[Run, Kept]:
        """A response of this tenant. Another tenant's, one that was not stored and one that never was are the same."""
        unknown = BadRequest(404, "not_found", str(UnknownName("response", response_id[:100])), param="response_id")
        try:
            run = self._door.run(response_id.removeprefix(PREFIX), tenant)
        except UnknownName:
            raise unknown from None
        kept = self._kept.get(run.id)
        if kept is None:
            raise unknown
        return run, kept

    def _before(self, body: r.ResponseRequest, tenant: str) -> tuple[ChatMessage, ...]:
        if body.previous_response_id is None:
            return ()
        try:
            run, kept = self._known(body.previous_response_id, tenant)
        except BadRequest as error:
            raise BadRequest(400, "previous_response_not_found", str(error), param="previous_response_id") from None
        return convert.turns_after(run, kept)

    # --- answers ------------------------------------------------------------------------------------------------------

    def _answer(self, run: Run, kept: Kept) -> Response:
        return JSON(convert.response(run, kept), headers=self._openai.headers(run))

    def _stream(self, run: Run, kept: Kept, after: int, *, leaving_ends: bool) -> EventStream:
        closing = BadRequest(503, "closing", "the server is shutting down")
        return EventStream(
            frames(run, kept, after),
            stops=self._door.stops,
            limits=self._door.limits,
            on_gone=run.cancel if leaving_ends else lambda: None,
            on_error=lambda error: frame(dumps(openai_body(fault_of(error)))),
            on_stop=frame(dumps(openai_body(fault_of(closing)))),
            on_end=self._door.take_stream(run),
            headers=self._openai.headers(run),
        )


def router(door: Door) -> APIRouter:
    """Routes of responses."""
    responses = Responses(door)
    routes = APIRouter(route_class=GuardedRoute, tags=["openai"])
    stream = {
        "text/event-stream": {
            "schema": {
                "type": "string",
                "description": "With `stream`: OpenAI's events, each with `sequence_number`; the last has the response.",
            }
        }
    }
    one: dict[str, Any] = {"model": r.ResponseOut, "description": "The response."}
    routes.add_api_route(
        "/v1/responses",
        responses.create,
        methods=["POST"],
        operation_id="createResponse",
        summary="Respond",
        responses={
            200: {**one, "content": stream},
            **declared((400, 401, 404, 408, 409, 413, 415, 429, 500, 502, 503, 504), openai=True),
        },
        route_class_override=BodyRoute,
    )
    routes.add_api_route(
        "/v1/responses/{response_id}",
        responses.get,
        methods=["GET"],
        operation_id="getResponse",
        summary="Look at a response, or follow it",
        responses={200: {**one, "content": stream}, **declared((400, 401, 404, 429), openai=True)},
    )
    routes.add_api_route(
        "/v1/responses/{response_id}/cancel",
        responses.cancel,
        methods=["POST"],
        operation_id="cancelResponse",
        summary="Cancel a response",
        responses={200: one, **declared((400, 401, 404), openai=True)},
    )
    routes.add_api_route(
        "/v1/responses/{response_id}",
        responses.delete,
        methods=["DELETE"],
        operation_id="deleteResponse",
        summary="Forget a response",
        responses={
            200: {"model": r.ResponseDeleted, "description": "It is forgotten."},
            **declared((400, 401, 404), openai=True),
        },
    )
    routes.add_api_route(
        "/v1/responses/{response_id}/input_items",
        responses.items,
        methods=["GET"],
        operation_id="listInputItems",
        summary="List what a response was asked with",
        responses={
            200: {"model": r.ItemList, "description": "One page."},
            **declared((400, 401, 404), openai=True),
        },
    )
    return routes
