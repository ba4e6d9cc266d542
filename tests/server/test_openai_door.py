"""The OpenAI door, asked by OpenAI's own client over a real port."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from flowserve.cachestore.segments import Provenance
from flowserve.config import PoolConfig, RuntimeConfig
from flowserve.engines.fake import FailAfter, Sure
from flowserve.errors import ContextTooLong, EngineError, EngineLost
from flowserve.retrieval.embed import HashEmbedder

USER = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def client_of(served: Any) -> Any:
    """The real client, that does not try again by itself. Any: its types know fewer dialects than its server."""
    return AsyncOpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0)


@pytest.fixture
async def client(served: Any) -> AsyncIterator[Any]:
    async with client_of(served) as ready:
        yield ready


# --- workflows as models --------------------------------------------------------------------------------------------


async def test_a_workflow_is_a_model_whose_input_is_the_last_user_message(served: Any, client: Any) -> None:
    messages = [
        {"role": "system", "content": "x"},
        *USER,
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": "tell"},
    ]
    answer = await client.chat.completions.create(model="echo", messages=messages)
    assert answer.choices[0].message.content == "one two three"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "echo"
    assert "tell" in served.engine.calls[0].prompt_text
    assert "hello" not in served.engine.calls[0].prompt_text
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


async def test_a_workflow_streams_its_result(client: Any) -> None:
    stream = await client.chat.completions.create(model="echo", messages=USER, stream=True)
    chunks = [chunk async for chunk in stream]
    texts = [chunk.choices[0].delta.content for chunk in chunks]
    assert "".join(text or "" for text in texts) == "one two three"
    assert len([text for text in texts if text]) == 3, "token by token, not at once"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_json_result_comes_as_json_text(client: Any) -> None:
    answer = await client.chat.completions.create(model="verdict", messages=USER)
    assert json.loads(answer.choices[0].message.content) == {"text": "good", "score": 3}
    stream = await client.chat.completions.create(model="verdict", messages=USER, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert json.loads(text) == {"text": "good", "score": 3}


async def test_further_inputs_come_in_the_extra_body(served: Any, client: Any) -> None:
    extra = {"flowserve": {"input": {"strict": True}}}
    await client.chat.completions.create(model="verdict", messages=USER, extra_body=extra)
    assert served.runtime.runs()[0].inputs == ("hello", True)
    with pytest.raises(openai.BadRequestError, match="nonsense"):
        extra = {"flowserve": {"input": {"nonsense": True}}}
        await client.chat.completions.create(model="verdict", messages=USER, extra_body=extra)


async def test_what_a_workflow_cannot_honour_is_refused_not_ignored(client: Any) -> None:
    for wish in ({"n": 2}, {"tools": [WEATHER]}, {"logprobs": True}, {"response_format": {"type": "json_object"}}):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="echo", messages=USER, **wish)
        assert refused.value.param == next(iter(wish))


async def test_the_seed_reaches_the_calls_of_a_workflow(served: Any, client: Any) -> None:
    await client.chat.completions.create(model="echo", messages=USER, seed=7)
    assert served.engine.calls[0].sampling.seed == 7


# --- engines as models ----------------------------------------------------------------------------------------------


async def test_a_chat_goes_to_the_engine_with_all_its_settings(served: Any, client: Any) -> None:
    answer = await client.chat.completions.create(
        model="fake",
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ],
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        stop=["x", "y"],
        extra_body={"top_k": 5},
    )
    sampling = served.engine.calls[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (9, 0.5, 0.9)
    assert (sampling.seed, sampling.stop, sampling.top_k) == (3, ("x", "y"), 5)
    assert "be brief" in served.engine.calls[0].prompt_text
    assert answer.choices[0].message.content == "ok: hi"


async def test_choices_and_logprobs_come_whole_and_streamed_alike(client: Any) -> None:
    wish = {"model": "fake", "messages": USER, "n": 2, "logprobs": True, "top_logprobs": 2}
    whole = await client.chat.completions.create(**wish)
    texts, tokens = {0: "", 1: ""}, {0: [], 1: []}
    async for chunk in await client.chat.completions.create(**wish, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.logprobs:
                tokens[choice.index] += choice.logprobs.content
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert tokens[choice.index] == choice.logprobs.content
        assert "".join(item.token for item in choice.logprobs.content) == choice.message.content
        assert all(len(item.top_logprobs) == 2 and item.logprob <= 0 for item in choice.logprobs.content)


async def test_usage_is_streamed_when_it_is_asked_for(client: Any) -> None:
    stream = await client.chat.completions.create(
        model="fake", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_max_tokens_ends_with_length(client: Any) -> None:
    answer = await client.chat.completions.create(model="fake", messages=USER, max_tokens=1)
    assert answer.choices[0].finish_reason == "length"


async def test_a_json_schema_constrains_the_answer(served: Any, client: Any) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    answer = await client.chat.completions.create(
        model="fake",
        messages=USER,
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}},
    )
    assert set(json.loads(answer.choices[0].message.content)) == {"city"}
    assert served.engine.calls[0].schema == schema
    answer = await client.chat.completions.create(model="fake", messages=USER, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


# --- tools ----------------------------------------------------------------------------------------------------------


async def test_a_tool_call_comes_whole_and_streamed_alike(serve: Any) -> None:
    call = json.dumps({"tool": "weather", "arguments": {"city": "a rather long name of a city"}})
    async with serve(replies=[f"[{call}]", f"[{call}]"]) as served, client_of(served) as client:
        whole = await client.chat.completions.create(model="fake", messages=USER, tools=[WEATHER])
        [made] = whole.choices[0].message.tool_calls
        assert whole.choices[0].finish_reason == "tool_calls"
        assert whole.choices[0].message.content is None
        assert json.loads(made.function.arguments) == {"city": "a rather long name of a city"}
        name, arguments, ids, finish = "", [], set(), None
        async for chunk in await client.chat.completions.create(
            model="fake", messages=USER, tools=[WEATHER], stream=True
        ):
            choice = chunk.choices[0]
            finish = choice.finish_reason or finish
            assert not choice.delta.content
            for part in choice.delta.tool_calls or ():
                ids |= {part.id} - {None}
                name += part.function.name or ""
                arguments.append(part.function.arguments)
        assert (name, finish, len(ids)) == ("weather", "tool_calls", 1)
        assert json.loads("".join(arguments)) == {"city": "a rather long name of a city"}
        assert len(arguments) > 2, "in several deltas"


async def test_with_tools_an_answer_in_words_is_streamed_as_content(serve: Any) -> None:
    async with serve(replies=['{"answer": "It is 7 degrees."}']) as served, client_of(served) as client:
        stream = await client.chat.completions.create(model="fake", messages=USER, tools=[WEATHER], stream=True)
        chunks = [chunk async for chunk in stream]
        texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
        assert "".join(texts) == "It is 7 degrees."
        assert len(texts) > 1
        assert chunks[-1].choices[0].finish_reason == "stop"


async def test_an_answer_that_is_cut_by_length_between_tools_ends_the_stream_cleanly(serve: Any) -> None:
    async with serve(replies=['{"answer": "It is 7 degrees."}']) as served, client_of(served) as client:
        stream = await client.chat.completions.create(
            model="fake", messages=USER, tools=[WEATHER], stream=True, max_tokens=6
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason == "length"


async def test_a_conversation_with_tool_results_goes_back_to_the_model(served: Any, client: Any) -> None:
    messages = [
        *USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "7 degrees"},
    ]
    await client.chat.completions.create(model="fake", messages=messages, tools=[WEATHER], tool_choice="none")
    assert "7 degrees" in served.engine.calls[0].prompt_text
    assert "Bern" in served.engine.calls[0].prompt_text


async def test_a_named_tool_is_the_only_one_that_may_be_called(served: Any, client: Any) -> None:
    other = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}
    answer = await client.chat.completions.create(
        model="fake",
        messages=USER,
        tools=[WEATHER, other],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
    )
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert "time" not in json.dumps(served.engine.calls[0].schema)


# --- plain completions, embeddings, models -----------------------------------------------------------------------------


async def test_a_plain_completion_sends_the_prompt_as_it_is(served: Any, client: Any) -> None:
    answer = await client.completions.create(model="fake", prompt="Once upon", max_tokens=20, logprobs=1)
    assert served.engine.calls[0].prompt_text.endswith("Once upon")
    choice = answer.choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset[0] == 0
    stream = await client.completions.create(model="fake", prompt="Once upon", max_tokens=20, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == choice.text


async def test_several_prompts_are_answered_in_order(client: Any) -> None:
    answer = await client.completions.create(model="fake", prompt=["one", "two"], n=2, max_tokens=20)
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "ok: one"),
        (1, "ok: one"),
        (2, "ok: two"),
        (3, "ok: two"),
    ]


async def test_embeddings_are_the_same_as_floats_and_in_base64(served: Any, client: Any) -> None:
    name = served.runtime.retrieval.embedder.name
    plain = await client.embeddings.create(model=name, input=["the moon", "bread"], encoding_format="float")
    packed = await client.embeddings.create(model=name, input=["the moon", "bread"])  # the client asks for base64
    assert [item.index for item in plain.data] == [0, 1]
    for a, b in zip(plain.data, packed.data, strict=True):
        assert b.embedding == pytest.approx(a.embedding)
        assert sum(x * x for x in a.embedding) == pytest.approx(1, abs=1e-3)
    assert plain.usage.prompt_tokens == 3
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="other", input="x")
    with pytest.raises(openai.BadRequestError):
        await client.embeddings.create(model=name, input="x", dimensions=7)


async def test_models_are_engines_workflows_and_the_embedder(client: Any) -> None:
    owners = {model.id: model.owned_by async for model in client.models.list()}
    assert owners["fake"] == "flowserve-engine"
    assert owners["echo"] == "flowserve-workflow"
    assert "flowserve-embedder" in owners.values()
    assert (await client.models.retrieve("echo")).id == "echo"
    with pytest.raises(openai.NotFoundError, match="echo"):
        await client.models.retrieve("some/other")


# --- errors ---------------------------------------------------------------------------------------------------------


async def test_an_unknown_model_is_what_the_client_calls_not_found(client: Any) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="nothing", messages=USER, stream=stream)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        assert unknown.value.request_id


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 10**9}, "n"),
        ({"n": 0}, "n"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": ["a"] * 5}, None),
        ({"seed": 1.5}, "seed"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "objekt"}}}]}, None),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}}}, None),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"extra_body": {"flowserve": {"nonsense": 1}}}, "flowserve.nonsense"),
    ],
)
async def test_a_wrong_setting_is_a_bad_request_that_names_it(
    served: Any, client: Any, wish: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(**{"model": "fake", "messages": USER, **wish})
    assert refused.value.type == "invalid_request_error"
    if param is not None:
        assert refused.value.param == param
    assert served.runtime.runs() == []


async def test_unknown_settings_are_ignored_as_openai_does(client: Any) -> None:
    await client.chat.completions.create(model="fake", messages=USER, user="me", extra_body={"brand_new": {"x": 1}})


async def test_overload_is_a_rate_limit_that_the_client_waits_for(serve: Any) -> None:
    async with serve(config=RuntimeConfig(max_live_runs=1)) as served, client_of(served) as client:
        run = (await served.run("stuck", mode="background")).json()
        with pytest.raises(openai.RateLimitError) as full:
            await client.chat.completions.create(model="fake", messages=USER)
        assert int(full.value.response.headers["retry-after"]) >= 1
        waiting = asyncio.create_task(
            client.with_options(max_retries=1).chat.completions.create(model="fake", messages=USER)
        )
        await served.http.post(f"/v1/runs/{run['id']}/cancel")
        assert (await waiting).choices[0].message.content == "ok: hello"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (ContextTooLong("the prompt has 9 tokens, the model holds 8"), 400, "context_length_exceeded"),
        (EngineError("it stumbled"), 502, "engine_failed"),
        (EngineLost("it died"), 503, "engine_lost"),
    ],
)
async def test_a_failure_before_the_first_token_has_a_status_even_when_streaming(
    serve: Any, reply: Exception, status: int, code: str, stream: bool
) -> None:
    async with serve(replies={"*": reply}) as served, client_of(served) as client:
        with pytest.raises(openai.APIStatusError) as failed:
            await client.chat.completions.create(model="fake", messages=USER, stream=stream)
        assert (failed.value.status_code, failed.value.code) == (status, code)
        assert failed.value.response.headers["x-should-retry"] == ("true" if status == 503 else "false")


async def test_a_failure_in_the_middle_of_a_stream_is_an_error_and_not_an_end(serve: Any) -> None:
    replies = {"*": FailAfter("half of an", EngineError("it stumbled"))}
    async with serve(replies=replies) as served, client_of(served) as client:
        got = ""
        with pytest.raises(openai.APIError, match="stumbled"):
            async for chunk in await client.chat.completions.create(model="fake", messages=USER, stream=True):
                got += chunk.choices[0].delta.content or ""
        assert got.startswith("half of")


async def test_an_engine_that_is_down_is_503(serve: Any) -> None:
    config = RuntimeConfig(pool=PoolConfig(outage_s=0.0))
    async with serve(config=config) as served, client_of(served) as client:
        served.engine.startable = False
        await served.engine.close()
        with pytest.raises(openai.InternalServerError) as down:
            await client.chat.completions.create(model="fake", messages=USER)
    assert down.value.status_code == 503
    assert "retry-after" in down.value.response.headers


async def test_a_client_that_leaves_a_stream_ends_the_call(serve: Any) -> None:
    async with serve(replies={"*": "word " * 50_000}) as served, client_of(served) as client:
        stream = await client.chat.completions.create(model="fake", messages=USER, stream=True, max_tokens=900_000)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        async with asyncio.timeout(20):
            await served.runtime.runs()[0].wait()
        assert served.runtime.runs()[0].snapshot().status == "cancelled"


async def test_a_client_that_leaves_before_the_first_token_ends_the_call(serve: Any) -> None:
    async with serve() as served, client_of(served) as client:
        asked = asyncio.create_task(client.chat.completions.create(model="stuck", messages=USER, stream=True))
        async with asyncio.timeout(20):
            while not served.engine.calls:
                await served.http.get("/health")
            asked.cancel()
            await served.runtime.runs()[0].wait()
        assert served.runtime.runs()[0].snapshot().status == "cancelled"


async def test_an_embedder_that_loads_itself_to_know_its_name_does_not_stop_the_loop(served: Any) -> None:
    """`GET /v1/models` froze the server for as long as an embedder from a folder took to load."""
    loop = threading.current_thread()
    names: list[bool] = []

    class Slow(HashEmbedder):
        @property
        def name(self) -> str:
            names.append(threading.current_thread() is loop)
            return "slow"

    served.runtime.retrieval._embedder = Slow()
    ids = [model["id"] for model in (await served.http.get("/v1/models")).json()["data"]]
    assert "slow" in ids
    assert (await served.http.get("/v1/models/slow")).status_code == 200
    assert (await served.http.post("/v1/embeddings", json={"model": "slow", "input": "a"})).status_code == 200
    assert names and not any(names)


# --- early exit -----------------------------------------------------------------------------------------------------

THOUGHTS = "\n\n".join(" ".join(f"w{number}x{word}" for word in range(20)) for number in range(30))
EARLY = {"answer": "number", "trial": "\nThe answer is", "skip": 0}


async def early(serve: Any, exit: dict[str, Any], **more: Any) -> tuple[Any, Any]:
    """The answer of a server whose trials are sure, and the server."""
    replies = {"generate": THOUGHTS, "trial": Sure(" 42.\n", 0.9999), "readout": " forty-two."}
    async with serve(replies=replies, token_delay_s=0.001) as served, client_of(served) as client:
        extra = {"flowserve": {"early_exit": exit}}
        return await client.chat.completions.create(model="fake", messages=USER, extra_body=extra, **more), served


async def test_a_chat_without_a_workflow_may_end_early_and_says_so(serve: Any) -> None:
    answer, served = await early(serve, EARLY)
    content = answer.choices[0].message.content
    assert content.endswith("\nThe answer is 42") and THOUGHTS.startswith(content.removesuffix("\nThe answer is 42"))
    [told] = answer.flowserve["early_exit"]
    assert told["did"] == "stopped" and "confidence 0.99990" in told["why"]
    assert answer.usage.completion_tokens + answer.usage.trial_tokens == served.engine.status().tokens_out_total
    answer, _ = await early(serve, EARLY | {"deliver": "readout"})
    assert answer.choices[0].message.content.endswith("\nThe answer is forty-two.")


async def test_a_stream_of_a_chat_that_ends_early_holds_its_answer_and_no_trial(serve: Any) -> None:
    replies = {"generate": THOUGHTS, "trial": [Sure(" 41.\n", 0.5), Sure(" 42.\n", 0.9999)]}
    async with serve(replies=replies, token_delay_s=0.001) as served, client_of(served) as client:
        stream = await client.chat.completions.create(
            model="fake",
            messages=USER,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"flowserve": {"early_exit": EARLY}},
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.endswith("\nThe answer is 42") and "41" not in text.replace("x", " ").split()
    assert chunks[-1].flowserve["early_exit"][0]["did"] == "stopped" and chunks[-1].usage.trial_tokens > 0


@pytest.mark.parametrize(
    ("exit", "more", "said"),
    [
        ({"answer": "number", "saving_effort": 3}, {}, "saving_effort"),
        ({"answer": "essay"}, {}, "boxed"),
        ({}, {}, "answer"),
        (EARLY | {"must_close": True}, {}, "needs 'flowserve.early_exit.think'"),
        (EARLY, {"n": 2}, "'n' does not go with"),
        (EARLY, {"logprobs": True}, "'logprobs' does not go with"),
        (EARLY, {"tools": [WEATHER]}, "'tools' does not go with"),
        (EARLY, {"response_format": {"type": "json_object"}}, "'response_format' does not go with"),
    ],
)
async def test_an_early_exit_that_cannot_be_is_refused(
    client: Any, exit: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        await client.chat.completions.create(
            model="fake", messages=USER, extra_body={"flowserve": {"early_exit": exit}}, **more
        )


async def test_a_workflow_says_itself_which_of_its_calls_may_end_early(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r"'flowserve\.early_exit' does not go with the workflow"):
        await client.chat.completions.create(
            model="echo", messages=USER, extra_body={"flowserve": {"early_exit": EARLY}}
        )


# --- reuse of passages ----------------------------------------------------------------------------------------------

TOLD = Provenance(exact=3, pasted=2, recomputed=9, policy="first_k")


@pytest.mark.parametrize("model", ["fake", "echo"])
async def test_an_answer_tells_where_the_kv_of_its_prompt_came_from_and_counts_as_cached_what_is_exact(
    serve: Any, model: str
) -> None:
    async with serve(replies="ok", provenance=TOLD) as served, client_of(served) as client:
        answer = await client.chat.completions.create(model=model, messages=USER)
        assert answer.flowserve == {"reuse": asdict(TOLD)}
        assert answer.usage.prompt_tokens_details.cached_tokens == 3
        stream = await client.chat.completions.create(
            model=model, messages=USER, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].flowserve == {"reuse": asdict(TOLD)}
