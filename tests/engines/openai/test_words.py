"""Servers that take no tokens are asked in words: the contract as far as it goes, against FlowServe's own server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flowserve.engines.base import Call, Finish, Origin, Output, Segment
from flowserve.engines.chat import MessageCall, Piece, PromptMessage
from flowserve.engines.fake import FakeEngine
from flowserve.engines.openai.engine import OpenAIEngine
from flowserve.engines.openai.settings import OpenAISettings
from flowserve.errors import EngineError, InputError, Unsupported

MakeCall = Callable[..., Call]
WORDS = 'one two three "four" five six é🎈 seven eight nine ten'

# Not taken: what compares token ids, which are not told. What `ids` are there, `untold` is here (below).
TAKEN = (
    "test_every_choice_finishes_exactly_once_and_says_nothing_after",
    "test_prompt_tokens_are_told_once",
    "test_a_stop_string_ends_the_text_before_it",
    "test_output_satisfies_the_schema",
    "test_abort_ends_the_iterator_with_abort",
    "test_aborting_an_unknown_call_does_nothing",
    "test_leaving_the_iterator_frees_the_engine",
    "test_cancelling_the_reader_frees_the_engine",
    "test_an_empty_prompt_is_refused",
    "test_bad_sampling_names_the_setting",
    "test_an_unknown_model_is_refused_with_the_known_ones",
    "test_a_second_call_with_the_id_of_a_running_one_is_refused",
    "test_prefill_is_a_hint_that_changes_no_answer",
    "test_closing_while_calls_run_ends_them",
    "test_a_closed_engine_says_so_and_closing_again_is_fine",
    "test_output_matches_the_regular_expression",
    "test_output_follows_the_grammar",
    "test_two_constraints_at_once_are_refused",
    "test_a_probe_is_answered_beside_other_calls",
    "test_a_new_priority_changes_no_answer",
    "test_the_listener_hears_when_the_engine_goes",
    "test_a_closed_engine_can_be_started_again",
)


def _contract() -> dict[str, Any]:
    import importlib.util

    path = Path(__file__).parents[1] / "test_contract.py"
    spec = importlib.util.spec_from_file_location("contract_in_words", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: getattr(module, name) for name in TAKEN}


globals().update(_contract())


@pytest.fixture
async def upstream() -> FakeEngine:
    """What stands behind the server."""

    def scripted(call: Call) -> str | None:
        return None if call.schema else WORDS

    return FakeEngine(scripted, token_delay_s=0.002)


@pytest.fixture
async def engine(servers: ModuleType, upstream: FakeEngine) -> AsyncIterator[OpenAIEngine]:
    """An engine on FlowServe's server."""
    async with servers.flowserve_server(upstream) as url:
        engine = OpenAIEngine(OpenAISettings(url, quiet=True, poll_s=0.0))
        await engine.start()
        yield engine
        await engine.close()


async def collect(engine: OpenAIEngine, call: Call) -> list[Output]:
    return [output async for output in engine.generate(call)]


def text(outputs: list[Output]) -> str:
    return "".join(output.text for output in outputs)


async def test_what_it_is(engine: OpenAIEngine) -> None:
    capabilities = engine.capabilities
    assert " flowserve up" in repr(engine)
    assert not (capabilities.tokens or capabilities.logprobs or capabilities.regex or capabilities.prefix_reuse)
    assert capabilities.schema and capabilities.priority and capabilities.restart


@pytest.mark.parametrize("limit", [1, 5, 100])
async def test_tokens_are_counted_exactly_in_the_end(
    engine: OpenAIEngine, upstream: FakeEngine, call: MakeCall, limit: int
) -> None:
    outputs = await collect(engine, call(max_tokens=limit))
    written = upstream.tokenizer.encode(WORDS)[:limit]
    assert sum(output.count for output in outputs) == len(written)
    assert text(outputs) == upstream.tokenizer.decode(written)
    assert outputs[-1].finish is (Finish.LENGTH if limit < 100 else Finish.STOP)
    assert engine.status().tokens_out_total == len(written)


async def test_a_call_that_another_engine_began_is_refused(engine: OpenAIEngine, call: MakeCall) -> None:
    with pytest.raises(Unsupported, match="tokens"):
        await collect(engine, call(resumed=(5,)))


async def test_conversations_travel_as_messages(engine: OpenAIEngine, upstream: FakeEngine, call: MakeCall) -> None:
    talk = (
        PromptMessage("system", (Piece("Be "), Piece("brief."))),
        PromptMessage("user", (Piece("Weather?"),)),
        PromptMessage("assistant", (), (MessageCall("look", {"city": "Rome"}, "call_7"),)),
        PromptMessage("tool", (Piece("sunny"),), tool_call_id="call_7", name="look"),
    )
    outputs = await collect(engine, call(max_tokens=100, messages=talk))
    assert text(outputs) == WORDS
    prompt = upstream.calls[-1].prompt_text
    for piece in ("<|system|>Be brief.", "<|user|>Weather?", '"look"', "Rome", "<|tool|>sunny"):
        assert piece in prompt


async def test_sampling_arrives(engine: OpenAIEngine, upstream: FakeEngine, call: MakeCall) -> None:
    await collect(engine, call(temperature=0.5, top_p=0.25, top_k=7, seed=11, max_tokens=9, stop=("a", "b"), n=2))
    sampling = upstream.calls[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.5, 0.25, 7, 9)
    assert (sampling.seed, sampling.stop, sampling.n) == (11, ("a", "b"), 2)


async def test_more_stop_strings_than_the_server_takes(
    engine: OpenAIEngine, upstream: FakeEngine, call: MakeCall
) -> None:
    stops = ("v", "w", "x", "z", "five")
    outputs = await collect(engine, call(max_tokens=100, stop=stops))
    assert text(outputs) == WORDS[: WORDS.index("five")].split("v")[0].split("w")[0].split("x")[0]
    assert upstream.calls[-1].sampling.stop == stops[:4]
    outputs = await collect(engine, call(max_tokens=100, stop=("!", "?", "+", "=", "three")))
    assert text(outputs) == "one two "
    assert outputs[-1].finish is Finish.STOP


async def test_failures_of_the_server_are_ours(servers: ModuleType, call: MakeCall) -> None:
    upstream = FakeEngine([EngineError("boom"), "fine"])
    async with servers.flowserve_server(upstream) as url:
        engine = OpenAIEngine(OpenAISettings(url, quiet=True, poll_s=0.0))
        await engine.start()
        try:
            with pytest.raises(EngineError):
                await collect(engine, call_of(engine))
            assert text(await collect(engine, call_of(engine))) == "fine"
        finally:
            await engine.close()


def call_of(engine: OpenAIEngine) -> Call:
    call_of.count += 1  # type: ignore[attr-defined]
    segment = Segment(tuple(engine.tokenizer.encode("hi")), Origin.VALUE, "hi")
    return Call(f"c{call_of.count}", (segment,))  # type: ignore[attr-defined]


call_of.count = 0  # type: ignore[attr-defined]


# --- chat streams of others, on the mock -----------------------------------------------------------------------------


@pytest.fixture
def plain(mock: Any) -> Any:
    """A server of which nothing is known."""
    mock.pages |= {"/v1/models": (200, {"data": [{"id": "gpt"}]}), "/version": (404, {})}
    return mock


async def stream_of(plain: Any, connect: Any, *events: Any, **fields: Any) -> list[Output]:
    async def reply(request: Any, wire: Any) -> None:
        await wire.head()
        for event in (*events, "[DONE]"):
            await wire.event(event)
        await wire.end()

    plain.reply = reply
    turn = PromptMessage("user", (Piece("hi"),))
    async with connect() as engine:
        return await collect(engine, Call("c", (Segment((1,), Origin.VALUE, "hi"),), messages=(turn,), **fields))


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


async def test_a_chat_stream(plain: Any, connect: Any) -> None:
    outputs = await stream_of(
        plain,
        connect,
        delta(role="assistant", content=""),
        delta(content="Hel"),
        delta(content="lo"),
        delta("stop"),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 7, "prompt_tokens_details": None}},
    )
    assert text(outputs) == "Hello"
    assert sum(output.count for output in outputs) == 7
    body = plain.streamed[-1].body
    assert plain.streamed[-1].path == "/v1/chat/completions"
    assert set(body) == {"model", "messages", "max_tokens", "n", "stream", "stream_options", "temperature", "top_p"}


async def test_thinking_that_is_kept_apart_is_counted_not_shown(plain: Any, connect: Any) -> None:
    outputs = await stream_of(plain, connect, delta(reasoning_content="hm"), delta(content="so"), delta("stop"))
    assert text(outputs) == "so"
    assert sum(output.count for output in outputs) == 2


@pytest.mark.parametrize(
    "event",
    [delta(tool_calls=[{"index": 0}]), delta(refusal="no"), delta(content=5), {"choices": [{"index": 0, "delta": 5}]}],
    ids=str,
)
async def test_answers_that_are_no_text(plain: Any, connect: Any, event: Any) -> None:
    with pytest.raises(EngineError):
        await stream_of(plain, connect, event, delta("stop"))


async def test_a_prompt_that_fits_or_not_is_the_servers_to_say(plain: Any, connect: Any) -> None:
    """Ours is an estimate."""
    plain.pages["/v1/models"] = (200, {"data": [{"id": "gpt", "max_model_len": 4}]})
    plain.reply = lambda request, wire: wire.whole(400, {"error": {"message": "no"}})
    async with connect() as engine:
        with pytest.raises(InputError):
            await collect(engine, Call("c", (Segment((1,) * 50, Origin.VALUE, "hi"),)))
    assert len(plain.streamed) == 1


async def test_lone_surrogates_become_text(plain: Any, connect: Any) -> None:
    plain.reply = lambda request, wire: wire.whole(400, {})
    async with connect() as engine:
        with pytest.raises(InputError):
            await collect(engine, Call("c", (Segment((1,), Origin.VALUE, "a\ud800b"),)))
    assert plain.streamed[-1].body["prompt"] == "a?b"


async def test_many_at_once(engine: OpenAIEngine, upstream: FakeEngine, call: MakeCall) -> None:
    answers = await asyncio.gather(*(collect(engine, call(max_tokens=100)) for _ in range(20)))
    assert {text(outputs) for outputs in answers} == {WORDS}
    assert engine.status().running == 0
