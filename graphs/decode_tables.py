"""The tables of a spec: models, tools, agents and dynamic functions, checked and resolved."""

import re
from collections.abc import Mapping
from typing import Any

from flowserve.errors import Problem
from flowserve.graphs.declaration import AgentDecl
from flowserve.graphs.dynamic import DynamicNode
from flowserve.graphs.exits import check_exit
from flowserve.graphs.llm import check_form, check_order, checked_sampling
from flowserve.graphs.plan import SAMPLING, DynamicSpec, LLMSpec, Span, Template, ToolSpec
from flowserve.graphs.retrieving import check_retrieval
from flowserve.graphs.tool import ToolNode

FIX = "Correct the spec."
MAX_PATTERN_CHARS = 1_000
_REPEATED_GROUP = re.compile(r"\)[*+{]")
"""`(a+)+` takes exponential time on a text that nearly fits; specs come from outside, so no group is repeated."""


class Tables:
    """What the nodes of a spec refer to by name. `problems` and `outputs` (schema per model) are filled on the way."""

    def __init__(
        self,
        spec: dict[str, Any],
        tools: Mapping[str, ToolNode[..., Any]],
        dynamics: Mapping[str, DynamicNode[..., Any]],
    ) -> None:
        self.problems: dict[Problem, None] = {}
        self.outputs: dict[str, dict[str, Any] | None] = {}
        self.registered_tools = tools
        self.registered_dynamics = dynamics
        self.tools = {name: self._tool(name, data) for name, data in spec.get("tools", {}).items()}
        self.llms = {name: self._llm(name, data) for name, data in spec.get("llms", {}).items()}
        self.agents = {name: self._agent(name, data) for name, data in spec.get("agents", {}).items()}
        self.dynamics = {name: self._dynamic(name, data) for name, data in spec.get("dynamics", {}).items()}

    def _llm(self, name: str, data: dict[str, Any]) -> LLMSpec:
        found: list[Problem] = []
        sampling = checked_sampling(name, {k: data[k] for k in SAMPLING if k in data}, found)
        params = self._schema(name, data["params"])
        output = self._schema(name, data["output"]) if "output" in data else None
        check_form(name, output, sampling, found)
        template = self._template(name, data["prompt"], list(params.get("properties", {})))
        check_order(name, template, sampling, found)
        check_exit(name, output, sampling, found)
        check_retrieval(name, output, sampling, found)
        self.problems.update(dict.fromkeys(found))
        if name in self.outputs:
            self._note(name, "different names for llms and agents", "one name for both", "Rename one.")
        self.outputs[name] = output
        return LLMSpec(name, template, params, output, **sampling)

    def _template(self, name: str, prompt: dict[str, str], params: list[str]) -> Template:
        history = prompt.get("history")
        if history is not None and history not in params:
            self._note(name, "history: the name of a parameter", repr(history), FIX)
        user = self._spans(name, prompt.get("user", ""), params)
        system = self._spans(name, prompt.get("system", ""), params)
        return Template(user, system, history, prompt.get("user", ""), prompt.get("system", ""))

    def _spans(self, name: str, source: str, params: list[str]) -> tuple[Span, ...]:
        from flowserve.graphs import split

        try:
            spans, used = split.split(source), split.variables(source)
        except split.TemplateProblem as error:
            self._note(name, "a prompt in Jinja2 syntax", str(error), "Fix the template.")
            return ()
        for variable in sorted(used - set(params)):
            came = f"{{{{ {variable} }}}}, but there are: {', '.join(params) or 'none'}"
            self._note(name, "a prompt that uses the declared params", came, FIX)
        return spans

    def _tool(self, name: str, data: dict[str, Any]) -> ToolSpec:
        params, returns = self._schema(name, data["params"]), self._schema(name, data["returns"])
        spec = ToolSpec(name, data.get("description", ""), params, returns, data.get("effects", True))
        known = self.registered_tools.get(name)
        if known is None:
            have = ", ".join(sorted(self.registered_tools)[:20]) or "none"
            self._note(
                name,
                "a registered tool",
                f"an unknown one; registered: {have}",
                "Start the server with the file that defines it.",
            )
            return spec
        now = known.spec
        for what, mine, theirs in (
            ("params", now.params, spec.params),
            ("returns", now.returns, spec.returns),
            ("effects", now.effects, spec.effects),
        ):
            if mine != theirs:
                came = f"another one for {what}: the spec was written for an older or newer '{known.signature}'"
                self._note(
                    name, "the signature of the registered tool", came, "Write the spec again from the workflow."
                )
        return spec

    def _agent(self, name: str, data: dict[str, Any]) -> AgentDecl:
        for tool in data["tools"]:
            if tool not in self.tools:
                self._note(name, "tools that the spec describes", repr(tool), FIX)
        tools = tuple(self.tools[t] for t in data["tools"] if t in self.tools)
        if data["llm"].get("exit") is not None:
            remedy = "Leave exit out: a call that may ask for tools has no chain that can be cut."
            self._note(name, "an agent that writes each step to its end", "exit", remedy)
        if data["llm"].get("retrieve_every") is not None:
            remedy = "Leave retrieve_every out, and give the agent a tool that searches."
            self._note(name, "an agent that looks things up by its tools", "retrieve_every", remedy)
        return AgentDecl(name, self._llm(name, data["llm"]), tools, data.get("max_parallel_tools", 8))

    def _dynamic(self, name: str, data: dict[str, Any]) -> DynamicSpec:
        params = self._schema(name, data["params"])
        returns = self._schema(name, data["returns"]) if "returns" in data else None
        spec = DynamicSpec(name, params, returns, tuple(data["callees"]))
        known = self.registered_dynamics.get(name)
        if known is None:
            have = ", ".join(sorted(self.registered_dynamics)[:20]) or "none"
            self._note(
                name,
                "a registered dynamic function",
                f"an unknown one; registered: {have}",
                "Start the server with the file that defines it.",
            )
        elif known.spec != spec:
            came = f"another one: the spec was written for an older or newer '{known.signature}'"
            self._note(
                name, "the signature of the registered function", came, "Write the spec again from the workflow."
            )
        return spec

    def _schema(self, where: str, schema: dict[str, Any]) -> dict[str, Any]:
        """The schema if it is a valid JSON Schema that stands alone, else an empty one."""
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError

        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            self._note(where, "a valid JSON Schema", error.message[:200], FIX)
            return {}
        stack: list[Any] = [schema]
        while stack:
            value = stack.pop()
            if isinstance(value, dict):
                ref = value.get("$ref", value.get("$dynamicRef"))
                if isinstance(ref, str) and not _resolves(ref, schema):
                    came = repr(ref)[:200]
                    self._note(where, "references inside the same schema", came, "Put the definition under $defs.")
                    return {}
                pattern = value.get("pattern")
                if isinstance(pattern, str) and (len(pattern) > MAX_PATTERN_CHARS or _REPEATED_GROUP.search(pattern)):
                    came = repr(pattern)[:200]
                    self._note(where, "short patterns without repeated groups (they may never end)", came, FIX)
                    return {}
                stack += value.values()
            elif isinstance(value, list):
                stack += value
        return schema

    def _note(self, where: str, expected: str, came: str, remedy: str) -> None:
        self.problems.setdefault(Problem(where[:200], expected, came, remedy))


def _resolves(ref: str, schema: Any) -> bool:
    """Whether a reference is a JSON pointer to something in `schema`."""
    if ref == "#":
        return True
    if not ref.startswith("#/"):
        return False
    found = schema
    for part in ref[2:].split("/"):
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or part not in found:
            return False
        found = found[part]
    return isinstance(found, dict | bool)
