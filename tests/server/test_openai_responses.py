"""The Responses API, asked by OpenAI's own client over a real port."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from flowserve.engines.fake import FailAfter
from flowserve.errors import EngineError
from flowserve.server.auth import Keyring
from flowserve.server.settings import ServerSettings

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}


def client_of(served: Any, key: str = "any") -> Any:
    """The real client, that does not try again by itself."""
    return AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
async def client(served: Any) -> AsyncIterator[Any]:
    async with client_of(served) as ready:
        yield ready


async def until(client: Any, id: str, *statuses: str) -> Any:
    """The response once it has one of these."""
    found: Any = None
    for _ in range(400):
        found = await client.responses.retrieve(id)
        if found.status in statuses:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"still {found.status}")


# --- at once --------------------------------------------------------------------------------------------------------


async def test_a_text_is_answered_by_an_engine_with_all_its_settings(served: Any, client: Any) -> None:
    answer = await client.responses.create(
        model="fake", input="hi", instructions="be brief", max_output_tokens=9, temperature=0.5, top_p=0.9
    )
    assert (answer.status, answer.output_text, answer.error) == ("completed", "ok: hi", None)
    assert answer.output[0].role == "assistant"
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0
    assert answer.completed_at >= answer.created_at
    call = served.engine.calls[0]
    assert (call.sampling.max_tokens, call.sampling.temperature, call.sampling.top_p) == (9, 0.5, 0.9)
    assert "be brief" in call.prompt_text


async def test_a_workflow_is_a_model_whose_input_is_the_last_user_message(served: Any, client: Any) -> None:
    given = [
        {"role": "user", "content": "hello"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "y"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "tell"}]},
    ]
    answer = await client.responses.create(model="echo", input=given)
    assert answer.output_text == "one two three"
    assert "tell" in served.engine.calls[0].prompt_text
    assert "hello" not in served.engine.calls[0].prompt_text


async def test_an_answer_that_was_cut_is_incomplete(client: Any) -> None:
    answer = await client.responses.create(model="fake", input="one two three four five", max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"


async def test_an_answer_follows_a_schema(client: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"const": 3}}, "required": ["n"], "additionalProperties": False}
    wanted = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    answer = await client.responses.create(model="fake", input="x", text=wanted)
    assert json.loads(answer.output_text) == {"n": 3}
    assert answer.text.format.schema_ == schema


# --- streams --------------------------------------------------------------------------------------------------------


async def test_a_stream_tells_an_item_and_its_text_in_numbered_events(client: Any) -> None:
    events = [event async for event in await client.responses.create(model="echo", input="hi", stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert "".join(event.delta for event in events[4:7]) == events[7].text == "one two three"
    assert {event.item_id for event in events[3:9]} == {events[2].item.id} == {events[-1].response.output[0].id}
    assert events[-1].response.output_text == "one two three"
    assert events[0].response.status == events[1].response.status == "in_progress"
    assert events[-1].response.id == events[0].response.id


async def test_the_clients_own_accumulator_reads_the_stream(client: Any) -> None:
    async with client.responses.stream(model="echo", input="hi") as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    assert final.output_text == "one two three"


async def test_a_reader_who_was_cut_off_goes_on_behind_the_number_it_saw(client: Any) -> None:
    begun = await client.responses.create(model="echo", input="hi", stream=True, background=True)
    whole = [event async for event in begun]
    id = whole[0].response.id
    for seen in (0, 5, len(whole) - 2):
        rest = [event async for event in await client.responses.retrieve(id, stream=True, starting_after=seen)]
        assert rest == whole[seen + 1 :]
    assert [event async for event in await client.responses.retrieve(id, stream=True)] == whole
    nothing = await client.responses.retrieve(id, stream=True, starting_after=len(whole) - 1)
    assert [event async for event in nothing] == []


async def test_a_failure_inside_a_stream_is_its_last_event(serve: Any) -> None:
    replies = lambda call: FailAfter("half", EngineError("the engine stumbled"))
    async with serve(replies=replies) as served, client_of(served) as client:
        events = [event async for event in await client.responses.create(model="fake", input="x", stream=True)]
        assert events[-1].type == "response.failed"
        assert events[-1].response.status == "failed"
        assert "stumbled" in events[-1].response.error.message
        with pytest.raises(openai.InternalServerError, match="stumbled"):
            await client.responses.create(model="fake", input="x")


# --- tools ----------------------------------------------------------------------------------------------------------


async def test_calls_are_items_and_what_they_gave_goes_back_as_items(served: Any, client: Any) -> None:
    wish: dict[str, Any] = {"model": "fake", "tools": [WEATHER], "tool_choice": "required"}
    answer = await client.responses.create(input="Rome?", **wish)
    [call] = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "weather"
    assert set(json.loads(call.arguments)) == {"city"}
    events = [event async for event in await client.responses.create(input="Rome?", stream=True, **wish)]
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert "".join(pieces) == done.arguments
    assert done.item_id == events[-1].response.output[0].id

    given = [
        {"role": "user", "content": "Rome?"},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny in particular"},
    ]
    after = await client.responses.create(model="fake", input=given, tools=[WEATHER], tool_choice="none")
    assert after.output[0].type == "message"
    assert "sunny in particular" in served.engine.calls[-1].prompt_text
    named = {"type": "function", "name": "nobody"}
    with pytest.raises(openai.BadRequestError, match="nobody"):
        await client.responses.create(model="fake", input="x", tools=[WEATHER], tool_choice=named)


# --- conversations --------------------------------------------------------------------------------------------------


async def test_a_response_goes_on_from_another_without_its_instructions(served: Any, client: Any) -> None:
    first = await client.responses.create(model="fake", input="first question", instructions="only this once")
    second = await client.responses.create(model="fake", input="second question", previous_response_id=first.id)
    third = await client.responses.create(model="fake", input="third question", previous_response_id=second.id)
    assert third.previous_response_id == second.id
    prompt = served.engine.calls[-1].prompt_text
    told = ["first question", first.output_text, "second question", second.output_text, "third question"]
    places = [prompt.index(text) for text in told]
    assert places == sorted(places)
    assert "only this once" not in prompt
    items = await client.responses.input_items.list(third.id)
    assert [item.content[0].text for item in items.data] == ["third question"]


async def test_what_cannot_be_gone_on_from_is_said(served: Any, client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="fake", input="x", previous_response_id="resp_nothing")
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")
    hanging = await client.responses.create(model="stuck", input="x", background=True)
    with pytest.raises(openai.BadRequestError, match="no answer to go on from"):
        await client.responses.create(model="fake", input="x", previous_response_id=hanging.id)
    await client.responses.cancel(hanging.id)


async def test_items_are_listed_in_pages(client: Any) -> None:
    given = [{"role": "user", "content": f"q{i}"} for i in range(5)]
    answer = await client.responses.create(model="fake", input=given)
    first = await client.responses.input_items.list(answer.id, limit=2, order="asc")
    assert [item.content for item in first.data] == ["q0", "q1"]
    assert first.has_more
    every = [item.content async for item in client.responses.input_items.list(answer.id, limit=2)]
    assert every == ["q4", "q3", "q2", "q1", "q0"]


# --- background -----------------------------------------------------------------------------------------------------


async def test_a_response_in_the_background_is_answered_at_once_and_ends_by_itself(client: Any) -> None:
    begun = await client.responses.create(model="echo", input="hi", background=True)
    assert begun.status in ("queued", "in_progress")
    assert begun.background
    assert begun.output == []
    ended = await until(client, begun.id, "completed")
    assert ended.output_text == "one two three"


async def test_a_response_is_cancelled_at_the_engine(served: Any, client: Any) -> None:
    begun = await client.responses.create(model="stuck", input="x", background=True)
    await until(client, begun.id, "in_progress")
    cancelled = await client.responses.cancel(begun.id)
    assert cancelled.status == "cancelled"
    assert served.runtime.runs()[0].status.value == "cancelled"
    assert (await client.responses.cancel(begun.id)).status == "cancelled", "once more does nothing"
    last = [event async for event in await client.responses.retrieve(begun.id, stream=True)][-1]
    assert (last.type, last.response.status) == ("response.failed", "cancelled")


async def test_who_leaves_a_stream_ends_it_unless_it_is_in_the_background(served: Any, client: Any) -> None:
    for background, status in ((False, "cancelled"), (True, "running")):
        stream = await client.responses.create(model="stuck", input="x", stream=True, background=background)
        first = await anext(aiter(stream))
        await stream.close()
        run = served.runtime.run(first.response.id.removeprefix("resp_"))
        for _ in range(200):
            if run.status.value == status:
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert run.status.value == status
        run.cancel()


async def test_a_deleted_response_is_gone(client: Any) -> None:
    answer = await client.responses.create(model="echo", input="hi")
    await client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(answer.id)


async def test_what_is_not_stored_is_found_by_nobody(client: Any) -> None:
    answer = await client.responses.create(model="echo", input="hi", store=False)
    assert not answer.store
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError, match="stored"):
        await client.responses.create(model="echo", input="hi", store=False, background=True)


async def test_another_tenants_response_is_unknown_in_the_same_words(serve: Any) -> None:
    settings = ServerSettings(port=0, keys=Keyring.parse("a:key-of-a-for-this-test,b:key-of-b-for-this-test"))
    async with (
        serve(settings=settings) as served,
        client_of(served, "key-of-a-for-this-test") as a,
        client_of(served, "key-of-b-for-this-test") as b,
    ):
        mine = await a.responses.create(model="echo", input="hi")
        assert (await a.responses.retrieve(mine.id)).id == mine.id
        with pytest.raises(openai.NotFoundError) as theirs:
            await b.responses.retrieve(mine.id)
        with pytest.raises(openai.NotFoundError) as nobodys:
            await b.responses.retrieve("resp_x")
        assert theirs.value.message.replace(mine.id, "resp_x") == nobodys.value.message
        for refused in (b.responses.cancel(mine.id), b.responses.delete(mine.id)):
            with pytest.raises(openai.NotFoundError):
                await refused


async def test_what_is_kept_goes_with_its_run(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowserve.server.beside.Beside.__init__.__defaults__", (4,))
    async with serve() as served, client_of(served) as client:
        ids = []
        for _ in range(9):
            answer = await client.responses.create(model="echo", input="hi")
            served.runtime.forget(answer.id.removeprefix("resp_"))
            ids.append(answer.id)
        kept = await client.responses.create(model="echo", input="hi")
        assert (await client.responses.retrieve(kept.id)).output_text == "one two three"
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(ids[-1])


@pytest.mark.parametrize(
    "wish",
    [
        {"conversation": "c1"},
        {"prompt": {"id": "p"}},
        {"truncation": "auto"},
        {"reasoning": {"effort": "high"}},
        {"max_tool_calls": 1},
        {"top_logprobs": 2},
    ],
)
async def test_what_is_not_had_here_is_refused_by_name(client: Any, wish: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match=next(iter(wish))) as refused:
        await client.responses.create(model="fake", input="x", **wish)
    assert refused.value.code == "unsupported_parameter"


async def test_errors_name_the_fields_of_this_door(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        given = [
            {"role": "user", "content": "x"},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{"},
        ]
        await client.responses.create(model="fake", input=given)
    assert refused.value.param == "input.1.tool_calls"
    bad = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="fake", input="x", text=bad)
    assert refused.value.param == "text.format"
    with pytest.raises(openai.NotFoundError):
        await client.responses.create(model="nobody", input="x")
