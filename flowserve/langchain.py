"""For people who keep LangChain: `from flowserve.langchain import ChatFlowServe`. Needs the extra `langchain`."""

try:
    from flowserve.integrations.langchain.carrier import Carrier, hints
    from flowserve.integrations.langchain.chat import ChatFlowServe
    from flowserve.integrations.langchain.embeddings import FlowServeEmbeddings
    from flowserve.integrations.langchain.retriever import FlowServeRetriever
    from flowserve.integrations.langchain.vectorstore import FlowServeVectorStore
except ImportError as cause:
    raise ImportError(
        f"flowserve.langchain needs langchain-openai 1.7 (pip install 'flowserve[langchain]'); its import failed: {cause}"
    ) from cause

__all__ = ["Carrier", "ChatFlowServe", "FlowServeEmbeddings", "FlowServeRetriever", "FlowServeVectorStore", "hints"]
