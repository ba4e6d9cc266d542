"""Retrieval-augmented answering: a search, a prompt with one segment per passage, a streamed answer.

flowserve ingest DOCUMENTS --index handbook
flowserve run examples/rag.py:rag --input '{"question": "..."}'
"""

import flowserve as fs

handbook = fs.Index("handbook")


@fs.llm(max_tokens=64, timeout=20)
def answer(question: str, passages: list[fs.Doc]) -> str:
    fs.prompt(
        "{% for p in passages %}{{ p.text }}\n{% endfor %}Question: {{ question }}",
        system="Answer from the passages only.",
    )


@fs.workflow(slo=fs.SLO(ttft=0.5, e2e=5))
def rag(question: str) -> str:
    """Answer a question from the handbook."""
    return answer(question, handbook.search(question, k=6))
