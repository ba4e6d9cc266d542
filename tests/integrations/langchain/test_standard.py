"""LangChain's own standard suites, unmodified, against real servers: with the scripted engine, and with the demo model and MiniLM."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("langchain_openai", reason="the extra 'langchain' is not installed")
pytest.importorskip("langchain_tests", reason="langchain-tests is not installed")

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    ChatModelIntegrationTests,
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

from flowserve.langchain import (
    ChatFlowServe,
    FlowServeEmbeddings,
    FlowServeRetriever,
    FlowServeVectorStore,
)

FROM_ENV = {"FLOWSERVE_URL": "http://far:1/v1", "FLOWSERVE_API_KEY": "from-env"}


class TestChatUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatFlowServe

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "fake", "base_url": "http://nowhere:1/v1"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        expected = {"openai_api_base": "http://far:1/v1", "openai_api_key": "from-env"}
        return FROM_ENV, {"model": "fake"}, expected


class TestChat(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _where(self, url: str) -> None:
        self.url = url

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatFlowServe

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "fake", "base_url": self.url}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "other"


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return FlowServeEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "hash"}


class TestEmbeddings(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _where(self, url: str) -> None:
        self.url = url

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return FlowServeEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "hash-512", "base_url": self.url}


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _where(self, url: str) -> None:
        self.fill(url)

    def fill(self, url: str) -> None:
        self.url = url
        store = FlowServeVectorStore("notes", base_url=url)
        store.add_texts([f"note {i}: apples of Velol" for i in range(4)], ids=[f"{i}" for i in range(4)])

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return FlowServeRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": "notes", "base_url": self.url}

    @property
    def retriever_query_example(self) -> str:
        return "apples"


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, url: str) -> Iterator[VectorStore]:
        yield FlowServeVectorStore(f"suite-{uuid4()}", base_url=url)


# --- the demo model, which can be held to no schema: no tools, no structured output --------------------------------


@pytest.mark.torch
@pytest.mark.slow
class TestChatOfDemo(TestChat):
    @pytest.fixture(autouse=True)
    def _where(self, demo_url: str) -> None:
        self.url = demo_url

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "demo", "base_url": self.url, "max_tokens": 32, "temperature": 0}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_tool_choice(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_json_mode(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return False  # the server has one model


@pytest.mark.torch
@pytest.mark.slow
class TestEmbeddingsOfDemo(TestEmbeddings):
    @pytest.fixture(autouse=True)
    def _where(self, demo_url: str) -> None:
        self.url = demo_url

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "minilm", "base_url": self.url}


@pytest.mark.torch
@pytest.mark.slow
class TestRetrieverOfDemo(TestRetriever):
    @pytest.fixture(autouse=True)
    def _where(self, demo_url: str) -> None:
        self.fill(demo_url)


@pytest.mark.torch
@pytest.mark.slow
class TestVectorStoreOfDemo(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, demo_url: str) -> Iterator[VectorStore]:
        yield FlowServeVectorStore(f"suite-{uuid4()}", base_url=demo_url)
