"""What `flowserve serve` is given: the workflows of all comparisons."""

from flowserve.bench.workflows.coding import software
from flowserve.bench.workflows.consistency import consistent
from flowserve.bench.workflows.debate import debate, experts
from flowserve.bench.workflows.mapreduce import chat, summary
from flowserve.bench.workflows.programs import agent, talk, waves
from flowserve.bench.workflows.rag import rag
from flowserve.bench.workflows.tree import tree
from flowserve.bench.workflows.triage import background, triage

__all__ = [
    "agent", "background", "chat", "consistent", "debate", "experts", "rag", "software", "summary", "talk", "tree", "triage", "waves",
]  # fmt: skip
