"""What LangChain's suites do not ask of FlowServe's classes."""

from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("langchain_openai", reason="the extra 'langchain' is not installed")

import openai
from langchain_core.documents import Document
from langchain_core.embeddings import FakeEmbeddings

from flowserve.integrations.index import _batches
from flowserve.integrations.langchain.documents import JSON_KEYS, from_text, to_text
from flowserve.langchain import ChatFlowServe, FlowServeRetriever, FlowServeVectorStore


def test_metadata_that_is_text_stays_as_it_is_and_the_rest_comes_back_as_it_was() -> None:
    metadata = {"from": "almanac", "page": 3, "tags": ["a", "b"], "draft": False, "by": None}
    told = to_text(metadata)
    assert (told["from"], told["page"], told["draft"]) == ("almanac", "3", "false")
    assert all(isinstance(value, str) for value in told.values())
    assert from_text(told) == metadata
    assert to_text({"from": "almanac"}) == {"from": "almanac"}
    with pytest.raises(ValueError, match=JSON_KEYS):
        to_text({JSON_KEYS: "[]"})


@pytest.fixture
def store(url: str) -> FlowServeVectorStore:
    return FlowServeVectorStore(f"ours-{uuid4()}", base_url=url)


def test_a_long_document_is_found_by_passages_and_looked_up_whole(store: FlowServeVectorStore) -> None:
    text = " ".join(f"Sentence {i} tells of apples." for i in range(200))
    store.add_documents([Document(page_content=text, metadata={"page": 1})], ids=["long"])
    hits = store.similarity_search_with_score("apples", k=3)
    assert [hit.id for hit, _ in hits] == ["long"] * 3
    assert all(hit.page_content in text and len(hit.page_content) < len(text) for hit, _ in hits)
    assert [score for _, score in hits] == sorted((score for _, score in hits), reverse=True)
    assert store.get_by_ids(["long"]) == [Document(page_content=text, metadata={"page": 1}, id="long")]


def test_documents_are_put_in_by_requests_that_a_server_takes() -> None:
    sizes = [400_000, 100_000, 1, 900_000, *[0] * 1_001]
    batches = _batches([{"text": "x" * size} for size in sizes])
    assert [[len(each["text"]) for each in batch] for batch in batches] == [
        [400_000, 100_000],
        [1],
        [900_000],
        [0] * 1_000,
        [0],
    ]


def test_what_the_store_would_not_honour_is_refused(store: FlowServeVectorStore) -> None:
    store.add_texts(["a"])
    with pytest.raises(TypeError, match="filter"):
        store.similarity_search("a", filter={"page": 1})
    with pytest.raises(TypeError, match="FakeEmbeddings"):
        FlowServeVectorStore.from_texts(["a"], FakeEmbeddings(size=3), index="other")
    with pytest.raises(ValueError, match="got none"):
        store.delete()
    with pytest.raises(ValueError, match="expected one for each of 2"):
        store.add_documents([Document(page_content=text) for text in "ab"], ids=["1"])


def test_a_store_is_made_of_texts_and_retrieves_above_a_threshold(url: str) -> None:
    texts = ["The tide follows the moon.", "Bread needs yeast."]
    store = FlowServeVectorStore.from_texts(texts, index=f"ours-{uuid4()}", base_url=url)
    above = {"score_threshold": 0.99, "k": 2}
    retriever = store.as_retriever(search_type="similarity_score_threshold", search_kwargs=above)
    assert [found.page_content for found in retriever.invoke("Bread needs yeast.")] == ["Bread needs yeast."]


def test_a_retriever_names_passages_and_fails_for_an_index_that_is_not_there(
    store: FlowServeVectorStore, url: str
) -> None:
    store.add_texts(["The tide follows the moon."], ids=["moon.md"])
    retriever = FlowServeRetriever(index=store._index.name, base_url=url)
    assert [found.id for found in retriever.invoke("tide")] == ["moon.md#0"]
    with pytest.raises(openai.NotFoundError) as missing:
        FlowServeRetriever(index="nowhere", base_url=url).invoke("tide")
    assert "there is no index 'nowhere'" in missing.value.__notes__[0]


def test_a_store_at_a_url_that_is_no_flowserve_is_an_error_not_empty(url: str) -> None:
    with pytest.raises(openai.NotFoundError):
        FlowServeVectorStore("notes", base_url=f"{url}/elsewhere").similarity_search("tide")


def test_openai_s_key_is_not_sent_to_a_flowserve_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-for-us")
    monkeypatch.delenv("FLOWSERVE_API_KEY", raising=False)
    model = ChatFlowServe(model="fake")
    assert model.root_client.api_key == model.root_async_client.api_key == "none"


def test_what_was_approximate_in_an_answer_is_in_its_metadata() -> None:
    told = {"early_exit": [{"did": "stopped", "why": "sure"}]}
    message = {"role": "assistant", "content": "4", "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    head: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    model = ChatFlowServe(model="m")
    result = model._create_chat_result({**head, "choices": [choice], "flowserve": told})
    assert result.generations[0].generation_info == {"finish_reason": "stop", "logprobs": None, "flowserve": told}
    from langchain_core.messages import AIMessageChunk

    piece = model._convert_chunk_to_generation_chunk({**head, "choices": [], "flowserve": told}, AIMessageChunk, None)
    assert piece is not None
    assert piece.message.response_metadata == {"flowserve": told}
