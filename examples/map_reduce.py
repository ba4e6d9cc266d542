"""Map-reduce: a tool splits a long text, one model call per part runs side by side, a last one merges.

flowserve run examples/map_reduce.py:summary --input '{"text": "..."}'
"""

import flowserve as fs


@fs.tool
def split(text: str, words: int = 800) -> list[str]:
    """Cut a text into parts of at most `words` words."""
    w = text.split()
    return [" ".join(w[i : i + words]) for i in range(0, len(w), words)]


@fs.llm(max_tokens=120, retry=2)
def summarise(chunk: str) -> str:
    fs.prompt("Summarise in three sentences:\n{{ chunk }}")


@fs.llm(max_tokens=400)
def combine(parts: list[str]) -> str:
    fs.prompt("Merge into one summary:\n{% for p in parts %}- {{ p }}\n{% endfor %}")


@fs.workflow()
def summary(text: str) -> str:
    """Summarise a text of any length."""
    return combine(summarise.map(split(text), max_width=64))
