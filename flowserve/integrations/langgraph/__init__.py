"""LangGraph on FlowServe: `serve` runs a compiled graph without super-step barriers where its data allows it.

Read `frontier.py` first: what may begin early is decided there, purely; `serve.py` only acts.
"""
