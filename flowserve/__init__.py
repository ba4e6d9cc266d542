"""FlowServe: declare an LLM workflow once, serve it, schedule it as a whole.

    import flowserve as fs

Every public name stands here. They are loaded at their first use, so that `import flowserve` and the
command line start quickly; docs/map.md says where each lives.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowserve import errors as errors
    from flowserve import programs as programs
    from flowserve import testing as testing
    from flowserve.default import close as close
    from flowserve.default import configure as configure
    from flowserve.graphs.agent import agent as agent
    from flowserve.graphs.context import emit as emit
    from flowserve.graphs.control import all_of as all_of
    from flowserve.graphs.control import any_of as any_of
    from flowserve.graphs.control import contains as contains
    from flowserve.graphs.control import length as length
    from flowserve.graphs.control import loop as loop
    from flowserve.graphs.control import match as match
    from flowserve.graphs.control import negate as negate
    from flowserve.graphs.control import optional as optional
    from flowserve.graphs.control import quorum as quorum
    from flowserve.graphs.control import race as race
    from flowserve.graphs.control import when as when
    from flowserve.graphs.dynamic import dynamic as dynamic
    from flowserve.graphs.exits import early_exit as early_exit
    from flowserve.graphs.llm import llm as llm
    from flowserve.graphs.llm import prompt as prompt
    from flowserve.graphs.plan import SLO as SLO
    from flowserve.graphs.plan import Budget as Budget
    from flowserve.graphs.plan import Retry as Retry
    from flowserve.graphs.search import Index as Index
    from flowserve.graphs.stopping import adaptive_consistency as adaptive_consistency
    from flowserve.graphs.stopping import agreement as agreement
    from flowserve.graphs.stopping import certaindex as certaindex
    from flowserve.graphs.stopping import decided as decided
    from flowserve.graphs.stopping import dirichlet as dirichlet
    from flowserve.graphs.stopping import entropy as entropy
    from flowserve.graphs.stopping import esc as esc
    from flowserve.graphs.stopping import majority as majority
    from flowserve.graphs.tool import tool as tool
    from flowserve.graphs.types import Doc as Doc
    from flowserve.graphs.types import Message as Message
    from flowserve.graphs.types import ToolCall as ToolCall
    from flowserve.graphs.workflow import Workflow as Workflow
    from flowserve.graphs.workflow import workflow as workflow

__version__ = "0.1.0"

_WHERE = {
    "Budget": "graphs.plan",
    "Doc": "graphs.types",
    "Index": "graphs.search",
    "Message": "graphs.types",
    "Retry": "graphs.plan",
    "SLO": "graphs.plan",
    "ToolCall": "graphs.types",
    "Workflow": "graphs.workflow",
    "adaptive_consistency": "graphs.stopping",
    "agent": "graphs.agent",
    "agreement": "graphs.stopping",
    "all_of": "graphs.control",
    "any_of": "graphs.control",
    "certaindex": "graphs.stopping",
    "close": "default",
    "configure": "default",
    "contains": "graphs.control",
    "decided": "graphs.stopping",
    "dirichlet": "graphs.stopping",
    "dynamic": "graphs.dynamic",
    "early_exit": "graphs.exits",
    "emit": "graphs.context",
    "entropy": "graphs.stopping",
    "errors": "",
    "esc": "graphs.stopping",
    "length": "graphs.control",
    "llm": "graphs.llm",
    "loop": "graphs.control",
    "majority": "graphs.stopping",
    "match": "graphs.control",
    "negate": "graphs.control",
    "optional": "graphs.control",
    "programs": "",
    "prompt": "graphs.llm",
    "quorum": "graphs.control",
    "race": "graphs.control",
    "testing": "",
    "tool": "graphs.tool",
    "when": "graphs.control",
    "workflow": "graphs.workflow",
}
"""Public name -> the module of it; empty: the name is a module itself."""

__all__ = [
    "SLO",
    "Budget",
    "Doc",
    "Index",
    "Message",
    "Retry",
    "ToolCall",
    "Workflow",
    "__version__",
    "adaptive_consistency",
    "agent",
    "agreement",
    "all_of",
    "any_of",
    "certaindex",
    "close",
    "configure",
    "contains",
    "decided",
    "dirichlet",
    "dynamic",
    "early_exit",
    "emit",
    "entropy",
    "errors",
    "esc",
    "length",
    "llm",
    "loop",
    "majority",
    "match",
    "negate",
    "optional",
    "programs",
    "prompt",
    "quorum",
    "race",
    "testing",
    "tool",
    "when",
    "workflow",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'flowserve' has no attribute '{name}'")
    module = import_module(f"flowserve.{_WHERE[name] or name}")
    value = getattr(module, name) if _WHERE[name] else module
    if _WHERE[name].startswith("graphs"):
        import_module("flowserve.default").install()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
