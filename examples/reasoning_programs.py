"""Reasoning programs: the nodes are yours, the search is ready. Here Rebase grows lines of steps where a reward says it pays.

flowserve run examples/reasoning_programs.py:prove --input '{"problem": "Compute 17 + 25 - 8."}' --engine fake
"""

from typing import Annotated

from pydantic import BaseModel, Field

import flowserve as fs


class Step(BaseModel):
    text: str
    final: str = Field(default="", description="The answer, if this step gives it.")


@fs.llm(temperature=0.8, seed=1, max_tokens=64)
def think(problem: str, path: list[Step]) -> Step:
    fs.prompt(
        "{{ problem }}\n{% for step in path %}{{ step.text }}\n{% endfor %}",
        system="Give the next step, and the answer if this step gives it.",
    )


@fs.llm(max_tokens=8)
def reward(problem: str, path: list[Step]) -> Annotated[float, Field(ge=0, le=1)]:
    fs.prompt(
        "{{ problem }}\n{% for step in path %}{{ step.text }}\n{% endfor %}",
        system="How likely do these steps lead to the right answer, from 0 to 1?",
    )


search = fs.programs.rebase(
    think,
    reward,
    width=4,
    most=8,
    depth=4,
    done=lambda step: step.final != "",
    vote="final",
    stop=fs.programs.Certaindex(4, certainty=0.75),
    budget_calls=48,
)


@fs.workflow()
def prove(problem: str) -> fs.programs.Search[Step]:
    """Answer a problem by a reward-weighted vote over lines of steps."""
    return search(problem)
