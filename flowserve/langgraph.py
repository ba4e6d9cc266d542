"""For people who keep LangGraph: `from flowserve.langgraph import attach, serve`. Needs `langgraph` (the extra `langgraph`)."""

try:
    from flowserve.integrations.langchain.carrier import Carrier, hints
    from flowserve.integrations.langgraph.attach import attach
    from flowserve.integrations.langgraph.serve import DataflowGraph, serve
except ImportError as cause:
    raise ImportError(
        f"flowserve.langgraph needs langgraph 1.2 (pip install 'flowserve[langgraph]'); its import failed: {cause}"
    ) from cause

__all__ = ["Carrier", "DataflowGraph", "attach", "hints", "serve"]
