"""LlamaIndex on a FlowServe server: its retriever, its synthesizer, and a workflow as a model.

flowserve serve examples/rag.py
python examples/clients/llamaindex_rag.py http://127.0.0.1:8000/v1 demo
"""

import sys

from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer

from flowserve.integrations.index import Index
from flowserve.integrations.server import Server
from flowserve.llamaindex import FlowServeLLM, FlowServeRetriever

DOCUMENTS = [
    {"id": "1", "text": "Rusu governs the town of Velol."},
    {"id": "2", "text": "The town of Velol is known for its lamps."},
]
QUESTION = "Which town does Rusu govern?"


def main(url: str, model: str) -> dict[str, str]:
    Index(Server(url), "handbook").put(DOCUMENTS)
    llm = FlowServeLLM(model=model, api_base=url, max_tokens=32, temperature=0)
    engine = RetrieverQueryEngine(
        FlowServeRetriever("handbook", k=2, api_base=url), get_response_synthesizer(llm=llm, response_mode="compact")
    )
    return {
        "found": "; ".join(node.text for node in FlowServeRetriever("handbook", k=2, api_base=url).retrieve(QUESTION)),
        "query engine": str(engine.query(QUESTION)),
        "workflow": str(FlowServeLLM(model="rag", api_base=url).complete(QUESTION)),
    }


if __name__ == "__main__":
    for what, said in main(*sys.argv[1:]).items():
        print(f"{what}: {said}")
