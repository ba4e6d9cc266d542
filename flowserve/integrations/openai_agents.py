"""OpenAI's Agents SDK on FlowServe: a model provider whose models are those of a server, its workflows among them.

Needs `openai-agents` (the extra `agents`). Their pins clash with those of others, so this is tested in an environment of its own
(`.ci/frameworks`).
"""

from typing import Any

from agents import ModelProvider, OpenAIProvider

from flowserve.integrations.server import Server


def provider(base_url: str | None = None, api_key: str | None = None, *, use_responses: bool = True) -> ModelProvider:
    """For `RunConfig(model_provider=...)`. use_responses: by `/v1/responses`, as the SDK does by default, or by chat completions.

    Without arguments `FLOWSERVE_URL` and `FLOWSERVE_API_KEY` count.
    """
    client: Any = Server(base_url, api_key).async_client
    return OpenAIProvider(openai_client=client, use_responses=use_responses)
