"""`flowserve bench workflows`: whole workflows on FlowServe, in LangGraph and in plain asyncio, on the same vLLM servers.

One file per workload, each with the same program three times: declared for FlowServe, as a LangGraph graph, and as
awaited coroutines. `shape.py` says what they share, `systems.py` how each is driven, `compare.py` what is measured.
"""
