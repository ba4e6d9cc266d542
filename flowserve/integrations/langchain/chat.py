"""`ChatFlowServe`: a server's models and workflows as LangChain's chat model.

LangChain's own client of OpenAI's dialect does the talking, which the server's OpenAI door speaks; here stands what differs: where the
server is, whose key it gets, that usage is always asked for, and that what the server says of an answer is passed on.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import openai
from langchain_core.language_models.base import LangSmithParams
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils import secret_from_env
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import Field, SecretStr

from flowserve.integrations.langchain.carrier import hints, joined
from flowserve.integrations.server import NO_KEY, default_url


class ChatFlowServe(BaseChatOpenAI):
    """Chat by an engine's model or by a workflow, whose name is a model's there.

    model: as `/v1/models` lists it. base_url: the server's, with `/v1`; default `FLOWSERVE_URL`, else this machine's port 8000.
    api_key: default `FLOWSERVE_API_KEY`; a server without keys needs none. Everything else is as of `ChatOpenAI`.

    `response_metadata["flowserve"]` of an answer says what was approximate in it, if anything was: calls that ended early, KV
    that was reused elsewhere than at the front.
    """

    model_name: str = Field(alias="model")
    openai_api_base: str | None = Field(default_factory=default_url, alias="base_url")
    openai_api_key: SecretStr | None | Callable[[], str] | Callable[[], Awaitable[str]] = Field(
        default_factory=secret_from_env("FLOWSERVE_API_KEY", default=NO_KEY), alias="api_key"
    )
    http_async_client: Any = Field(default_factory=openai.DefaultAsyncHttpxClient, exclude=True)
    """Of its own: LangChain would share one among models, whose event loops end at different times."""
    stream_usage: bool | None = True
    dialect: str = "flowserve"
    """What kind of server it is, for the hints of calls that a `Carrier` follows: flowserve, vllm, dynamo, sglang, llm-d, openai."""

    @property
    def _llm_type(self) -> str:
        return "flowserve-chat"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return {**super()._get_ls_params(stop, **kwargs), "ls_provider": "flowserve"}

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Literal["function_calling", "json_mode", "json_schema"] = "json_schema",
        **options: Any,
    ) -> Runnable[Any, Any]:
        """As of `ChatOpenAI`; by default the server holds the answer to the schema while it is written."""
        return super().with_structured_output(schema, method=method, **options)

    def _get_request_payload(self, input_: Any, *, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        payload: dict[str, Any] = super()._get_request_payload(input_, stop=stop, **kwargs)
        for field, told in hints(self.dialect).items():
            payload[field] = joined(told, payload.get(field) or {})
        return payload

    def _create_chat_result(
        self, response: dict[str, Any] | openai.BaseModel, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        told = response.get("flowserve") if isinstance(response, dict) else getattr(response, "flowserve", None)
        info = {**(generation_info or {}), "flowserve": told} if told else generation_info
        return super()._create_chat_result(response, info)

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], default_chunk_class: type, base_generation_info: dict[str, Any] | None
    ) -> ChatGenerationChunk | None:
        piece = super()._convert_chunk_to_generation_chunk(chunk, default_chunk_class, base_generation_info)
        if piece is not None and chunk.get("flowserve"):
            piece.message.response_metadata["flowserve"] = chunk["flowserve"]
        return piece
