"""Passages whose KV is computed once and pasted wherever they stand: a second question over the same documents is answered sooner.

flowserve ingest DOCUMENTS --index handbook
flowserve serve examples/rag_reuse.py --reuse-store kv --reuse-gates gates
"""

import flowserve as fs

handbook = fs.Index("handbook")


@fs.llm(max_tokens=64, timeout=20, reuse="balanced")
def answer(question: str, passages: list[fs.Doc]) -> str:
    fs.prompt(
        "{% for p in passages %}{{ p.text }}\n{% endfor %}Question: {{ question }}",
        system="Answer from the passages only.",
    )


@fs.workflow(slo=fs.SLO(ttft=0.5, e2e=5))
def rag_reuse(question: str) -> str:
    """Answer a question from the handbook; approximate where an engine has a store and a policy that passed its gate."""
    return answer(question, handbook.search(question, k=6))
