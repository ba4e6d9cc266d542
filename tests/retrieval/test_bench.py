import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from flowserve.bench import index_kinds
from flowserve.bench.retrieval import answers_in, chance, read_questions, run
from flowserve.errors import ConfigError, RetrievalError
from flowserve.retrieval import Document, Retrieval


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three questions: one found at once, one whose passage loses against another, one without an answer anywhere."""
    lines = [
        {
            "question": "river through Paris",
            "answers": ["The Seine"],
            "passages": ["Seine: river through Paris.", "Rome."],
        },
        {
            "question": "apple pie apple pie",
            "answers": ["Bramley"],
            "passages": ["Apple pie, apple pie!", "A pie of Bramley apples."],
        },
        {"question": "unknown", "answers": ["nowhere to be found"], "passages": ["Filler words."]},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def test_recall_counts_answerable_questions_whose_answer_is_among_the_best(data: Path) -> None:
    results = run(data, k=(1, 2), embedder="hash")
    assert (results["questions"], results["answerable"], results["documents"], results["passages"]) == (3, 2, 5, 5)
    assert results["recall"] == {"1": 0.5, "2": 1.0}
    assert results["chance"] == {"1": 0.2, "2": 0.4}
    assert results["ingestion"]["embedded_passages"] == 5
    assert results["search"]["single"]["queries_per_s"] > 0 and results["search"]["batched"]["queries_per_s"] > 0
    json.dumps(results, allow_nan=False)


def test_kinds_are_compared_on_the_same_passages(data: Path) -> None:
    said: list[str] = []
    results = run(data, k=(1, 2), embedder="hash", kinds=("exact", "ivf:nprobe=99", "bm25"), say=said.append)
    exact, ivf, words = results["kinds"]
    assert (exact["kind"], exact["recall"], exact["answers"]) == ("exact", {"1": 1.0, "2": 1.0}, results["recall"])
    assert (ivf["recall"], ivf["answers"]) == (exact["recall"], exact["answers"])
    assert words["stages"]["number"] > 1 and len(said) == 3
    json.dumps(results, allow_nan=False)


def test_synthetic_vectors_go_through_every_kind_that_goes_by_vectors() -> None:
    pytest.importorskip("faiss")
    results = index_kinds.run(200, 16, 20, (), 5, lambda line: None)
    assert [case["kind"] for case in results["cases"]] == list(index_kinds.DENSE)
    exact, few = results["cases"][0], index_kinds.run(200, 16, 20, ("ivf:nprobe=1",), 5, lambda line: None)["cases"][0]
    assert exact["recall"] == {"1": 1.0, "5": 1.0} and few["recall"]["5"] < 1


def test_an_answer_stands_in_a_passage_as_whole_words_without_case_punctuation_and_articles() -> None:
    assert answers_in(["The U.S. Army"], "in the u. s. army, of")
    assert answers_in(["nothing", "Exeter College"], "educated at (exeter college).")
    assert not answers_in(["Rome"], "a romeo")
    assert not answers_in(["the", "..."], "the ... the")


def test_chance_is_the_share_of_draws_that_hold_a_relevant_passage() -> None:
    assert chance(1, 4, 1) == 0.25
    assert chance(2, 4, 2) == pytest.approx(1 - 1 / 6)
    assert chance(1, 4, 9) == chance(4, 4, 1) == 1


def test_limit_takes_the_first_questions(data: Path) -> None:
    assert [question.text for question in read_questions(data, 1)] == ["river through Paris"]


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"question": "q", "answers": 3, "passages": []}'])
def test_data_of_another_form_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=r"data\.jsonl"):
        run(tmp_path / "data.jsonl", embedder="hash")
    with pytest.raises(ConfigError, match="No such file"):
        run(tmp_path / "missing.jsonl", embedder="hash")


class Door:
    """The two doors of an index over HTTP, in a thread; `spoil` may change the hits."""

    def __init__(self, folder: Path) -> None:
        self.retrieval = Retrieval(folder, "hash")
        self.spoil = lambda hits: hits
        self.url = ""

    async def ingest(self, request: web.Request) -> web.Response:
        documents = [Document(**each) for each in (await request.json())["documents"]]
        await self.retrieval.ingest(request.match_info["name"], documents)
        return web.json_response({}, status=201)

    async def search(self, request: web.Request) -> web.Response:
        body = await request.json()
        docs = await self.retrieval.search(request.match_info["name"], body["query"], body["k"])
        hits: list[dict[str, Any]] = [{"id": doc.id, "text": doc.text, "score": doc.score} for doc in docs]
        return web.json_response({"hits": self.spoil(hits)})


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door, ready, loop = Door(tmp_path / "server"), threading.Event(), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/indexes/{name}/documents", door.ingest)
        app.router.add_post("/v1/indexes/{name}/search", door.search)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        door.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def serve() -> None:
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.run_until_complete(door.retrieval.close())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(20)
    yield door
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def test_a_server_with_the_same_hits_is_said_to_have_them(data: Path, door: Door) -> None:
    server = run(data, embedder="hash", url=door.url)["server"]
    assert server["equal_hits"] is True and server["compared"]["questions"] == 3


@pytest.mark.parametrize("change", ["order", "score", "text", "missing"])
def test_a_server_with_other_hits_fails_the_benchmark(data: Path, door: Door, change: str) -> None:
    def spoil(hits: list[dict[str, Any]]) -> list[dict[str, Any]]:
        match change:
            case "order":
                scores = [hit["score"] for hit in hits]
                return [{**hit, "score": score} for hit, score in zip(reversed(hits), scores, strict=True)]
            case "score":
                return [{**hit, "score": hit["score"] + 0.01} for hit in hits]
            case "text":
                return [{**hit, "text": "other"} for hit in hits]
            case _:
                return hits[:-1]

    door.spoil = spoil
    with pytest.raises(RetrievalError, match="the server's hits differ"):
        run(data, embedder="hash", url=door.url)


def test_a_server_that_is_not_there_is_a_clear_error(data: Path) -> None:
    with pytest.raises(RetrievalError, match=r"no answer from http://127\.0\.0\.1:9/v1/indexes"):
        run(data, embedder="hash", url="http://127.0.0.1:9")
