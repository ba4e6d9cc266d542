"""Branches and bounded loops: a draft is improved until a critic is content, but only if asked to be strict.

flowserve run examples/branch_and_loop.py:essay --input '{"topic": "tides", "strict": true}' --engine fake
"""

from pydantic import BaseModel, Field

import flowserve as fs


class Draft(BaseModel):
    text: str
    score: int = Field(ge=0, le=10)


@fs.llm(max_tokens=300)
def write(topic: str) -> Draft:
    fs.prompt("Write a paragraph about {{ topic }} and score it from 0 to 10.")


@fs.llm(max_tokens=300)
def improve(draft: Draft) -> Draft:
    fs.prompt("Improve this paragraph and score it again.\n{{ draft.text }}")


@fs.workflow()
def essay(topic: str, strict: bool) -> Draft:
    """Write about a topic; strictly means to improve it up to three times."""
    first = write(topic)
    return fs.when(
        strict,
        then=lambda: fs.loop(improve, first, until=lambda d: d.score >= 8, max_iters=3),
        otherwise=lambda: first,
    )
