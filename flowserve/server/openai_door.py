"""The OpenAI door: chat completions, completions, embeddings, models. A workflow is a model name here.

The last user message fills a workflow's text parameter and its result comes back as content; everything that
speaks to OpenAI speaks to a workflow so. A workflow's own sampling stands; `seed` is passed on.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from flowserve.errors import UnknownName
from flowserve.graphs.plan import ToolSpec
from flowserve.retrieval.protocols import Embedder
from flowserve.runtime.records import Choice, Generation, SubmitOptions
from flowserve.runtime.run import Run
from flowserve.server import openai_convert as c
from flowserve.server import openai_schemas as s
from flowserve.server.carriers import Headers, heard
from flowserve.server.door import Door
from flowserve.server.errors import BadRequest, declared, fault_of, openai_body, rate_headers
from flowserve.server.openai_stream import ChatWriter, Chunks, TextWriter, frames
from flowserve.server.routes import BodyRoute, GuardedRoute, SessionHeader, Tenant
from flowserve.server.sse import EventStream, frame, gone
from flowserve.server.wire import JSON, dumps


class OpenAI:
    """Endpoints of the OpenAI door."""

    def __init__(self, door: Door) -> None:
        self._door = door

    # --- chat -----------------------------------------------------------------------------------------------------

    async def chat(
        self, body: s.ChatRequest, request: Request, tenant: Tenant, session: SessionHeader = None
    ) -> Response:
        """Chat completion, by an engine's model or by a workflow."""
        run = await self.start(body, tenant, heard(request.scope["headers"]))
        chunks = self._chunks(run, body, "chatcmpl")
        if body.stream:
            return await self._stream(run, ChatWriter(chunks, bool(body.logprobs)), request)
        answer = await self._answer(run, request)
        return self._whole(run, chunks, "chat.completion", [_chat_choice(i, x, body) for i, x in enumerate(answer)])

    async def start(self, body: s.ChatRequest, tenant: str, headers: Headers) -> Run:
        """Begin a chat, with an engine's model or with a workflow. `headers`: with what they may carry (`carriers`)."""
        c.refuse_unsupported(body)
        options = c.options_of(body, tenant, headers)
        if self._is_workflow(body.model, tenant):
            return await self._run_workflow(body, c.last_user_text(body.messages), options)
        return await self._run_chat(body, options)

    async def _run_chat(self, body: s.ChatRequest, options: SubmitOptions) -> Run:
        self._known(body.model, options.tenant)
        messages = c.messages_of(body.messages)
        choice = c.tool_choice_of(body)
        tools: list[ToolSpec] = []
        schema: dict[str, Any] | None = None
        if body.tools or body.response_format is not None:
            tools, schema = await asyncio.to_thread(lambda: (c.tools_of(body), c.schema_of(body)))
        return await self._door.generate(
            model=body.model,
            messages=messages,
            sampling=c.sampling_of(body),
            tools=tools,
            tool_choice=choice,
            parallel_tools=body.parallel_tool_calls is not False,
            schema=schema,
            exit=c.exit_of(body),
            part=self._door.declared.part(options.tenant, options.caller),
            options=options,
        )

    # --- plain completions ----------------------------------------------------------------------------------------

    async def complete(
        self, body: s.CompletionRequest, request: Request, tenant: Tenant, session: SessionHeader = None
    ) -> Response:
        """Plain completion of one prompt or of several."""
        c.refuse_unsupported(body)
        options = c.options_of(body, tenant, heard(request.scope["headers"]))
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        if self._is_workflow(body.model, tenant):
            runs = [await self._run_workflow(body, prompts[0], options)]
        else:
            self._known(body.model, tenant)
            if body.stream and len(prompts) > 1:
                raise c.wrong("a stream takes one prompt", "prompt", "unsupported_parameter")
            runs = await self._run_prompts(body, prompts, options)
        chunks = self._chunks(runs[0], body, "cmpl")
        if body.stream:
            return await self._stream(runs[0], TextWriter(chunks, body.logprobs is not None), request)
        try:
            answers = [choice for run in runs for choice in await self._answer(run, request)]
        except BaseException:
            _cancel_all(runs)
            raise
        shown = [_text_choice(i, choice, body) for i, choice in enumerate(answers)]
        return self._whole(runs[0], chunks, "text_completion", shown, runs)

    async def _run_prompts(self, body: s.CompletionRequest, prompts: list[str], options: SubmitOptions) -> list[Run]:
        runs: list[Run] = []
        try:
            for prompt in prompts:
                sampling = c.sampling_of(body)
                call = {"model": body.model, "prompt": prompt, "sampling": sampling, "options": options}
                runs.append(await self._door.generate(**call, exit=c.exit_of(body)))
        except BaseException:
            _cancel_all(runs)
            raise
        return runs

    # --- both -----------------------------------------------------------------------------------------------------

    def _is_workflow(self, model: str, tenant: str) -> bool:
        return model in self._door.programs(tenant)

    def _known(self, model: str, tenant: str) -> None:
        known = (*self._door.runtime.models(), *self._door.programs(tenant))
        if model not in known:
            raise BadRequest(404, "model_not_found", str(UnknownName("model", model[:100], known)), param="model")

    async def _run_workflow(self, body: s.Generating, text: str | None, options: SubmitOptions) -> Run:
        c.refuse_for_workflow(body)
        extra = body.flowserve.input if body.flowserve is not None else {}
        plan = self._door.program(body.model, options.tenant).plan
        return await self._door.submit(body.model, c.workflow_inputs(plan, text, extra), options)

    def _chunks(self, run: Run, body: s.Generating, prefix: str) -> Chunks:
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return Chunks(f"{prefix}-{run.id}", body.model, int(run.created_wall), usage)

    def headers(self, run: Run) -> dict[str, str]:
        """Which run it was, and what its tenant has left of its rates."""
        return {"x-flowserve-run": run.id, **rate_headers(self._door.runtime.standing(run.tenant))}

    async def _answer(self, run: Run, request: Request) -> list[Choice]:
        """The choices of a finished run; cancels it when nobody waits for them any more."""
        if not await self._door.wait(run, request.receive):
            run.cancel()
            raise BadRequest(503, "wait_ended", "the wait ended before the answer came", retry_after_s=5.0)
        await self._door.outcome(run)
        value = await run.result()
        if isinstance(value, Generation):
            return list(value.choices)
        return [Choice(c.result_text(run.snapshot().result), "stop")]

    def _whole(
        self, run: Run, chunks: Chunks, kind: str, choices: list[dict[str, Any]], runs: list[Run] | None = None
    ) -> Response:
        ended = [each.snapshot() for each in runs or [run]]
        head = {"id": chunks.id, "object": kind, "created": chunks.created, "model": chunks.model}
        counts = {"usage": c.usage(ended), **c.ours(ended)}
        return JSON({**head, "choices": choices, **counts}, headers=self.headers(run))

    async def _stream(self, run: Run, writer: ChatWriter | TextWriter, request: Request) -> Response:
        """The head is held back until something came, so that an early failure still gets a proper status."""
        source = frames(run, writer)
        first = asyncio.ensure_future(anext(source))
        left = asyncio.ensure_future(gone(request.receive))
        try:
            await asyncio.wait(
                {first, left}, timeout=self._door.settings.stream_head_s, return_when=asyncio.FIRST_COMPLETED
            )
        except BaseException:
            first.cancel()
            run.cancel()
            raise
        finally:
            left.cancel()
        if first.done() and (error := first.exception()) is not None:
            await self._door.outcome(run)
            raise error
        return EventStream(
            _rejoined(first, source),
            stops=self._door.stops,
            limits=self._door.limits,
            on_gone=run.cancel,
            on_error=lambda error: frame(dumps(openai_body(fault_of(error)))),
            on_stop=frame(dumps(openai_body(fault_of(BadRequest(503, "closing", "the server is shutting down"))))),
            headers=self.headers(run),
        )

    # --- embeddings -----------------------------------------------------------------------------------------------

    async def embed(self, body: s.EmbeddingRequest, tenant: Tenant) -> Response:
        """Vectors of texts, by the embedder of the indexes."""
        service = self._door.retrieval()
        embedder = service.embedder
        name = await _name_of(embedder)
        if body.model != name:
            raise BadRequest(
                404,
                "model_not_found",
                str(UnknownName("embedding model", body.model[:100], [name])),
                param="model",
            )
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not all(texts):
            raise c.wrong("expected texts that are not empty", "input")
        vectors = await service.embed(texts)
        if body.dimensions not in (None, vectors.shape[1]):
            raise c.wrong(
                f"this model's vectors have {vectors.shape[1]} dimensions", "dimensions", "unsupported_parameter"
            )
        tokens = await asyncio.to_thread(lambda: sum(embedder.count_tokens(text) for text in texts))
        return JSON(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": i, "embedding": c.embedding(vectors, i, body.encoding_format)}
                    for i in range(len(texts))
                ],
                "model": name,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    # --- models ---------------------------------------------------------------------------------------------------

    async def models(self, tenant: Tenant) -> Response:
        """Models of the engines, workflows, and the embedder of the indexes."""
        found = await self._models(tenant)
        return JSON({"object": "list", "data": [_model(name, owner) for name, owner in found.items()]})

    async def model(self, model: str, tenant: Tenant) -> Response:
        """One model."""
        found = await self._models(tenant)
        if model not in found:
            raise BadRequest(404, "model_not_found", str(UnknownName("model", model[:100], list(found))), param="model")
        return JSON(_model(model, found[model]))

    async def _models(self, tenant: str) -> dict[str, str]:
        """Name -> what it is. A workflow hides an engine's model of the same name."""
        found = dict.fromkeys(self._door.runtime.models(), "engine")
        found |= dict.fromkeys(self._door.programs(tenant), "workflow")
        if self._door.runtime.retrieval is not None:
            found.setdefault(await _name_of(self._door.runtime.retrieval.embedder), "embedder")
        return found


async def _name_of(embedder: Embedder) -> str:
    """In a thread: an embedder from a folder is loaded to know its name, which takes seconds."""
    return await asyncio.to_thread(lambda: embedder.name)


async def _rejoined(first: "asyncio.Future[bytes]", rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield await first
    async with aclosing(rest) as more:
        async for data in more:
            yield data


def _cancel_all(runs: list[Run]) -> None:
    for run in runs:
        run.cancel()


def _chat_choice(index: int, choice: Choice, body: s.ChatRequest) -> dict[str, Any]:
    calls = c.tool_calls(choice)
    message: dict[str, Any] = {"role": "assistant", "content": None if calls else choice.text, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    return {
        "index": index,
        "message": message,
        "logprobs": c.chat_logprobs(choice.logprobs) if body.logprobs else None,
        "finish_reason": choice.finish,
    }


def _text_choice(index: int, choice: Choice, body: s.CompletionRequest) -> dict[str, Any]:
    return {
        "index": index,
        "text": choice.text,
        "logprobs": c.text_logprobs(choice.logprobs) if body.logprobs is not None else None,
        "finish_reason": choice.finish,
    }


def _model(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": f"flowserve-{owner}"}


def router(door: Door) -> APIRouter:
    """Routes of the OpenAI door."""
    openai = OpenAI(door)
    routes = APIRouter(route_class=GuardedRoute, tags=["openai"])
    errors = declared((400, 401, 404, 408, 409, 413, 415, 429, 500, 502, 503, 504), openai=True)
    stream = {
        "text/event-stream": {
            "schema": {
                "type": "string",
                "description": "With `stream`: chunks in OpenAI's form, ended by `data: [DONE]`.",
            }
        }
    }

    def add(
        path: str, endpoint: Callable[..., Any], name: str, summary: str, model: Any, streams: bool = False
    ) -> None:
        success: dict[str, Any] = {"model": model, "description": "The answer."}
        if streams:
            success["content"] = stream
        routes.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            operation_id=name,
            summary=summary,
            responses={200: success, **errors},
            route_class_override=BodyRoute if streams else GuardedRoute,
        )

    add("/v1/chat/completions", openai.chat, "createChatCompletion", "Chat", s.ChatCompletion, streams=True)
    add("/v1/completions", openai.complete, "createCompletion", "Complete", s.TextCompletion, streams=True)
    add("/v1/embeddings", openai.embed, "createEmbedding", "Embed", s.EmbeddingList)
    routes.add_api_route(
        "/v1/models",
        openai.models,
        methods=["GET"],
        operation_id="listModels",
        summary="List models",
        responses={200: {"model": s.ModelList, "description": "All of them."}, **declared((401,), openai=True)},
    )
    routes.add_api_route(
        "/v1/models/{model:path}",
        openai.model,
        methods=["GET"],
        operation_id="getModel",
        summary="Look at a model",
        responses={200: {"model": s.ModelOut, "description": "The model."}, **declared((400, 401, 404), openai=True)},
    )
    return routes
