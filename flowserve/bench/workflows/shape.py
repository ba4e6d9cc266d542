"""What workloads are made of: arrivals, texts, and the one factor by which lengths are scaled to the machine.

Lengths are those of the published workloads (tokens; a word of ours is about a token) times `SCALE`. Values go on lines of
their own and are trimmed, so that a prompt tokenised in segments and one tokenised whole are the same ids.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from flowserve.bench.random_model import WORDS
from flowserve.ids import Seconds

SCALE = float(os.environ.get("FLOWSERVE_BENCH_SCALE", "0.125"))
"""Read once: prompts and limits of the declared workflows are fixed when their file is imported."""


class Say(Protocol):
    """Asks the model; gives its text, trimmed. `sampling`: further fields of the OpenAI API; without, the likeliest text."""

    def __call__(self, system: str, user: str, max_tokens: int, **sampling: Any) -> Awaitable[str]: ...


Program = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Input -> result."""


def scaled(tokens: int) -> int:
    return max(1, round(tokens * SCALE))


def text(rnd: Random, tokens: int) -> str:
    """Random words, as many as `tokens` scaled."""
    return " ".join(rnd.choices(WORDS, k=scaled(tokens)))


def fixed(name: str, tokens: int) -> str:
    """The same words every time, as instructions are."""
    return text(Random(name), tokens)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One run that somebody asks for."""

    at_s: Seconds
    workflow: str
    input: Mapping[str, Any]


def poisson(
    rnd: Random, rate: float, seconds: Seconds, workflow: str, make: Callable[[], dict[str, Any]]
) -> list[Arrival]:
    """Runs of one workflow at random times, `rate` per second on average."""
    found: list[Arrival] = []
    at = rnd.expovariate(rate)
    while at < seconds:
        found.append(Arrival(at, workflow, make()))
        at += rnd.expovariate(rate)
    return found


@dataclass(frozen=True, slots=True)
class Workload:
    """One comparison. Names of workflows are those that FlowServe serves."""

    name: str
    title: str
    arrivals: Callable[[Random, float, Seconds], list[Arrival]]
    """(randomness, load: a factor on all rates, seconds) -> runs in order of time."""
    graphs: Callable[[], dict[str, Any]]
    """Workflow -> compiled LangGraph graph; its nodes take `say` from the config. The result is `state["result"]`."""
    plain: Mapping[str, Callable[[Say, Mapping[str, Any]], Awaitable[Any]]] = field(default_factory=dict)
    """Workflow -> the same as coroutines."""
    urgent: str | None = None
    """Workflow whose latency is what the workload is about; None: all alike."""
    corpus: Callable[[], Sequence[str]] | None = None
    """Passages that its programs search; None: they search nothing."""


def say_of(config: Mapping[str, Any]) -> Say:
    """What LangGraph's nodes call the model with."""
    say: Say = config["configurable"]["say"]
    return say
