"""An agent: a model that may call two tools, at most six steps, with a typed answer at the end.

flowserve run examples/agent.py:research --input '{"task": "..."}' --engine fake
"""

import ast
import operator

from pydantic import BaseModel

import flowserve as fs

FACTS = {
    "flowserve": "FlowServe schedules whole workflows, not single requests.",
    "critical path": "The critical path is the longest chain of work that a result waits for.",
}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


class Finding(BaseModel):
    text: str
    sources: list[str]


@fs.tool
async def search(query: str) -> list[str]:
    """Find facts that mention the words of the query."""
    return [fact for topic, fact in FACTS.items() if topic in query.lower()]


@fs.tool
def calculate(expression: str) -> float:
    """Evaluate arithmetic: numbers and + - * / only."""

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return float(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return float(OPERATORS[type(node.op)](value(node.left), value(node.right)))
        raise ValueError(f"cannot calculate {ast.unparse(node)!r}: numbers and + - * / only")

    return value(ast.parse(expression, mode="eval").body)


researcher = fs.agent(
    tools=[search, calculate], instructions="Think, then act.", output=Finding, max_steps=6, name="researcher"
)


@fs.workflow(slo=fs.SLO(e2e=30))
def research(task: str) -> Finding:
    """Work on a task with tools."""
    return researcher(task)
