"""Retrieval inside a generation whose latency is hidden: guess the passage, write on, verify, commit or roll back.

`transaction.py` decides one generation, events in, commands out; `stride.py` decides how far it may guess ahead. Who carries the
commands out is `flowserve/runtime/iterative.py`.
"""
