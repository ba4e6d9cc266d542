import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowserve.errors import ConfigError, InputError, Overloaded, RetrievalError, StoreError, TooLarge, UnknownName
from flowserve.retrieval import Document, IndexInfo, Passage, Retrieval, RetrievalService, Splitting, Vectors
from flowserve.retrieval.embed import HashEmbedder
from flowserve.retrieval.protocols import Query
from flowserve.retrieval.rerank import CrossEncoderReranker
from flowserve.retrieval.service import Limits

DOCUMENTS = [
    Document("paris.md", "Paris is the capital of France.", {"type": "markdown"}),
    Document("bread.md", "Bread is baked from flour and water."),
    Document("tiny.md", "Tiny."),
]


class Watched(HashEmbedder):
    """Remembers what it embedded; waits before each batch while `gate` is closed."""

    def __init__(self, dimension: int = 64) -> None:
        super().__init__(dimension)
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.batches.append(list(texts))
        self.entered.set()
        assert self.gate.wait(20)
        return super().embed(texts)


@pytest.fixture
def embedder() -> Watched:
    return Watched()


@pytest.fixture
async def retrieval(tmp_path: Path, embedder: Watched) -> AsyncIterator[Retrieval]:
    retrieval = Retrieval(tmp_path / "indexes", embedder)
    yield retrieval
    embedder.gate.set()
    await retrieval.close()


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 20)


async def test_it_is_a_retrieval_service(retrieval: Retrieval) -> None:
    service: RetrievalService = retrieval
    assert service.names() == []


async def test_ingest_search_delete_and_look_again_from_another_object(retrieval: Retrieval, tmp_path: Path) -> None:
    assert await retrieval.ingest("docs", DOCUMENTS) == IndexInfo("docs", 3, 3, "hash-64", 1)
    [hit] = await retrieval.search("docs", "capital of France?", 1)
    assert (hit.id, hit.document, hit.text) == ("paris.md#0", "paris.md", "Paris is the capital of France.")
    assert hit.metadata == {"type": "markdown"} and 0.5 < hit.score <= 1
    assert len(await retrieval.search("docs", "capital", 100)) == 3
    assert retrieval.names() == ["docs"] and retrieval.info("docs").generation == 1

    assert await retrieval.delete("docs", ["paris.md", "paris.md", "unknown"]) == 1
    assert await retrieval.delete("docs", ["paris.md"]) == 0
    assert "paris.md" not in [hit.document for hit in await retrieval.search("docs", "capital of France?", 3)]

    other = Retrieval(tmp_path / "indexes", HashEmbedder(64))
    assert other.info("docs") == IndexInfo("docs", 2, 2, "hash-64", 2)
    assert await other.search("docs", "flour", 2) == await retrieval.search("docs", "flour", 2)
    await other.close()


async def test_hits_come_best_first_and_ties_by_passage_id(retrieval: Retrieval) -> None:
    await retrieval.ingest(
        "docs", [Document(name, "same words here") for name in "cabd"] + [Document("e", "same words")]
    )
    hits = await retrieval.search("docs", "same words here", 3)
    assert [hit.id for hit in hits] == ["a#0", "b#0", "c#0"] and {hit.score for hit in hits} == {1.0}
    scores = [hit.score for hit in await retrieval.search("docs", "same words here", 5)]
    assert scores == sorted(scores, reverse=True) and scores[4] < 1


async def test_unchanged_documents_are_not_embedded_again_and_changed_ones_are(
    retrieval: Retrieval, embedder: Watched
) -> None:
    await retrieval.ingest("docs", DOCUMENTS)
    embedder.batches.clear()
    assert (await retrieval.ingest("docs", DOCUMENTS)).generation == 1
    assert embedder.batches == []
    info = await retrieval.ingest("docs", [*DOCUMENTS[:2], Document("tiny.md", "Not so tiny.")])
    assert embedder.batches == [["Not so tiny."]] and info == IndexInfo("docs", 3, 3, "hash-64", 2)
    assert "Tiny." not in [hit.text for hit in await retrieval.search("docs", "tiny", 3)]


async def test_ingesting_nothing_makes_an_empty_index(retrieval: Retrieval) -> None:
    assert await retrieval.ingest("docs", []) == IndexInfo("docs", 0, 0, "hash-64", 1)
    assert await retrieval.search("docs", "anything", 3) == []


async def test_texts_of_like_length_are_embedded_together_and_every_passage_gets_its_own_vector(
    retrieval: Retrieval, embedder: Watched
) -> None:
    texts = [f"{number} " * (1 + number * 37 % 50) for number in range(70)]
    await retrieval.ingest("docs", [Document(str(number), text) for number, text in enumerate(texts)])
    shortest = [min(map(len, batch)) for batch in embedder.batches]
    longest = [max(map(len, batch)) for batch in embedder.batches]
    assert all(low >= high for low, high in zip(shortest, longest[1:], strict=False))
    for number in (0, 7, 69):
        [hit] = await retrieval.search("docs", texts[number].strip(), 1)
        assert (hit.document, hit.score) == (str(number), 1.0)


async def test_progress_tells_each_stage_to_its_end(retrieval: Retrieval) -> None:
    seen: list[tuple[str, int, int]] = []
    await retrieval.ingest(
        "docs", [Document(str(n), f"text {n}") for n in range(70)], lambda *event: seen.append(event)
    )
    assert [event for event in seen if event[0] == "embed"] == [("embed", 32, 70), ("embed", 64, 70), ("embed", 70, 70)]
    assert ("split", 70, 70) in seen and seen[-1] == ("write", 1, 1)


async def test_concurrent_queries_are_embedded_together_and_equal_ones_once(
    retrieval: Retrieval, embedder: Watched
) -> None:
    await retrieval.ingest("docs", DOCUMENTS)
    alone = {query: await retrieval.search("docs", query, 2) for query in ("paris", "bread", "water")}
    embedder.batches.clear()
    embedder.entered.clear()
    embedder.gate.clear()
    first = asyncio.create_task(retrieval.search("docs", "france", 2))
    await until(embedder.entered)
    queries = ["paris", "bread", "water", "bread", "bread"]
    tasks = [asyncio.create_task(retrieval.search("docs", query, 2)) for query in queries]
    tasks[4].cancel()
    while len(retrieval._current_desk().embedding) < 3:
        await asyncio.sleep(0)
    embedder.gate.set()
    await first
    for query, task in zip(queries[:4], tasks, strict=False):
        assert await task == alone[query]
    assert embedder.batches[0] == ["france"] and sorted(embedder.batches[1]) == ["bread", "paris", "water"]
    assert len(embedder.batches) == 2


async def test_callers_that_share_a_search_do_not_share_its_result(retrieval: Retrieval) -> None:
    await retrieval.ingest("docs", DOCUMENTS)
    one, two = await asyncio.gather(*(retrieval.search("docs", "paris", 1) for _ in range(2)))
    one[0].metadata["x"] = "changed"
    assert two[0].metadata == {"type": "markdown"}
    assert (await retrieval.search("docs", "paris", 1))[0].metadata == {"type": "markdown"}


async def test_a_search_that_starts_after_a_commit_does_not_join_one_that_began_before(
    retrieval: Retrieval, embedder: Watched
) -> None:
    await retrieval.ingest("docs", DOCUMENTS)
    embedder.entered.clear()
    embedder.gate.clear()
    before = asyncio.create_task(retrieval.search("docs", "bread", 3))
    await until(embedder.entered)
    await retrieval.delete("docs", ["bread.md"])
    after = asyncio.create_task(retrieval.search("docs", "bread", 3))
    await asyncio.sleep(0)
    embedder.gate.set()
    assert "bread.md" in [hit.document for hit in await before]
    assert "bread.md" not in [hit.document for hit in await after]


async def test_queries_are_answered_while_documents_are_ingested(retrieval: Retrieval, embedder: Watched) -> None:
    await retrieval.ingest("docs", DOCUMENTS)
    answered = asyncio.Event()
    loop = asyncio.get_running_loop()
    stage = threading.Event()

    def hold(what: str, done: int, total: int) -> None:
        if (what, done) == ("embed", 32):
            stage.set()
            asyncio.run_coroutine_threadsafe(answered.wait(), loop).result(20)

    ingesting = asyncio.create_task(retrieval.ingest("docs", [Document(str(n), f"text {n}") for n in range(99)], hold))
    await until(stage)
    assert len(await retrieval.search("docs", "bread", 100)) == 3
    answered.set()
    await ingesting
    assert len(await retrieval.search("docs", "bread", 1000)) == 102


async def test_another_process_that_commits_is_noticed(retrieval: Retrieval, tmp_path: Path) -> None:
    await retrieval.ingest("docs", DOCUMENTS)
    assert len(await retrieval.search("docs", "news", 10)) == 3
    program = (
        "import asyncio, sys; from flowserve.retrieval import *; from flowserve.retrieval.embed import HashEmbedder\n"
        "asyncio.run(Retrieval(sys.argv[1], HashEmbedder(64)).ingest('docs', [Document('new', 'news today')]))"
    )
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program, str(tmp_path / "indexes")], check=True)
    assert (await retrieval.search("docs", "news today", 1))[0].document == "new"


async def test_another_embedder_is_refused_with_both_names(retrieval: Retrieval, tmp_path: Path) -> None:
    await retrieval.ingest("docs", DOCUMENTS)
    other = Retrieval(tmp_path / "indexes", HashEmbedder(128))
    for attempt in (other.search("docs", "x", 1), other.ingest("docs", [Document("a", "b")])):
        with pytest.raises(RetrievalError, match="built with embedder 'hash-64'.* embeds with 'hash-128'"):
            await attempt
    await other.close()
    assert retrieval.info("docs").generation == 1


class Changed(HashEmbedder):
    """Another model under the old name."""

    @property
    def name(self) -> str:
        return "hash-64"


async def test_an_embedder_of_the_same_name_but_another_width_is_refused(retrieval: Retrieval, tmp_path: Path) -> None:
    await retrieval.ingest("docs", DOCUMENTS)
    other = Retrieval(tmp_path / "indexes", Changed(128))
    with pytest.raises(
        RetrievalError, match=r"\(64 dimensions\), this service embeds with 'hash-64' \(128 dimensions\)"
    ):
        await other.search("docs", "x", 1)
    await other.close()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a b", "x" * 65, "a\n", "ä", "a\0", "~"])
async def test_names_that_could_be_paths_are_refused(retrieval: Retrieval, name: str) -> None:
    for attempt in (retrieval.search(name, "q", 1), retrieval.ingest(name, DOCUMENTS), retrieval.delete(name, [])):
        with pytest.raises(InputError, match="not a name for an index"):
            await attempt
    with pytest.raises(InputError):
        retrieval.info(name)


async def test_unknown_indexes_are_named_with_the_known_ones(retrieval: Retrieval, tmp_path: Path) -> None:
    await retrieval.ingest("docs", DOCUMENTS)
    for attempt in (retrieval.search("dox", "q", 1), retrieval.delete("dox", ["a"])):
        with pytest.raises(UnknownName, match="no index 'dox'; known: docs"):
            await attempt
    with pytest.raises(UnknownName):
        retrieval.info("dox")
    assert not (tmp_path / "indexes" / "dox").exists()


@pytest.mark.parametrize(
    "query, k, error",
    [("", 1, InputError), (" ", 1, InputError), ("q", 0, InputError), ("q", 1001, InputError), ("q", True, InputError)]
    + [("\ud800", 1, InputError), ("x" * 200_000, 1, TooLarge)],
)
async def test_impossible_queries_are_refused(retrieval: Retrieval, query: str, k: int, error: type[Exception]) -> None:
    await retrieval.ingest("docs", DOCUMENTS)
    with pytest.raises(error):
        await retrieval.search("docs", query, k)


@pytest.mark.parametrize(
    "documents, message",
    [
        ([Document("", "x")], "not an id"),
        ([Document("a\nb", "x")], "not an id"),
        ([Document("x" * 600, "x")], "not an id"),
        ([Document("a", "x"), Document("a", "y")], "given twice"),
        ([Document("a", "x\ud800")], "surrogate"),
    ],
)
async def test_impossible_documents_are_refused(retrieval: Retrieval, documents: list[Document], message: str) -> None:
    with pytest.raises(InputError, match=message):
        await retrieval.ingest("docs", documents)
    assert retrieval.names() == []


async def test_a_damaged_index_is_an_error_and_the_others_go_on(retrieval: Retrieval, tmp_path: Path) -> None:
    await retrieval.ingest("good", DOCUMENTS)
    await retrieval.ingest("bad", DOCUMENTS)
    (tmp_path / "indexes" / "bad" / "gen-00000001" / "vectors.f32").write_bytes(b"torn")
    fresh = Retrieval(tmp_path / "indexes", HashEmbedder(64))
    with pytest.raises(StoreError, match=r"vectors\.f32' cannot be trusted"):
        await fresh.search("bad", "bread", 1)
    with pytest.raises(StoreError, match=r"vectors\.f32' cannot be trusted"):
        await fresh.ingest("bad", [Document("a", "b")])
    assert (await fresh.search("good", "bread", 1))[0].document == "bread.md"
    assert fresh.names() == ["bad", "good"]
    await fresh.close()


class Broken(HashEmbedder):
    def __init__(self, what: str) -> None:
        super().__init__(64)
        self.what = what

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = super().embed(texts)
        return {"nan": vectors * np.float32("nan"), "long": vectors * 2, "short": vectors[:-1]}[self.what]


@pytest.mark.parametrize("what", ["nan", "long", "short"])
async def test_an_embedder_that_breaks_its_word_spoils_no_index(tmp_path: Path, what: str) -> None:
    retrieval = Retrieval(tmp_path, Broken(what))
    with pytest.raises(RetrievalError, match="embedder 'hash-64' returned"):
        await retrieval.ingest("docs", DOCUMENTS)
    assert retrieval.names() == []
    await retrieval.close()


async def test_embedding_gives_one_row_per_text(retrieval: Retrieval, embedder: Watched) -> None:
    texts = [f"text {number}" for number in range(40)] + ["text 0"]
    assert np.array_equal(await retrieval.embed(texts), HashEmbedder(64).embed(texts))
    assert (await retrieval.embed([])).shape == (0, 64)
    assert max(map(len, embedder.batches)) <= 32


async def test_too_many_waiting_searches_and_ingestions_are_refused(tmp_path: Path, embedder: Watched) -> None:
    retrieval = Retrieval(tmp_path, embedder, limits=Limits(waiting_queries=3, waiting_writes=2))
    await retrieval.ingest("docs", DOCUMENTS)
    embedder.entered.clear()
    embedder.gate.clear()
    writes = [asyncio.create_task(retrieval.ingest("docs", [Document(f"w{n}", f"new {n}")])) for n in range(2)]
    await until(embedder.entered)
    with pytest.raises(Overloaded):
        await retrieval.delete("docs", ["tiny.md"])
    tasks = [asyncio.create_task(retrieval.search("docs", f"query {n}", 1)) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await retrieval.search("docs", "one more", 1)
    assert caught.value.retry_after_s > 0
    embedder.gate.set()
    await asyncio.gather(*tasks, *writes)
    await retrieval.search("docs", "one more", 1)
    await retrieval.close()


async def test_an_ingestion_whose_caller_leaves_stops_and_changes_nothing(
    retrieval: Retrieval, embedder: Watched
) -> None:
    await retrieval.ingest("docs", DOCUMENTS)
    embedder.entered.clear()
    embedder.gate.clear()
    task = asyncio.create_task(retrieval.ingest("docs", [Document(str(n), f"text {n}") for n in range(99)]))
    await until(embedder.entered)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    embedder.gate.set()
    assert (await retrieval.ingest("docs", [Document("after", "after")])).passages == 4


async def test_closing_ends_waiting_searches_and_refuses_new_ones(tmp_path: Path, embedder: Watched) -> None:
    before = set(threading.enumerate())
    retrieval = Retrieval(tmp_path, embedder)
    await retrieval.ingest("docs", DOCUMENTS)
    embedder.entered.clear()
    embedder.gate.clear()
    running = asyncio.create_task(retrieval.search("docs", "paris", 1))
    await until(embedder.entered)
    threading.Timer(0, embedder.gate.set).start()
    await retrieval.close()
    await retrieval.close()
    with pytest.raises(RetrievalError, match="closed"):
        await running
    for attempt in (retrieval.search("docs", "q", 1), retrieval.ingest("docs", []), retrieval.embed(["a"])):
        with pytest.raises(RetrievalError, match="closed"):
            await attempt
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name.startswith("flowserve-")]


async def test_indexes_that_are_not_held_in_memory_are_read_again(tmp_path: Path) -> None:
    retrieval = Retrieval(tmp_path, HashEmbedder(64), limits=Limits(open_indexes=2))
    for name in ("a", "b", "c"):
        await retrieval.ingest(name, [Document(name, f"text {name}")])
    for name in ("a", "b", "c", "a"):
        assert (await retrieval.search(name, "text", 1))[0].document == name
        assert len(retrieval._library._opened) <= 2
    await retrieval.close()


def test_it_may_be_used_from_one_event_loop_after_another(tmp_path: Path) -> None:
    retrieval = Retrieval(tmp_path, HashEmbedder(64), splitting=Splitting(5, 1))
    asyncio.run(retrieval.ingest("docs", DOCUMENTS))
    for _ in range(2):
        assert len(asyncio.run(retrieval.search("docs", "paris", 2))) == 2
    asyncio.run(retrieval.close())


KINDS = ["exact", "ivf", "hnsw", "pq", "bm25", "hybrid"]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_index_of_any_kind_is_ingested_changed_and_opened_again(
    retrieval: Retrieval, tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("faiss")
    info = await retrieval.ingest("docs", DOCUMENTS, kind=kind)
    assert info.kind.partition(":")[0] == kind
    assert (await retrieval.search("docs", "capital of France", 1))[0].document == "paris.md"
    await retrieval.ingest("docs", [Document("rome.md", "Rome is the capital of Italy.")])
    assert (await retrieval.search("docs", "capital of Italy", 1))[0].document == "rome.md"
    assert await retrieval.delete("docs", ["rome.md"]) == 1
    hits = await retrieval.search("docs", "capital of Italy", 3)
    assert hits[0].document == "paris.md" and "rome.md" not in [hit.document for hit in hits]
    assert retrieval.info("docs").kind == info.kind
    other = Retrieval(tmp_path / "indexes", HashEmbedder(64))
    assert await other.search("docs", "capital of Italy", 3) == hits
    await other.close()


async def test_another_kind_is_a_new_generation_without_embedding(retrieval: Retrieval, embedder: Watched) -> None:
    await retrieval.ingest("docs", DOCUMENTS)
    embedder.batches.clear()
    info = await retrieval.ingest("docs", [], kind="bm25:b=0.5")
    assert (info.kind, info.generation) == ("bm25:k1=1.2,b=0.5", 2)
    assert [hit.document for hit in await retrieval.search("docs", "water", 3)] == ["bread.md"]
    assert (await retrieval.ingest("docs", [], kind="bm25:b=0.5")).generation == 2
    assert embedder.batches == []  # words alone: the query was not embedded either


async def test_a_kind_that_does_not_exist_is_refused_before_anything_is_done(retrieval: Retrieval) -> None:
    with pytest.raises(InputError, match="expected one of exact, ivf"):
        await retrieval.ingest("docs", DOCUMENTS, kind="tree")
    with pytest.raises(InputError, match="divisor of the dimension 64"):
        await retrieval.ingest("docs", DOCUMENTS, kind="pq:segments=5")
    assert retrieval.names() == []


async def test_a_filter_leaves_passages_with_all_of_its_metadata(retrieval: Retrieval) -> None:
    languages = [{"lang": lang, "year": year} for lang in ("en", "fr") for year in ("1", "2")]
    await retrieval.ingest("docs", [Document(f"{n}", f"bread {n}", data) for n, data in enumerate(languages)])

    async def found(where: dict[str, str]) -> list[str]:
        return sorted(hit.document for hit in await retrieval.search("docs", "bread", 9, where))

    assert await found({}) == ["0", "1", "2", "3"]
    assert await found({"lang": "fr"}) == ["2", "3"]
    assert await found({"lang": "fr", "year": "1"}) == ["2"]
    assert await found({"lang": "de"}) == await found({"nothing": ""}) == []


@pytest.mark.parametrize("where", [{"a": 1}, {1: "a"}, {str(n): "" for n in range(17)}])
async def test_impossible_filters_are_refused(retrieval: Retrieval, where: dict[str, str]) -> None:
    await retrieval.ingest("docs", DOCUMENTS)
    with pytest.raises(InputError, match="a filter has"):
        await retrieval.search("docs", "bread", 1, where)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [None, {"type": "markdown"}, {"type": "none"}])
async def test_the_last_stage_of_a_search_is_what_it_finds(
    retrieval: Retrieval, kind: str, where: dict[str, str] | None
) -> None:
    pytest.importorskip("faiss")
    await retrieval.ingest("docs", DOCUMENTS, kind=kind)
    stages = [docs async for docs in retrieval.stages("docs", "capital bread", 2, where)]
    assert stages[-1] == await retrieval.search("docs", "capital bread", 2, where)


async def test_stages_of_a_search_are_bounded_like_searches(tmp_path: Path) -> None:
    retrieval = Retrieval(tmp_path, HashEmbedder(64), limits=Limits(waiting_queries=1))
    await retrieval.ingest("docs", DOCUMENTS)
    stages: Any = retrieval.stages("docs", "bread", 2)
    await anext(stages)
    with pytest.raises(Overloaded):
        await retrieval.search("docs", "bread", 2)
    await stages.aclose()
    assert len(await retrieval.search("docs", "bread", 2)) == 2
    await retrieval.close()
    with pytest.raises(RetrievalError, match="closed"):
        await anext(retrieval.stages("docs", "bread", 2))


async def test_tenants_have_indexes_of_their_own_beside_shared_ones(tmp_path: Path) -> None:
    retrieval = Retrieval(tmp_path, HashEmbedder(64), private=True)
    for tenant in ("", "a", "b/../x"):
        await retrieval.ingest("docs", [Document(f"of {tenant}", "bread")], tenant=tenant)
    await retrieval.ingest("shared", DOCUMENTS)
    await retrieval.ingest("mine", DOCUMENTS, tenant="a")
    for tenant, found in (("a", "of a"), ("b/../x", "of b/../x"), ("c", "of "), ("", "of ")):
        assert [hit.document for hit in await retrieval.search("docs", "bread", 9, tenant=tenant)] == [found]
    assert (retrieval.names("a"), retrieval.names("c")) == (["docs", "mine", "shared"], ["docs", "shared"])
    assert len(await retrieval.search("shared", "bread", 9, tenant="a")) == 3
    assert retrieval.info("docs", "a").name == "docs"
    with pytest.raises(UnknownName, match="no index 'mine'; known: docs, shared"):
        await retrieval.search("mine", "bread", 1, tenant="c")
    with pytest.raises(InputError, match="'shared' is shared"):
        await retrieval.delete("shared", ["tiny.md"], "a")
    assert await retrieval.delete("docs", ["of a"], "a") == 1
    assert await retrieval.search("docs", "bread", 9, tenant="a") == []
    assert {path.name for path in tmp_path.iterdir()} == {"docs", "shared", "@a", "@b%2F..%2Fx"}
    await retrieval.close()


async def test_without_private_indexes_tenants_share_all_of_them(retrieval: Retrieval) -> None:
    await retrieval.ingest("docs", DOCUMENTS, tenant="a")
    assert len(await retrieval.search("docs", "bread", 9, tenant="b")) == 3
    assert retrieval.names("b") == retrieval.names() == ["docs"]


class Shortest:
    """Likes short passages."""

    wants_vector = False

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def score(self, query: Query, passages: Sequence[Passage], vectors: Vectors) -> NDArray[np.float64]:
        assert vectors.shape == (len(passages), 64)
        self.seen.append([passage.document for passage in passages])
        return np.array([-len(passage.text) for passage in passages], np.float64)


async def test_candidates_are_put_in_order_by_the_reranker(tmp_path: Path) -> None:
    shortest = Shortest()
    retrieval = Retrieval(tmp_path, HashEmbedder(64), reranker=shortest)
    await retrieval.ingest("docs", DOCUMENTS)
    plain = [hit.document for hit in await retrieval.search("docs", "capital of France", 3)]
    hits = await retrieval.search("docs", "capital of France", 1, rerank=3)
    assert [(hit.document, hit.score) for hit in hits] == [("tiny.md", -5.0)] and shortest.seen == [plain]
    await retrieval.search("docs", "capital of France", 2, rerank=1)  # k is more
    assert shortest.seen[1] == plain[:2]
    assert await retrieval.search("docs", "capital", 3, {"no": "thing"}, rerank=3) == []
    with pytest.raises(InputError, match="rerank must be"):
        await retrieval.search("docs", "capital", 1, rerank=1001)
    await retrieval.close()


async def test_words_find_candidates_and_their_vectors_put_them_in_order(retrieval: Retrieval) -> None:
    texts = ["bread bread bread", "bread oven", "oven bread crust", "nothing"]
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    await retrieval.ingest("words", documents, kind="bm25")
    await retrieval.ingest("meaning", documents[:3])
    hits = await retrieval.search("words", "bread oven", 3, rerank=9)
    assert hits == await retrieval.search("meaning", "bread oven", 3)


async def test_a_reranker_that_breaks_its_word_is_an_error(tmp_path: Path) -> None:
    class Broken(Shortest):
        def score(self, query: Query, passages: Sequence[Passage], vectors: Vectors) -> NDArray[np.float64]:
            return np.full(len(passages), np.nan)

    retrieval = Retrieval(tmp_path, HashEmbedder(64), reranker=Broken())
    await retrieval.ingest("docs", DOCUMENTS)
    with pytest.raises(RetrievalError, match="not numbers"):
        await retrieval.search("docs", "bread", 1, rerank=2)
    await retrieval.close()


async def test_a_cross_encoder_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    reranker = CrossEncoderReranker(tmp_path / "model")
    retrieval = Retrieval(tmp_path / "indexes", HashEmbedder(64), reranker=reranker)
    await retrieval.ingest("docs", DOCUMENTS)
    with pytest.raises(ConfigError, match="cannot load the cross-encoder '.*model'"):
        await retrieval.search("docs", "bread", 1, rerank=2)
    await retrieval.close()
