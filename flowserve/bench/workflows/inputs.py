"""What workloads are asked, from a folder of recorded data; without one, random words with the published lengths.

    documents/*.txt      long texts, to be summarised
    math/*.jsonl         {"question": str}
    reasoning/*.jsonl*   {"dataset": str, "problem_id", "final_answer": str}
    rag/*.jsonl          {"question": str, "passages": [str]}
    tools/*.jsonl.gz     {"segments": [{"prompt_tokens", "completion_tokens", "tool_seconds", "tool_result_tokens"}]}
    traces/*conv*.csv.gz TIMESTAMP,ContextTokens,GeneratedTokens

`*` also stands for folders between. Every word is exchanged for one that the random models' tokenizer knows as a token, always
the same one: what is repeated stays repeated, and lengths in words are lengths in tokens.
"""

import csv
import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from flowserve.bench.random_model import WORDS
from flowserve.bench.workflows.shape import SCALE, scaled, text
from flowserve.errors import ConfigError

FOLDER = "FLOWSERVE_DATA"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Segment:
    """One call of a recorded program, in tokens before scaling, and the tool that runs after it."""

    text_tokens: int
    """What the prompt has more than the call before and its answer."""
    output_tokens: int
    tool_s: float


def folder() -> Path | None:
    """Where recorded data lie. Raises ConfigError for a folder that there is not."""
    given = os.environ.get(FOLDER, "")
    if not given:
        return None
    if not Path(given).is_dir():
        raise ConfigError(f"--data: expected a folder of recorded data; there is none at {given}")
    return Path(given)


def renamed(given: str) -> str:
    """The text in words that are a token each."""
    return " ".join(_word(word) for word in given.split())


@cache
def _word(given: str) -> str:
    return WORDS[int.from_bytes(blake2b(given.lower().encode(), digest_size=4).digest(), "big") % len(WORDS)]


def chunks(rnd: Random, tokens: int, counts: tuple[int, ...]) -> list[str]:
    """A document in chunks of `tokens` scaled: of each chunk of that length a stretch, at a random place.

    Without data as many chunks as one of `counts` says.
    """
    if folder() is None:
        return [text(rnd, tokens) for _ in range(rnd.choice(counts))]
    words, length = rnd.choice(_documents()), scaled(tokens)
    skipped = rnd.randrange(max(1, tokens - length))
    cut = [words[at + skipped : at + skipped + length] for at in range(0, len(words) - tokens + 1, tokens)]
    return [" ".join(part) for part in cut] or [" ".join(words[:length])]


def question(rnd: Random, tokens: int) -> str:
    """A mathematical question, as long as it is; without data `tokens` scaled."""
    return text(rnd, tokens) if folder() is None else _numbered(rnd, rnd.choice(_questions()))


def answers(rnd: Random) -> list[str]:
    """What samples answered to one problem; without data three of four agree."""
    return ["a"] * 9 + ["b", "c", "d"] if folder() is None else rnd.choice(_answers())


def search_question(rnd: Random, tokens: int) -> str:
    """A question about the passages, as long as it is; without data `tokens` scaled."""
    return text(rnd, tokens) if folder() is None else _numbered(rnd, rnd.choice(_searches())[0])


def _numbered(rnd: Random, given: str) -> str:
    """Data are few: a word in front makes most questions ones that no cache has seen."""
    return f"{rnd.choice(WORDS)} {rnd.choice(WORDS)} {given}"


@cache
def passages(tokens: int, count: int) -> tuple[str, ...]:
    """The corpus that is searched: passages of `tokens` scaled."""
    length, rnd = scaled(tokens), Random("passages")
    if folder() is None:
        return tuple(text(rnd, tokens) for _ in range(count))
    words = [passage.split() for _, found in _searches() for passage in found]
    return tuple(" ".join(one[at : at + length]) for one in words for at in range(0, len(one), length))[:count]


def agent_program(rnd: Random) -> tuple[Segment, ...]:
    """Calls of a tool-using request. Without data: their number, lengths and tool times as InferCept's are on average."""
    if folder() is not None:
        return rnd.choice(_programs())
    calls = 1 + min(15, int(rnd.expovariate(1 / 4.2)))
    first = Segment(round(rnd.uniform(10, 1400)), _about(rnd, 71), rnd.expovariate(1 / 11.0))
    rest = [Segment(_about(rnd, 23), _about(rnd, 71), rnd.expovariate(1 / 11.0)) for _ in range(calls - 1)]
    return (first, *rest)


def talk_program(rnd: Random) -> tuple[Segment, ...]:
    """Turns of a conversation: 6.66 on average (ShareGPT, as Agentix counts), lengths from the trace, else 256 and 277."""
    turns = 1 + min(19, int(rnd.expovariate(1 / 5.66)))
    if folder() is None:
        return tuple(Segment(_about(rnd, 256), _about(rnd, 277), 0.0) for _ in range(turns))
    lengths = rnd.choices(_talk_lengths(), k=turns)
    return tuple(Segment(min(context, 1024), min(output, 1024), 0.0) for context, output in lengths)


def _about(rnd: Random, tokens: int) -> int:
    return max(1, min(4 * tokens, round(rnd.expovariate(1 / tokens))))


# --- files ------------------------------------------------------------------------------------------------


def scaled_seconds(seconds: float) -> float:
    """Tools are as much faster as calls are shorter."""
    return round(seconds * SCALE, 3)


@cache
def _documents() -> list[list[str]]:
    return [
        renamed(file.read_text(encoding="utf-8", errors="replace")).split() for file in _files("documents", "*.txt")
    ]


@cache
def _questions() -> list[str]:
    return _rows("math", "*.jsonl*", lambda row: renamed(str(row["question"])))


@cache
def _answers() -> list[list[str]]:
    found: dict[str, list[str]] = {}
    rows = _rows("reasoning", "*.jsonl*", lambda r: (f"{r['dataset']} {r['problem_id']}", str(r["final_answer"])))
    for problem, answer in rows:
        found.setdefault(problem, []).append(answer)
    return list(found.values())


@cache
def _searches() -> list[tuple[str, list[str]]]:
    return _rows("rag", "*.jsonl*", lambda row: (renamed(row["question"]), [renamed(p) for p in row["passages"]]))


@cache
def _programs() -> list[tuple[Segment, ...]]:
    return _rows("tools", "*.jsonl*", _program)


def _program(row: Mapping[str, Any]) -> tuple[Segment, ...]:
    found, new = [], 0
    for number, segment in enumerate(row["segments"]):
        new = int(segment["prompt_tokens"]) if number == 0 else new
        found.append(Segment(max(1, new), max(1, segment["completion_tokens"]), float(segment["tool_seconds"] or 0.0)))
        new = int(segment["tool_result_tokens"] or 1)
    return tuple(found)


@cache
def _talk_lengths() -> list[tuple[int, int]]:
    found = []
    for file in _files("traces", "*conv*.csv*"):
        with _open(file) as lines:
            found += [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(lines)]
    return found


def _files(kind: str, pattern: str) -> list[Path]:
    where = folder()
    assert where is not None
    found = sorted(where.glob(f"{kind}/**/{pattern}"))
    if not found:
        raise ConfigError(f"--data: expected {kind}/{pattern} in {where}; found none")
    return found


def _open(file: Path) -> Any:
    return gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")


def _rows(kind: str, pattern: str, read: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """`read` of every line. Raises ConfigError with the file and the line that is of another form."""
    found = []
    for file in _files(kind, pattern):
        for number, line in _lines(file):
            try:
                found.append(read(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{file}, line {number}: expected a JSON object as {kind} has; {error!r}") from error
    return found


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with _open(file) as lines:
        yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
