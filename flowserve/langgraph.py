"""For people who keep LangGraph: `from flowserve.langgraph import serve`. Needs `langgraph` (the extra `langgraph`)."""

try:
    from flowserve.integrations.langgraph.serve import DataflowGraph, serve
except ImportError as cause:
    raise ImportError(
        f"flowserve.langgraph needs langgraph 1.2 (pip install 'flowserve[langgraph]'); its import failed: {cause}"
    ) from cause

__all__ = ["DataflowGraph", "serve"]
