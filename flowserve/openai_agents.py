"""For people who keep OpenAI's Agents SDK: `from flowserve.openai_agents import provider`. Needs the extra `agents`."""

try:
    from flowserve.integrations.openai_agents import provider
except ImportError as cause:
    raise ImportError(
        f"flowserve.openai_agents needs openai-agents (pip install 'flowserve[agents]'); its import failed: {cause}"
    ) from cause

__all__ = ["provider"]
