"""The workflow that `flowserve demo` serves: retrieval-augmented answering over the sample documents."""

import flowserve as fs

INDEX = "handbook"

handbook = fs.Index(INDEX)


@fs.llm(max_tokens=64, timeout=60)
def answer(question: str, passages: list[fs.Doc]) -> str:
    fs.prompt(
        "{% for p in passages %}{{ p.text }}\n{% endfor %}Question: {{ question }}",
        system="Answer from the passages only.",
    )


@fs.workflow(slo=fs.SLO(ttft=0.5, e2e=5))
def rag(question: str) -> str:
    """Answer a question from the sample documents."""
    return answer(question, handbook.search(question, k=6))
