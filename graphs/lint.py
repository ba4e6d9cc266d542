"""What could be better about a workflow: advice, not errors. Only a Plan is read, so specs get it too.

What passes repair by themselves is not told: `flowserve check` prints their changes. Prompts are looked at in lint_prompts.py, the
graph in lint_structure.py. Everything is linear in the size of the plan, since anybody may send one.
"""

from flowserve.errors import Problem
from flowserve.graphs import lint_prompts, lint_structure
from flowserve.graphs.plan import Plan


def lint(plan: Plan) -> tuple[Problem, ...]:
    """Advice about a plan: on its nodes in their order, on its prompts, on the whole; the estimate of its length last."""
    structure = lint_structure.Structure(plan)
    return (
        *(problem for node in plan.nodes for problem in structure.of(node)),
        *lint_prompts.of_each(plan),
        *lint_prompts.across(plan),
        *structure.of_all(),
    )
