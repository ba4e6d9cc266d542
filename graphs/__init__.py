"""The language of workflows: declare, check, compile, write down. Nothing here runs anything."""

if __name__ != "flowserve.graphs":  # a bare import would make a second copy of every class
    raise ImportError(f"import flowserve.graphs, not {__name__}: the folder graphs/ is the package flowserve.graphs")

from flowserve.graphs.agent import AgentNode, agent
from flowserve.graphs.context import Caller, emit
from flowserve.graphs.control import (
    all_of,
    any_of,
    contains,
    length,
    loop,
    match,
    negate,
    optional,
    quorum,
    race,
    when,
)
from flowserve.graphs.dynamic import DynamicNode, dynamic
from flowserve.graphs.exits import early_exit
from flowserve.graphs.llm import LLMNode, llm, prompt
from flowserve.graphs.nodes import Node
from flowserve.graphs.plan import SLO, Budget, Plan, Retry
from flowserve.graphs.program import Program
from flowserve.graphs.runner import Handle, Runner, current_runner, override_runner, set_runner
from flowserve.graphs.search import Index, SearchNode
from flowserve.graphs.stopping import (
    Stop,
    adaptive_consistency,
    agreement,
    certaindex,
    decided,
    dirichlet,
    entropy,
    esc,
    majority,
)
from flowserve.graphs.tool import ToolNode, tool
from flowserve.graphs.types import Doc, Message, ToolCall
from flowserve.graphs.workflow import Workflow, workflow

__all__ = [
    "SLO",
    "AgentNode",
    "Budget",
    "Caller",
    "Doc",
    "DynamicNode",
    "Handle",
    "Index",
    "LLMNode",
    "Message",
    "Node",
    "Plan",
    "Program",
    "Retry",
    "Runner",
    "SearchNode",
    "Stop",
    "ToolCall",
    "ToolNode",
    "Workflow",
    "adaptive_consistency",
    "agent",
    "agreement",
    "all_of",
    "any_of",
    "certaindex",
    "contains",
    "current_runner",
    "decided",
    "dirichlet",
    "dynamic",
    "early_exit",
    "emit",
    "entropy",
    "esc",
    "length",
    "llm",
    "loop",
    "majority",
    "match",
    "negate",
    "optional",
    "override_runner",
    "prompt",
    "quorum",
    "race",
    "set_runner",
    "tool",
    "when",
    "workflow",
]
