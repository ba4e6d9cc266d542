"""A deadline at risk: fewer passages, fewer samples, no second look, in the order of harm, rather than no answer.

flowserve run examples/less_rather_than_late.py:careful --input '{"question": "Who leads Krekol?"}' --timeout 20
"""

import flowserve as fs

handbook = fs.Index("handbook")


@fs.llm(temperature=0.8, max_tokens=64)
def answer(question: str, passages: list[fs.Doc]) -> str:
    fs.prompt(
        "{% for p in passages %}{{ p.text }}\n{% endfor %}Question: {{ question }}",
        system="Answer from the passages only.",
    )


@fs.llm(max_tokens=64)
def improve(draft: str) -> str:
    fs.prompt("Correct this answer where it is wrong, and shorten it: {{ draft }}")


@fs.workflow()
def careful(question: str) -> str:
    """Answer by a vote, and look at it again."""
    passages = handbook.search(question, k=8, least=4, harm=0.1)
    draft = answer.sample(8, vote="", least=3, harm=0.2)(question, passages)
    return fs.optional(improve, draft, harm=0.5)
