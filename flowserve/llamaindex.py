"""For people who keep LlamaIndex: `from flowserve.llamaindex import FlowServeLLM`. Needs the extra `llamaindex`."""

try:
    from flowserve.integrations.llamaindex import FlowServeEmbedding, FlowServeLLM, FlowServeRetriever
except ImportError as cause:
    raise ImportError(
        "flowserve.llamaindex needs llama-index-core 0.14 and llama-index-llms-openai-like "
        f"(pip install 'flowserve[llamaindex]'); its import failed: {cause}"
    ) from cause

__all__ = ["FlowServeEmbedding", "FlowServeLLM", "FlowServeRetriever"]
