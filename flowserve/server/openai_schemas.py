"""What OpenAI's clients send. Types and ranges are checked, fields that nobody knows are ignored, as OpenAI does.

Fields that are known and that no engine here honours are refused when they would change the answer
(`openai_convert.refuse_unsupported`).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flowserve.server.schemas import MAX_TOKENS, BudgetIn, Integer
from flowserve.server.strict_json import SAFE_INTEGER

MAX_CHOICES = 16
MAX_EMBEDDED_TEXTS = 2_048


class OpenAIIn(BaseModel):
    """Base of what OpenAI's clients send."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


# --- messages ---------------------------------------------------------------------------------------------------


class TextPart(OpenAIIn):
    type: Literal["text"]
    text: str


class CalledFunction(OpenAIIn):
    name: str = Field(min_length=1, max_length=64)
    arguments: str = Field(description="JSON, as text.")


class CalledTool(OpenAIIn):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(OpenAIIn):
    """One turn. `content` may be null only beside tool calls."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = Field(default=None, max_length=64)
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None


# --- tools and formats ------------------------------------------------------------------------------------------


class FunctionSpec(OpenAIIn):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="JSON Schema of an object.")


class ToolIn(OpenAIIn):
    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(OpenAIIn):
    name: str


class NamedTool(OpenAIIn):
    type: Literal["function"]
    function: NamedFunction


class TextFormat(OpenAIIn):
    type: Literal["text"]


class JSONObjectFormat(OpenAIIn):
    type: Literal["json_object"]


class NamedSchema(OpenAIIn):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, populate_by_name=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    json_schema: dict[str, Any] = Field(alias="schema")


class JSONSchemaFormat(OpenAIIn):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JSONObjectFormat | JSONSchemaFormat, Field(discriminator="type")]


class StreamOptions(OpenAIIn):
    include_usage: bool | None = None


class EarlyExitIn(OpenAIIn):
    """How a call may end before its chain of thought does; fields as those of `fs.early_exit`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    answer: Literal["boxed", "number", "choice", "line"]
    rule: Literal["default", "certified"] | None = None
    deliver: Literal["answer_only", "readout"] | None = None
    trial: str | None = Field(default=None, min_length=1, max_length=2_000, description="What makes a fork answer.")
    at: str | None = Field(default=None, min_length=1, max_length=100, description="Where forks are made: behind this.")
    think: Annotated[list[str], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="Marks around a reasoning model's thoughts."
    )
    budget: Integer | None = Field(default=None, ge=1, le=1_000_000, description="Most tokens of thought.")
    mean: Literal["arithmetic", "geometric"] | None = None
    skip: Integer | None = Field(default=None, ge=0, le=100)
    must_close: bool | None = None
    task: str | None = Field(default=None, max_length=200)


Name = Annotated[str, Field(min_length=1, max_length=256)]
Count = Annotated[Integer, Field(ge=0, le=SAFE_INTEGER)]


class CallerIn(OpenAIIn):
    """Where in a program that the client runs itself a call comes from; fields as those of `graphs.caller.Caller`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    program: Name | None = None
    run: Name | None = None
    parent: Name | None = Field(default=None, description="Session of the program that this one is a part of.")
    node: Name | None = None
    step: Count | None = None
    index: Count | None = Field(default=None, description="Which of a fan-out's siblings, from 0.")
    triggers: list[Name] = Field(default_factory=list, max_length=64, description="What made the node run.")


class FlowServeExtra(OpenAIIn):
    """Our own `extra_body={"flowserve": {...}}`: closed, because nobody else writes it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    input: dict[str, Any] = Field(default_factory=dict, description="Further parameters of a workflow, by name.")
    session_id: str | None = Field(default=None, max_length=256)
    priority: Integer = Field(default=0, ge=-1_000, le=1_000, description="Higher goes first, inside a tier.")
    timeout: float | None = Field(default=None, gt=0, le=86_400, description="Seconds.")
    degrade: bool = Field(default=True, description="Whether declared degradations may be taken to keep the deadline.")
    budget: BudgetIn | None = Field(default=None, description="What it may spend.")
    caller: CallerIn | None = Field(default=None, description="Of a client's program; kept with the run.")
    early_exit: EarlyExitIn | None = Field(
        default=None, description="Let a model's answer end early when it is sure; approximate. Not for workflows."
    )


# --- requests ---------------------------------------------------------------------------------------------------

Seed = Annotated[Integer, Field(ge=-SAFE_INTEGER, le=SAFE_INTEGER)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Stop = StopText | Annotated[list[StopText], Field(max_length=4)]
Model = Annotated[str, Field(min_length=1, max_length=200, description="An engine's model, or a workflow.")]


class AgentHintsIn(OpenAIIn):
    priority: Integer | None = Field(default=None, description="Dynamo's: higher goes first.")


class NvextIn(OpenAIIn):
    """Dynamo's own field."""

    agent_hints: AgentHintsIn | None = None


class Generating(OpenAIIn):
    """What chat and plain completions share."""

    model: Model
    max_tokens: Integer | None = Field(default=None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: Integer | None = Field(default=None, ge=0, le=1_000_000)
    n: Integer | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: Stop | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=1_000)
    service_tier: str | None = None
    session_id: str | None = Field(default=None, max_length=256)
    priority: Integer | None = Field(default=None, description="vLLM's: lower goes first, unlike ours.")
    vllm_xargs: dict[str, Any] | None = Field(default=None, description="Of vLLM; its `session_id` counts.")
    nvext: NvextIn | None = None
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = Field(default=None, max_length=16)
    flowserve: FlowServeExtra | None = None


class ChatRequest(Generating):
    """Chat completion."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "rag",
                    "messages": [{"role": "user", "content": "What is the town that Rusu governs known for?"}],
                }
            ]
        }
    )

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Integer | None = Field(default=None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: Integer | None = Field(default=None, ge=0, le=20)
    tools: list[ToolIn] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None


class CompletionRequest(Generating):
    """Plain completion: the prompt goes to the model as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "demo", "prompt": "Once"}]})

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
    logprobs: Integer | None = Field(default=None, ge=0, le=5)
    echo: bool | None = None
    suffix: str | None = None
    best_of: Integer | None = Field(default=None, ge=1, le=MAX_CHOICES)


class EmbeddingRequest(OpenAIIn):
    """Embeddings of texts."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "minilm", "input": "Rusu governs Velol."}]})

    model: Model
    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_EMBEDDED_TEXTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Integer | None = Field(default=None, ge=1, le=100_000)


# --- answers, declared for the OpenAPI document ---------------------------------------------------------------------


class OpenAIOut(BaseModel):
    """Base of answers. They are built as plain data; a test holds the two together."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class UsageDetails(OpenAIOut):
    cached_tokens: int


class Usage(OpenAIOut):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: UsageDetails
    trial_tokens: int | None = Field(default=None, description="Written by trials, where there were any; ours.")


class EarlyExitOut(OpenAIOut):
    did: Literal["stopped", "budget", "unavailable"]
    why: str


class ReuseOut(OpenAIOut):
    exact: int
    pasted: int
    recomputed: int
    policy: str


class FlowServeOut(OpenAIOut):
    """What OpenAI's answers have no field for."""

    early_exit: list[EarlyExitOut] | None = Field(
        default=None, description="Calls that ended early: the answer is approximate then."
    )
    reuse: ReuseOut | None = Field(
        default=None, description="Of the KV of prompts, in tokens; the answer is approximate where any is pasted."
    )


class TopLogprob(OpenAIOut):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(OpenAIOut):
    content: list[TokenLogprob]
    refusal: None


class FunctionOut(OpenAIOut):
    name: str
    arguments: str


class ToolCallOut(OpenAIOut):
    id: str
    type: Literal["function"]
    function: FunctionOut


class AnswerMessage(OpenAIOut):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCallOut] | None = None


class ChatChoice(OpenAIOut):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(OpenAIOut):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    flowserve: FlowServeOut | None = None


class TextLogprobs(OpenAIOut):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(OpenAIOut):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(OpenAIOut):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    flowserve: FlowServeOut | None = None


class EmbeddingOut(OpenAIOut):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(OpenAIOut):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(OpenAIOut):
    object: Literal["list"]
    data: list[EmbeddingOut]
    model: str
    usage: EmbeddingUsage


class ModelOut(OpenAIOut):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(OpenAIOut):
    object: Literal["list"]
    data: list[ModelOut]
