"""What the Responses API sends and gets. Read as strictly as the rest of OpenAI's door: unknown fields are ignored, known ones that
would change the answer and that nothing here honours are refused (`openai_responses_convert.refuse_unsupported`).
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from flowserve.server.openai_schemas import (
    FlowServeExtra,
    FlowServeOut,
    JSONObjectFormat,
    Model,
    OpenAIIn,
    OpenAIOut,
    Seed,
    TextFormat,
)
from flowserve.server.schemas import MAX_TOKENS, Integer

MAX_ITEMS = 4_096
MAX_RESPONSE_TEXT = 10_485_760
"""Characters of one input text: OpenAI's own limit."""


class InputText(OpenAIIn):
    type: Literal["input_text", "output_text", "text"]
    text: str


class MessageItem(OpenAIIn):
    """One turn. `type` may be left out."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputText]


class FunctionCallItem(OpenAIIn):
    """A call that the model has made before."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=64)
    name: str = Field(min_length=1, max_length=64)
    arguments: str = Field(description="JSON, as text.")


class FunctionOutputItem(OpenAIIn):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=64)
    output: str | list[InputText]


Item = MessageItem | FunctionCallItem | FunctionOutputItem


class FunctionTool(OpenAIIn):
    """A function that the model may call. Hosted tools (web search and the like) are not had here."""

    type: Literal["function"]
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="JSON Schema of an object.")
    strict: bool | None = Field(default=None, description="Arguments always follow the schema here.")


class FunctionChoice(OpenAIIn):
    type: Literal["function"]
    name: str


class SchemaFormat(OpenAIIn):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, populate_by_name=True)

    type: Literal["json_schema"]
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    json_schema: dict[str, Any] = Field(alias="schema")


class TextIn(OpenAIIn):
    format: Annotated[TextFormat | JSONObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None


class ReasoningIn(OpenAIIn):
    effort: str | None = None
    summary: str | None = None


class ResponseRequest(OpenAIIn):
    """A response."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "demo", "input": "Once"}]})

    model: Model
    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]
    instructions: str | None = None
    previous_response_id: str | None = Field(default=None, max_length=100)
    max_output_tokens: Integer | None = Field(default=None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    tools: list[FunctionTool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextIn | None = None
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = None
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = Field(default=None, max_length=16)
    service_tier: str | None = None
    seed: Seed | None = Field(default=None, description="Ours; OpenAI has none here.")
    session_id: str | None = Field(default=None, max_length=256)
    truncation: Literal["auto", "disabled"] | None = None
    reasoning: ReasoningIn | None = None
    top_logprobs: Integer | None = Field(default=None, ge=0, le=20)
    max_tool_calls: Integer | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    include: list[str] | None = Field(default=None, max_length=20)
    flowserve: FlowServeExtra | None = None


# --- answers, declared for the OpenAPI document -----------------------------------------------------------------------


class OutputText(OpenAIOut):
    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[None]


class OutputMessage(OpenAIOut):
    type: Literal["message"]
    id: str
    status: Literal["completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(OpenAIOut):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["completed"]


class InputDetails(OpenAIOut):
    cached_tokens: int


class OutputDetails(OpenAIOut):
    reasoning_tokens: int


class ResponseUsage(OpenAIOut):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(OpenAIOut):
    code: str
    message: str


class IncompleteDetails(OpenAIOut):
    reason: Literal["max_output_tokens"]


class ResponseOut(OpenAIOut):
    """A response as it stands."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: str | None
    service_tier: str | None
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    metadata: dict[str, str]
    flowserve: FlowServeOut | None = None


class ResponseDeleted(OpenAIOut):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(OpenAIOut):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
