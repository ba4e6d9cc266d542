"""LangChain on FlowServe: chat model, embeddings, retriever and vector store, each a thin client of a server's doors.

Needs `langchain-openai` (the extra `langchain`). Read `../server.py` first: where the server is and how it is asked.
"""
