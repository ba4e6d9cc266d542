"""Recall and throughput of retrieval on questions with their passages, all in one index.

The data is JSON lines `{"question": str, "answers": [str], "passages": [str]}`, such as MuSiQue's. A question's own
passages compete with those of all other questions.

recall@k: of the questions whose answer stands in any indexed passage, the share for which it stands in one of the `k`
best. An answer stands in a passage if its words, lower case, without punctuation and articles, occur there in a row.
chance@k is the same for k passages drawn blindly; for short answers it is not zero.
"""

import asyncio
import json
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

from flowserve.bench import index_kinds
from flowserve.bench.index_kinds import Say
from flowserve.errors import ConfigError, RetrievalError
from flowserve.graphs.types import Doc
from flowserve.retrieval import Document, Passage, Progress, Retrieval, embedder_named, progress_bars
from flowserve.retrieval.protocols import Query
from flowserve.retrieval.store import IndexStore

INDEX = "bench-retrieval"
ROUNDS = 3
"""Throughput is the median of so many rounds over all questions."""
DOCUMENTS_PER_REQUEST = 50
SCORE_TOLERANCE = 1e-4
"""A query that is embedded in another batch differs in its last float32 bits."""


@dataclass(frozen=True, slots=True)
class Question:
    """One line of the data."""

    text: str
    answers: tuple[str, ...]
    passages: tuple[str, ...]


def run(
    data: Path,
    k: Sequence[int] = (1, 5, 10),
    embedder: str = "minilm",
    limit: int | None = None,
    url: str | None = None,
    threads: int | None = None,
    kinds: Sequence[str] = (),
    say: Say = print,
) -> dict[str, Any]:
    """Measure; the result is ready for JSON. `limit`: only so many questions. `threads`: of the embedder. `kinds`:
    also compare these kinds of indexes on the same passages.

    With `url`, the same passages are ingested through that server's door and the same questions asked there; the server
    must use the same embedder. Raises ConfigError for data of another form, RetrievalError when hits differ.
    """
    if not k or min(k) < 1:
        raise ConfigError(f"k must be whole numbers from 1 up, got {list(k)}")
    questions = read_questions(data, limit)
    with tempfile.TemporaryDirectory() as folder, progress_bars() as progress:
        return asyncio.run(
            _measure(Path(folder), questions, sorted(set(k)), embedder, url, threads, kinds, say, progress)
        )


def read_questions(data: Path, limit: int | None = None) -> list[Question]:
    """The lines of `data`, at most `limit`."""
    try:
        with data.open(encoding="utf-8") as file:
            lines = [line for line in file if line.strip()][:limit]
        rows = [json.loads(line) for line in lines]
        questions = [Question(str(r["question"]), tuple(r["answers"]), tuple(r["passages"])) for r in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"cannot read '{data}' ({type(error).__name__}: {error}); expected JSON lines with question, answers, passages"
        ) from error
    if not questions:
        raise ConfigError(f"'{data}' holds no questions")
    return questions


def documents_of(questions: Sequence[Question]) -> list[Document]:
    """Every passage as a document of its own."""
    return [
        Document(f"q{number:05}-p{place:02}", passage)
        for number, question in enumerate(questions)
        for place, passage in enumerate(question.passages)
    ]


def normalised(text: str) -> str:
    """Words in lower case between single spaces, without punctuation and articles; a space at both ends."""
    words = re.findall(r"\w+", text.lower().replace("'", ""))
    return f" {' '.join(word for word in words if word not in {'a', 'an', 'the'})} "


def answers_in(answers: Sequence[str], text: str) -> bool:
    """Whether one of `answers` stands in `text`."""
    where = normalised(text)
    return any(wanted.strip() and wanted in where for wanted in map(normalised, answers))


def chance(relevant: int, total: int, k: int) -> float:
    """Probability that `k` of `total` passages, drawn blindly, hold one of the `relevant`."""
    return 1 - comb(total - relevant, k) / comb(total, k) if k <= total else 1.0


async def _measure(
    folder: Path,
    questions: Sequence[Question],
    ks: Sequence[int],
    embedder: str,
    url: str | None,
    threads: int | None,
    kinds: Sequence[str],
    say: Say,
    progress: Progress,
) -> dict[str, Any]:
    retrieval = Retrieval(folder, embedder_named(embedder, threads))
    try:
        started = time.perf_counter()
        await retrieval.embed(["load the model"])
        load_s = time.perf_counter() - started

        ingestion = await _ingest(retrieval, documents_of(questions), progress)
        hits, single = await _search_singly(retrieval, questions, max(ks), progress)
        batched = await _search_together(retrieval, questions, max(ks))
        info = retrieval.info(INDEX)
        passages = await retrieval.passages(INDEX)
        relevant = _relevant(questions, passages)
        results: dict[str, Any] = {
            "embedder": info.embedder,
            "questions": len(questions),
            "documents": info.documents,
            "passages": info.passages,
            "load_s": round(load_s, 2),
            "ingestion": ingestion,
            "search": {"single": single, "batched": batched},
            **_recall(passages, relevant, hits, ks),
        }
        if kinds:
            results["kinds"] = await _kinds(retrieval, folder, questions, relevant, kinds, ks, say)
        if url is not None:
            results["server"] = await _compare(url, questions, hits, max(ks), progress)
        return results
    finally:
        await retrieval.close()


async def _ingest(retrieval: Retrieval, documents: Sequence[Document], progress: Progress) -> dict[str, Any]:
    ended: dict[str, float] = {}
    embedded = 0

    def watch(what: str, done: int, total: int) -> None:
        nonlocal embedded
        ended[what] = time.perf_counter()
        if what == "embed":
            embedded = done
        progress(what, done, total)

    started = time.perf_counter()
    await retrieval.ingest(INDEX, documents, watch)
    total_s = time.perf_counter() - started
    embed_s = ended["embed"] - ended["split"]
    return {
        "documents_per_s": round(len(documents) / total_s, 1),
        "embedded_passages": embedded,
        "embedded_passages_per_s": round(embedded / embed_s, 1),
        "split_s": round(ended["split"] - started, 3),
        "embed_s": round(embed_s, 3),
        "write_s": round(ended["write"] - ended["build"], 3),
        "total_s": round(total_s, 3),
    }


async def _search_singly(
    retrieval: Retrieval, questions: Sequence[Question], k: int, progress: Progress
) -> tuple[list[list[Doc]], dict[str, float]]:
    """One query after the other: the hits, and how long each took with its embedding."""
    hits: list[list[Doc]] = []
    times: list[float] = []
    for number, question in enumerate(questions, 1):
        started = time.perf_counter()
        hits.append(await retrieval.search(INDEX, question.text, k))
        times.append(time.perf_counter() - started)
        progress("search", number, len(questions))
    times.sort()
    return hits, {
        "queries_per_s": round(len(times) / sum(times), 1),
        "p50_ms": round(statistics.median(times) * 1e3, 3),
        "p95_ms": round(times[int(0.95 * (len(times) - 1))] * 1e3, 3),
    }


async def _search_together(retrieval: Retrieval, questions: Sequence[Question], k: int) -> dict[str, float]:
    """All queries at once, as concurrent clients send them."""
    rates: list[float] = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        await asyncio.gather(*(retrieval.search(INDEX, question.text, k) for question in questions))
        rates.append(len(questions) / (time.perf_counter() - started))
    return {"queries_per_s": round(statistics.median(rates), 1), "concurrent": len(questions), "rounds": ROUNDS}


def _relevant(questions: Sequence[Question], passages: Sequence[Passage]) -> list[set[int]]:
    """For each question, the rows of the passages with an answer."""
    where = [normalised(passage.text) for passage in passages]
    found = []
    for question in questions:
        answers = [answer for answer in map(normalised, question.answers) if answer.strip()]
        found.append({row for row, text in enumerate(where) if any(answer in text for answer in answers)})
    return found


def _recall(
    passages: Sequence[Passage], relevant: Sequence[set[int]], hits: Sequence[Sequence[Doc]], ks: Sequence[int]
) -> dict[str, Any]:
    row_of = {passage.id: row for row, passage in enumerate(passages)}
    found = dict.fromkeys(ks, 0)
    blind = dict.fromkeys(ks, 0.0)
    answerable = 0
    for rows, docs in zip(relevant, hits, strict=True):
        answerable += bool(rows)
        for k in ks if rows else ():
            found[k] += any(row_of[doc.id] in rows for doc in docs[:k])
            blind[k] += chance(len(rows), len(passages), k)
    return {
        "answerable": answerable,
        "recall": {str(k): round(found[k] / max(1, answerable), 4) for k in ks},
        "chance": {str(k): round(blind[k] / max(1, answerable), 4) for k in ks},
    }


async def _kinds(
    retrieval: Retrieval,
    folder: Path,
    questions: Sequence[Question],
    relevant: Sequence[set[int]],
    kinds: Sequence[str],
    ks: Sequence[int],
    say: Say,
) -> list[dict[str, Any]]:
    """The passages in an index of each kind: `recall` of what `exact` finds, `answers` as the recall above."""
    found = IndexStore(folder / INDEX).read()
    assert found is not None
    vectors = await retrieval.embed([question.text for question in questions])
    queries = [Query(question.text, vector) for question, vector in zip(questions, vectors, strict=True)]
    return index_kinds.compare(found[1], queries, kinds, ks, say, relevant)


async def _compare(
    url: str, questions: Sequence[Question], hits: Sequence[Sequence[Doc]], k: int, progress: Progress
) -> dict[str, Any]:
    """The same through a server. Raises RetrievalError at the first question whose hits differ."""
    import aiohttp

    index = f"{url.rstrip('/')}/v1/indexes/{INDEX}"
    documents = documents_of(questions)
    times: list[float] = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:

        async def post(door: str, body: dict[str, Any]) -> Any:
            try:
                async with session.post(f"{index}/{door}", json=body) as response:
                    if response.status >= 300:
                        raise RetrievalError(
                            f"{index}/{door} answered {response.status}: {(await response.text())[:300]}"
                        )
                    return await response.json()
            except aiohttp.ClientError as error:
                raise RetrievalError(f"no answer from {index}/{door}: {error}") from error

        for start in range(0, len(documents), DOCUMENTS_PER_REQUEST):
            batch = documents[start : start + DOCUMENTS_PER_REQUEST]
            await post("documents", {"documents": [{"id": d.id, "text": d.text} for d in batch]})
            progress("upload", start + len(batch), len(documents))
        for number, (question, ours) in enumerate(zip(questions, hits, strict=True), 1):
            started = time.perf_counter()
            theirs = (await post("search", {"query": question.text, "k": k}))["hits"]
            times.append(time.perf_counter() - started)
            if not _equal(ours, theirs):
                raise RetrievalError(
                    f"'{question.text}': the server's hits differ. Here {[doc.id for doc in ours]}, there "
                    f"{[hit['id'] for hit in theirs]}. Does the server use the same embedder, and is its index "
                    f"'{INDEX}' free of other documents?"
                )
            progress("server", number, len(questions))
    return {
        "equal_hits": True,
        "compared": {"questions": len(questions), "k": k, "score_tolerance": SCORE_TOLERANCE},
        "queries_per_s": round(len(times) / sum(times), 1),
        "p50_ms": round(statistics.median(times) * 1e3, 3),
    }


def _equal(ours: Sequence[Doc], theirs: Sequence[dict[str, Any]]) -> bool:
    """The same passages with the same texts and scores; those whose scores cannot be told apart in any order."""
    if len(ours) != len(theirs):
        return False
    if any(abs(doc.score - hit["score"]) > SCORE_TOLERANCE for doc, hit in zip(ours, theirs, strict=True)):
        return False
    if [doc.id for doc in ours] == [hit["id"] for hit in theirs]:
        return [doc.text for doc in ours] == [hit["text"] for hit in theirs]
    there = {hit["id"]: hit for hit in theirs}
    return all(
        doc.id in there
        and doc.text == there[doc.id]["text"]
        and abs(doc.score - there[doc.id]["score"]) <= SCORE_TOLERANCE
        for doc in ours
    )
