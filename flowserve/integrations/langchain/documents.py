"""LangChain's documents as FlowServe's and back. Metadata there is text; what is not text travels as JSON.

Keys whose value is no string are listed under `JSON_KEYS`, so that strings stay as they are, for filters and for other clients.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from langchain_core.documents import Document

JSON_KEYS = "langchain:json"
"""The metadata key that lists which others hold JSON."""


def encoded(documents: Sequence[Document], ids: Sequence[str | None] | None = None) -> list[dict[str, Any]]:
    """`documents` of an ingestion. `ids` go before the documents' own; where there is neither, one is drawn."""
    if ids is not None and len(ids) != len(documents):
        raise ValueError(f"ids: expected one for each of {len(documents)} documents, got {len(ids)}")
    given = ids if ids is not None else [None] * len(documents)
    return [
        {"id": id or each.id or str(uuid4()), "text": each.page_content, "metadata": to_text(each.metadata)}
        for each, id in zip(documents, given, strict=True)
    ]


def to_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Raises TypeError for a value that JSON does not have."""
    if JSON_KEYS in metadata:
        raise ValueError(f"the metadata key {JSON_KEYS!r} says which values are JSON; give yours another name")
    others = [key for key, value in metadata.items() if not isinstance(value, str)]
    told = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return {**told, JSON_KEYS: json.dumps(others)} if others else told


def from_text(metadata: Mapping[str, str]) -> dict[str, Any]:
    """As it was before `to_text`."""
    others = set(json.loads(metadata.get(JSON_KEYS, "[]")))
    return {key: json.loads(value) if key in others else value for key, value in metadata.items() if key != JSON_KEYS}


def decoded(item: Mapping[str, Any], id: str) -> Document:
    """A document or a hit of the server under this id."""
    return Document(page_content=item["text"], metadata=from_text(item["metadata"]), id=id)
