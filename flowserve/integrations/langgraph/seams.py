"""The names inside LangGraph that running without barriers leans on, imported in one place.

They are not public: when a release moves one, `import` fails here and `serve` says which release it knows.
"""

from langgraph._internal._constants import (
    CONF,
    CONFIG_KEY_CHECKPOINT_NS,
    CONFIG_KEY_CHECKPOINTER,
    CONFIG_KEY_READ,
    CONFIG_KEY_SEND,
    CONFIG_KEY_TASK_ID,
)
from langgraph._internal._runnable import RunnableCallable
from langgraph.channels import BinaryOperatorAggregate, LastValue
from langgraph.channels.base import BaseChannel
from langgraph.errors import GraphBubbleUp
from langgraph.graph._branch import BranchSpec
from langgraph.pregel._read import PregelNode

__all__ = [
    "CONF",
    "CONFIG_KEY_CHECKPOINTER",
    "CONFIG_KEY_CHECKPOINT_NS",
    "CONFIG_KEY_READ",
    "CONFIG_KEY_SEND",
    "CONFIG_KEY_TASK_ID",
    "BaseChannel",
    "BinaryOperatorAggregate",
    "BranchSpec",
    "GraphBubbleUp",
    "LastValue",
    "PregelNode",
    "RunnableCallable",
]
