"""Self-consistency: up to sixteen samples vote, and sampling stops when more would very probably not change the answer.

As many begin as could suffice, four, and more where the engines have room. The run's snapshot tells how the vote went.

flowserve run examples/self_consistency.py:reason --input '{"problem": "Compute 17 + 25 - 8."}'
"""

from pydantic import BaseModel

import flowserve as fs


class Solution(BaseModel):
    reasoning: str
    final: str


@fs.llm(temperature=0.8, max_tokens=200)
def solve(problem: str) -> Solution:
    fs.prompt("Think step by step, then give the final answer.\n{{ problem }}")


@fs.workflow()
def reason(problem: str) -> str:
    """Answer a problem by a vote over samples."""
    best = solve.sample(16, vote="final", stop=fs.adaptive_consistency(threshold=0.95))
    return best(problem).final
