"""`fs.agent`: a bounded loop of model calls and tool calls."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, overload

from flowserve.errors import Problem
from flowserve.graphs import settings
from flowserve.graphs.declaration import AgentDecl, OutputExpr
from flowserve.graphs.llm import check_template, checked_sampling, io_schemas
from flowserve.graphs.nodes import Node, R, bound_of
from flowserve.graphs.plan import SAMPLING, Kind, LLMSpec, Retry, Template
from flowserve.graphs.signature import Parameter, Signature
from flowserve.graphs.tool import ToolNode
from flowserve.graphs.trace import Trace
from flowserve.graphs.values import Value

_TASK = "{{ task }}"


class AgentNode(Node[..., R]):
    """A model that calls tools until it answers. Takes `task: str`."""

    def __init__(
        self,
        tools: Sequence[Node[..., Any]],
        instructions: str,
        output: Any,
        max_steps: int,
        max_parallel_tools: int,
        sampling: dict[str, Any],
        **options: Any,
    ) -> None:
        self.tools = tuple(tools)
        self.instructions = instructions
        self.output = output
        self.max_steps = max_steps
        self.max_parallel_tools = max_parallel_tools
        self.sampling = sampling
        self.settings, self.setting_problems = settings.read(**options)

    def __call__(self, task: str) -> R:
        """What the agent answers to `task`."""
        return super().__call__(task)

    @cached_property
    def signature(self) -> Signature:
        return Signature(self.settings.name or "agent", (Parameter("task", str),), self.output)

    def problems(self) -> tuple[Problem, ...]:
        found = [*self.setting_problems, *self._read[1]]
        for tool in self.tools:
            if not isinstance(tool, ToolNode):
                came = getattr(tool, "name", None) or type(tool).__name__
                found.append(
                    Problem(
                        self.name,
                        "tools= functions decorated with @fs.tool",
                        str(came),
                        "Wrap it in a @fs.tool function.",
                    )
                )
        names = [t.name for t in self.tools if isinstance(t, ToolNode)]
        for name in sorted({n for n in names if names.count(n) > 1}):
            found.append(Problem(self.name, "tools with different names", f"'{name}' twice", "Name each tool once."))
        return tuple(found)

    @cached_property
    def _read(self) -> tuple[LLMSpec, tuple[Problem, ...]]:
        problems: list[Problem] = []
        sig = self.signature
        system = check_template(self.instructions, sig, "text of instructions", problems)
        user = check_template(_TASK, sig, "task", problems)
        params, output = io_schemas(sig, problems)
        sampling = checked_sampling(self.name, self.sampling, problems)
        template = Template(user, system, None, _TASK, str(self.instructions))
        return LLMSpec(self.name, template, params, output, **sampling), tuple(problems)

    def declare(self, trace: Trace, args: dict[str, object]) -> Value:
        llm = trace.model(self._read[0], self.output)
        tools = tuple(tool.register(trace) for tool in self.tools if isinstance(tool, ToolNode))
        steps = bound_of(trace, self.name, "max_steps", self.max_steps)
        parallel = bound_of(trace, self.name, "max_parallel_tools", self.max_parallel_tools)
        exprs = trace.lift_all(self.signature, args)
        payload = AgentDecl(llm.name, llm, tools, parallel)
        named_by = None if self.settings.name is None else self
        node = trace.add(Kind.AGENT, self.name, exprs, payload, self.settings, limit=steps, named_by=named_by)
        return Value(OutputExpr(node), self.output, node.name)


@overload
def agent(
    *,
    tools: Sequence[Node[..., Any]] = (),
    instructions: str = "",
    max_steps: int = 8,
    max_parallel_tools: int = 8,
    name: str | None = None,
    model: str | None = None,
    max_tokens: int = 512,
    temperature: float = 0.0,
    seed: int | None = None,
    retry: int | Retry = 0,
    timeout: float | None = None,
) -> AgentNode[str]: ...


@overload
def agent(
    *,
    output: type[R],
    tools: Sequence[Node[..., Any]] = (),
    instructions: str = "",
    max_steps: int = 8,
    max_parallel_tools: int = 8,
    name: str | None = None,
    model: str | None = None,
    max_tokens: int = 512,
    temperature: float = 0.0,
    seed: int | None = None,
    retry: int | Retry = 0,
    timeout: float | None = None,
) -> AgentNode[R]: ...


def agent(
    *,
    output: Any = str,
    tools: Sequence[Node[..., Any]] = (),
    instructions: str = "",
    max_steps: int = 8,
    max_parallel_tools: int = 8,
    name: str | None = None,
    model: str | None = None,
    max_tokens: int = 512,
    temperature: float = 0.0,
    seed: int | None = None,
    retry: int | Retry = 0,
    timeout: float | None = None,
) -> AgentNode[Any]:
    """Declare an agent: at most `max_steps` model calls, between which it may call `tools`.

    `instructions` is the system text (a template over `task`); the last step must answer, as `output`.
    """
    values = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    sampling = {key: values[key] for key in SAMPLING if key in values}
    options: dict[str, Any] = {"name": name, "retry": retry, "timeout": timeout}
    return AgentNode(tools, instructions, output, max_steps, max_parallel_tools, sampling, **options)
