"""Calls as requests: every field is set here, so that nothing of a client's own request passes through.

What decides the answer is always written out, because servers have defaults of their own (`generation_config.json`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flowserve.engines.base import Call
from flowserve.engines.chat import PromptMessage
from flowserve.engines.openai.dialects import Dialect
from flowserve.errors import Unsupported
from flowserve.ids import Tokens

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
QUIET_INTERVAL: Tokens = 16
"""Tokens per event where nobody reads along."""
MAX_STOPS = 4
"""OpenAI takes so many stop strings. Ours are looked for here as well; sent ones spare the server what comes after."""


def token_body(
    call: Call, dialect: Dialect, model: str, choices: int, written: Sequence[int] = (), room: Tokens = 0
) -> dict[str, Any]:
    """Of `/v1/completions`, with a prompt of token ids.

    choices: to be written; vLLM refuses several that are greedy.
    written: tokens of the answer that stand behind the prompt already, beside `call.resumed`.
    room: tokens that the context has behind prompt and answer so far; 0: unknown.
    Stop strings are not sent: text is made here, so they are found here, in the same place as by other engines.
    """
    sampling = call.sampling
    left = sampling.max_tokens - len(call.resumed) - len(written)
    body = {
        "model": model,
        "prompt": [*call.prompt_ids, *call.resumed, *written],
        "max_tokens": min(left, room) if room else left,
        "n": choices,
        "return_token_ids": True,
        **_streamed(call, dialect),
        **_choosing(call, dialect),
    }
    if sampling.logprobs is not None:
        body |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
    return body


def text_request(call: Call, dialect: Dialect, model: str, choices: int) -> tuple[str, dict[str, Any]]:
    """(path, body) of a request in words.

    A plain prompt goes to `/v1/completions`; where only chat takes a schema, a prompt with one is said as a user
    message.
    """
    messages = call.messages
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": call.sampling.max_tokens,
        "n": choices,
        **_streamed(call, dialect),
        **_choosing(call, dialect),
    }
    if call.sampling.stop:
        body["stop"] = list(call.sampling.stop[:MAX_STOPS])
    if messages is None and (not call.constrained or dialect.constrain is not None):
        return COMPLETIONS, {**body, "prompt": _valid(call.prompt_text)}
    if messages is None:
        return CHAT, {**body, "messages": [{"role": "user", "content": _valid(call.prompt_text)}]}
    return CHAT, {**body, "messages": [_message(message) for message in messages]}


def _streamed(call: Call, dialect: Dialect) -> dict[str, Any]:
    fields: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    if dialect.intervals and not call.stream:
        fields["stream_interval"] = QUIET_INTERVAL
    return fields


def _choosing(call: Call, dialect: Dialect) -> dict[str, Any]:
    """How tokens are chosen, and from which."""
    sampling = call.sampling
    greedy = sampling.temperature == 0
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": 1.0 if greedy else sampling.top_p,
        **dialect.neutral,
    }
    top_k = 0 if greedy else sampling.top_k
    if dialect.all_tokens is not None:
        fields["top_k"] = top_k or dialect.all_tokens
    elif top_k:
        raise Unsupported(f"servers of the dialect '{dialect.name}' take no top_k: leave it out")
    if not greedy and sampling.seed is not None:
        fields["seed"] = sampling.seed
    if dialect.ignores_eos:
        fields["ignore_eos"] = sampling.ignore_eos
    if sampling.thinking_budget is not None:
        fields[dialect.thinking] = sampling.thinking_budget
    if call.constrained:
        fields |= _response_format(call) if dialect.constrain is None else dialect.constrain(call)
    return fields


def _response_format(call: Call) -> Mapping[str, Any]:
    form = {"name": "output", "schema": call.schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": form}}


def _message(message: PromptMessage) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": _valid(message.text)}
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": called.id or f"call_{i}",
                "type": "function",
                "function": {"name": called.name, "arguments": json.dumps(dict(called.arguments))},
            }
            for i, called in enumerate(message.tool_calls)
        ]
    if message.role == "tool":
        fields["tool_call_id"] = message.tool_call_id or "call_0"
    if message.name is not None and message.role != "tool":
        fields["name"] = message.name
    return fields


def _valid(text: str) -> str:
    """Lone surrogates are not text; JSON could write them, and servers refuse them."""
    return text.encode(errors="replace").decode()
