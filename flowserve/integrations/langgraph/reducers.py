"""Whether a key's next value can be computed ahead of LangGraph without a trace: only by reducers known to be pure."""

import operator
from typing import Any

from langchain_core.messages import BaseMessage, BaseMessageChunk
from langgraph.graph.message import add_messages

from flowserve.integrations.langgraph.seams import BinaryOperatorAggregate, LastValue

_PURE = (operator.add, operator.or_, operator.and_, operator.mul, max, min)


def foldable(channel: Any, values: list[Any], pure: bool) -> bool:
    """Whether writing `values` to a copy of `channel` gives what LangGraph will get, and changes nothing that others see."""
    if type(channel) is LastValue:
        return len(values) == 1
    if type(channel) is not BinaryOperatorAggregate:
        return False
    if pure or any(channel.operator is each for each in _PURE):
        return True
    return channel.operator is add_messages and all(_has_identity(value) for value in values)


def _has_identity(value: Any) -> bool:
    """Messages keep the id that they get; what is made into a message anew at each use would get another each time."""
    many = value if isinstance(value, list) else [value]
    return all(isinstance(each, BaseMessage) and not isinstance(each, BaseMessageChunk) for each in many)
