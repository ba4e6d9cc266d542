"""Between OpenAI's dialect and the core, once in each direction. No I/O."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import jsonschema

from flowserve.engines.base import Logprob, Sampling
from flowserve.engines.tools import Choice as ToolChoice
from flowserve.engines.tools import Named
from flowserve.graphs.exits import from_data
from flowserve.graphs.plan import ExitSpec, Plan, ToolSpec
from flowserve.graphs.types import Message, ToolCall
from flowserve.retrieval.protocols import Vectors
from flowserve.runtime.records import Choice, RunSnapshot, SubmitOptions, reuse_data, summed
from flowserve.server import carriers, strict_json
from flowserve.server import openai_schemas as s
from flowserve.server.convert import budget_of
from flowserve.server.errors import BadRequest
from flowserve.server.wire import dumps

CHAT_MAX_TOKENS = 4_096
"""Where a chat names no limit. Generation also ends where the context is full."""
TEXT_MAX_TOKENS = 16
"""Where a plain completion names no limit: OpenAI's own default."""
MAX_SCHEMA_CHARS = 64_000
TIERS = {"priority": "interactive", "default": "standard", "flex": "batch"}
"""`service_tier`; `auto` and what nobody knows leave the workflow's own."""


def wrong(message: str, param: str | None, code: str = "invalid_value") -> BadRequest:
    return BadRequest(400, code, message, param=param)


# --- in: what is asked ----------------------------------------------------------------------------------------------


def refuse_unsupported(body: s.Generating) -> None:
    """Refuse a setting that would change the answer and that no engine here honours."""
    settings: list[tuple[str, bool]] = [
        ("frequency_penalty", bool(body.frequency_penalty)),
        ("presence_penalty", bool(body.presence_penalty)),
        ("logit_bias", bool(body.logit_bias)),
    ]
    if isinstance(body, s.CompletionRequest):
        settings += [
            ("echo", bool(body.echo)),
            ("suffix", bool(body.suffix)),
            ("best_of", body.best_of is not None and body.best_of != (body.n or 1)),
        ]
    for name, asked in settings:
        if asked:
            raise wrong(f"'{name}' is not supported here; leave it out", name, "unsupported_parameter")


def sampling_of(body: s.ChatRequest | s.CompletionRequest) -> Sampling:
    if isinstance(body, s.ChatRequest):
        max_tokens = body.max_completion_tokens or body.max_tokens or CHAT_MAX_TOKENS
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        if body.top_logprobs is not None and not body.logprobs:
            raise wrong("'top_logprobs' needs 'logprobs': true", "top_logprobs")
    else:
        max_tokens = body.max_tokens or TEXT_MAX_TOKENS
        logprobs = body.logprobs
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        seed=body.seed,
        stop=stop,
        n=body.n or 1,
        logprobs=logprobs,
    )


def options_of(body: s.Generating, tenant: str, headers: carriers.Headers) -> SubmitOptions:
    """How a call is to be treated, by its body and by the hints in its headers (`carriers`)."""
    extra = body.flowserve or s.FlowServeExtra()
    return SubmitOptions(
        timeout_s=extra.timeout,
        priority=carriers.priority_of(body, headers),
        tier=TIERS.get(body.service_tier or ""),
        tenant=tenant,
        budget=budget_of(extra.budget),
        session=carriers.session_of(body, headers),
        caller=carriers.caller_of(body, headers),
        metadata=body.metadata or {},
        allow_degraded=extra.degrade,
        seed=body.seed,
        stream=bool(body.stream),
    )


def messages_of(messages: Sequence[s.ChatMessage]) -> list[Message]:
    return [_message(message, f"messages.{i}") for i, message in enumerate(messages)]


def _message(message: s.ChatMessage, where: str) -> Message:
    role = "system" if message.role == "developer" else message.role
    calls = tuple(_called(call, where) for call in message.tool_calls or ())
    if calls and role != "assistant":
        raise wrong("only an assistant message has 'tool_calls'", f"{where}.tool_calls")
    if message.content is None and not calls:
        raise wrong("'content' may be null only beside 'tool_calls'", f"{where}.content")
    if role == "tool" and not message.tool_call_id:
        raise wrong("a tool message needs 'tool_call_id'", f"{where}.tool_call_id")
    return Message(role, text_of(message), calls, message.tool_call_id or "", message.name or "")


def text_of(message: s.ChatMessage) -> str:
    if isinstance(message.content, list):
        return "".join(part.text for part in message.content)
    return message.content or ""


def _called(call: s.CalledTool, where: str) -> ToolCall:
    try:
        arguments = strict_json.loads(call.function.arguments.encode() or b"{}")
    except BadRequest as error:
        raise wrong(f"the arguments of tool call '{call.id[:64]}': {error}", f"{where}.tool_calls") from None
    if not isinstance(arguments, dict):
        raise wrong("the arguments of a tool call are a JSON object", f"{where}.tool_calls")
    return ToolCall(call.id, call.function.name, arguments)


def tools_of(body: s.ChatRequest) -> list[ToolSpec]:
    """Checks the schemas: call it in a thread when there are any."""
    found = []
    for i, tool in enumerate(body.tools or ()):
        parameters = tool.function.parameters or {"type": "object", "properties": {}}
        _check_schema(parameters, f"tools.{i}.function.parameters")
        found.append(ToolSpec(tool.function.name, tool.function.description or "", parameters, {}))
    if len({spec.name for spec in found}) != len(found):
        raise wrong("two tools have the same name", "tools")
    return found


def tool_choice_of(body: s.ChatRequest) -> ToolChoice:
    """Which tools may or must be called."""
    choice = body.tool_choice
    if choice is None:
        return "auto"
    names = [tool.function.name for tool in body.tools or ()]
    if isinstance(choice, s.NamedTool):
        if choice.function.name not in names:
            raise wrong(
                f"'tool_choice' names '{choice.function.name[:64]}', which is not among the tools", "tool_choice"
            )
        return Named(choice.function.name)
    if choice == "required" and not names:
        raise wrong("'tool_choice' is 'required' but there are no tools", "tool_choice")
    return choice


def schema_of(body: s.ChatRequest) -> dict[str, Any] | None:
    """JSON Schema that the answer must satisfy; checks it: call in a thread."""
    if isinstance(body.response_format, s.JSONObjectFormat):
        return {"type": "object"}
    if isinstance(body.response_format, s.JSONSchemaFormat):
        schema = body.response_format.json_schema.json_schema
        _check_schema(schema, "response_format.json_schema.schema")
        return schema
    return None


def _check_schema(schema: dict[str, Any], param: str) -> None:
    size = len(json.dumps(schema))
    if size > MAX_SCHEMA_CHARS:
        raise wrong(
            f"expected a schema of at most {MAX_SCHEMA_CHARS} characters, got {size}", param, "schema_too_large"
        )
    if schema.get("type", "object") != "object" and param.startswith("tools"):
        raise wrong("the parameters of a function are a schema of type object", param, "invalid_schema")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise wrong(f"not a JSON Schema: {error.message[:300]}", param, "invalid_schema") from None


def refuse_for_workflow(body: s.Generating) -> None:
    """A workflow decides its own calls; what would need another answer than its result is refused."""
    exits = body.flowserve is not None and body.flowserve.early_exit is not None
    asked: list[tuple[str, bool]] = [("n", (body.n or 1) > 1), ("flowserve.early_exit", exits)]
    if isinstance(body, s.ChatRequest):
        asked += [
            ("tools", bool(body.tools)),
            ("response_format", body.response_format is not None and body.response_format.type != "text"),
            ("logprobs", bool(body.logprobs)),
        ]
    elif isinstance(body, s.CompletionRequest):
        asked += [("logprobs", body.logprobs is not None), ("prompt", not isinstance(body.prompt, str))]
    for name, given in asked:
        if given:
            raise wrong(
                f"'{name}' does not go with the workflow '{body.model[:100]}', which makes its own calls; leave it out",
                name,
                "unsupported_parameter",
            )


def workflow_inputs(plan: Plan, text: str | None, extra: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a workflow that is used as a model: `extra` by name, and `text` for the one text that is left."""
    properties: dict[str, Any] = plan.input.get("properties", {})
    texts = [name for name, schema in properties.items() if schema.get("type") == "string" and name not in extra]
    required = [name for name in texts if name in plan.input.get("required", ())]
    open_to = required if len(required) == 1 else texts
    if len(open_to) != 1:
        listed = ", ".join(texts) or "none"
        raise wrong(
            f"the workflow '{plan.name}' must have exactly one text parameter that is not given in flowserve.input; "
            f"it has: {listed}. Give the others as extra_body={{'flowserve': {{'input': {{...}}}}}}",
            "messages",
        )
    if text is None:
        raise wrong("the last message must be the user's: it fills the workflow's input", "messages")
    return {**extra, open_to[0]: text}


def last_user_text(messages: Sequence[s.ChatMessage]) -> str | None:
    return next((text_of(message) for message in reversed(messages) if message.role == "user"), None)


# --- out: what is answered --------------------------------------------------------------------------------------------


def result_text(value: Any) -> str:
    """A workflow's result as content."""
    return value if isinstance(value, str) else dumps(value).decode()


def usage(ended: Sequence[RunSnapshot]) -> dict[str, Any]:
    """`trial_tokens` is ours: beside the completion, and part of neither count of OpenAI's."""
    tokens_in, tokens_out = sum(run.tokens_in for run in ended), sum(run.tokens_out for run in ended)
    counts: dict[str, Any] = {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
        "prompt_tokens_details": {"cached_tokens": sum(run.cached_tokens for run in ended)},
    }
    trials = sum(run.trial_tokens for run in ended)
    return counts | ({"trial_tokens": trials} if trials else {})


def ours(ended: Sequence[RunSnapshot]) -> dict[str, Any]:
    """Our own field of an answer: which calls ended early, and where the KV of prompts came from, if engines tell that."""
    exits = [{"did": exited["did"], "why": exited["why"]} for run in ended for exited in run.exits]
    told = {**({"early_exit": exits} if exits else {}), **reuse_data(summed(run.provenance for run in ended))}
    return {"flowserve": told} if told else {}


def exit_of(body: s.ChatRequest | s.CompletionRequest) -> ExitSpec | None:
    """How the client lets the call end early; None: not at all. Whoever asks for it here, asks for an approximate answer."""
    given = body.flowserve.early_exit if body.flowserve is not None else None
    if given is None:
        return None
    where = "flowserve.early_exit"
    asked: list[tuple[str, bool]] = [("n", (body.n or 1) > 1), ("logprobs", body.logprobs not in (None, False))]
    if isinstance(body, s.ChatRequest):
        asked.append(("tools", bool(body.tools)))
        asked.append(("response_format", body.response_format is not None and body.response_format.type != "text"))
    for name, has in asked:
        if has:
            raise wrong(f"'{name}' does not go with '{where}': leave one of them out", where, "unsupported_parameter")
    if given.must_close and given.think is None:
        raise wrong(f"'{where}.must_close' needs '{where}.think'", f"{where}.must_close")
    return from_data(given.model_dump(exclude_none=True))


def tool_calls(choice: Choice) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for call in choice.tool_calls
    ]


def chat_logprobs(logprobs: Sequence[Logprob]) -> dict[str, Any]:
    return {
        "content": [
            {
                **_token(item.text, item.logprob),
                "top_logprobs": [_token(text, logprob) for _, text, logprob in item.top],
            }
            for item in logprobs
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}


def text_logprobs(logprobs: Sequence[Logprob], offset: int = 0) -> dict[str, Any]:
    offsets = []
    for item in logprobs:
        offsets.append(offset)
        offset += len(item.text)
    return {
        "tokens": [item.text for item in logprobs],
        "token_logprobs": [item.logprob for item in logprobs],
        "top_logprobs": [{text: logprob for _, text, logprob in item.top} for item in logprobs],
        "text_offset": offsets,
    }


def embedding(vectors: Vectors, row: int, encoding: str | None) -> list[float] | str:
    """`base64` is little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(vectors[row].astype("<f4").tobytes()).decode()
    return [float(x) for x in vectors[row]]
