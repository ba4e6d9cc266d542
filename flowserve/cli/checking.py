"""`flowserve check` and `flowserve draw`: what is wrong with a workflow, what could be better, what it looks like."""

import json
from pathlib import Path

from flowserve.assemble import load_workflows
from flowserve.cli.targets import find_workflow, say
from flowserve.errors import ConfigError, GraphError
from flowserve.graphs.codec import to_spec
from flowserve.graphs.draw import Drawing, mermaid_of_passes
from flowserve.graphs.svg import svg_of_passes


def check(file: Path) -> int:
    """1 if any workflow of the file is wrong. All problems of all workflows are shown."""
    wrong = 0
    for workflow in load_workflows(file):
        try:
            plan = workflow.program.plan
        except GraphError as error:
            wrong += 1
            say(str(error))
            continue
        print(f"{workflow.name}: ok, {len(plan.nodes)} nodes, version {plan.digest[:12]}")
        for spec in (*plan.llms, *(agent.llm for agent in plan.agents)):
            if spec.any_order is not None:
                print(
                    f"  order: {spec.name} writes '{spec.any_order}' in the order that shares most with recent prompts"
                )
            if spec.exit is not None:
                print(f"  exit: {spec.name} may end early by rule '{spec.exit.rule}', so its answer is approximate")
            if (spec.reuse or "exact") != "exact":
                print(
                    f"  reuse: {spec.name} is served exactly by engines that have no store or no gate file for its model"
                )
        for hint in workflow.check():
            print(f"  hint: {hint}")
        for change in workflow.program.rewriting.changes:
            print(f"  pass: {change}")
    return 1 if wrong else 0


def drawn(target: str, format: str, passes: bool) -> str:
    """The picture as text; with `passes`, of what was declared and of what they make of it."""
    program = find_workflow(target).program
    if passes and format == "mermaid":
        return mermaid_of_passes(program.rewriting, program.plan)
    if passes and format == "svg":
        return svg_of_passes(program.rewriting, program.plan)
    if passes:
        program = program.rewritten
    if format == "mermaid":
        return Drawing(program.plan).mermaid
    if format == "svg":
        return Drawing(program.plan).svg
    if format == "json":
        return json.dumps(to_spec(program), indent=2, ensure_ascii=False)
    raise ConfigError(f"--format: expected mermaid, svg or json; got {format!r}")
