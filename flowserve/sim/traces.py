"""Recorded request streams as arrivals: the Mooncake and Azure traces, and FlowServe's own logs.

A request of a foreign trace becomes a run of one model call. Mooncake's say which 512-token blocks of their prompts are equal;
Azure's say only lengths, so they share nothing.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from flowserve.errors import StoreError
from flowserve.ids import Seconds, Tokens
from flowserve.sim.chance import mix
from flowserve.sim.drive import Arrival
from flowserve.sim.plans import SHAPES
from flowserve.sim.programs import CHUNK, Recorded, Size
from flowserve.sim.recorded import read_log

MOONCAKE_BLOCK: Tokens = 512
Reader = Callable[[Path, str, float, int], Iterator[Arrival]]
"""(file, name of the mix, speed, seed) -> arrivals in order."""


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A text file, packed or not."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield file


def mooncake(path: Path, name: str, speed: float, seed: int) -> Iterator[Arrival]:
    """JSON lines of timestamp (ms), input_length, output_length, hash_ids (Qin et al., FAST 2025)."""
    for number, line in enumerate(mooncake_lines(path)):
        chain = mooncake_chain(line.blocks, line.prompt, line.output, mix(seed, number))
        yield _request(line.at_ms / 1000 / speed, line.prompt, line.output, chain, name, number)


@dataclass(frozen=True, slots=True)
class MooncakeLine:
    """A request as it is recorded."""

    at_ms: float
    prompt: Tokens
    output: Tokens
    blocks: list[int]
    """Equal numbers are equal blocks after equal blocks; the last may not be full."""


def mooncake_lines(path: Path) -> Iterator[MooncakeLine]:
    """The requests of a trace as they are. StoreError names the line that is none."""
    with opened(path) as file:
        for number, line in enumerate(file):
            try:
                value = json.loads(line)
                blocks = [int(id) for id in value["hash_ids"]]
                known = MooncakeLine(
                    float(value["timestamp"]), int(value["input_length"]), int(value["output_length"]), blocks
                )
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(f"{path}, line {number + 1}: no request of a Mooncake trace: {error!r}") from error
            yield known


def mooncake_chain(ids: list[int], prompt: Tokens, output: Tokens, own: int) -> tuple[int, ...]:
    """Chunks of the whole: those of equal blocks are equal; the last block of a prompt is not full, but may be shared."""
    per_block = MOONCAKE_BLOCK // CHUNK
    known = [id * per_block + i for id in ids for i in range(per_block)][: prompt // CHUNK]
    return (*known, *range(own, own + (prompt + output) // CHUNK - len(known)))


def azure(path: Path, name: str, speed: float, seed: int) -> Iterator[Arrival]:
    """CSV of TIMESTAMP, ContextTokens, GeneratedTokens (Patel et al., ISCA 2024)."""
    with opened(path) as file:
        began: datetime | None = None
        for number, row in enumerate(csv.DictReader(file)):
            try:
                moment = datetime.fromisoformat(row["TIMESTAMP"][:26])
                prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(f"{path}, line {number + 2}: no request of an Azure trace: {error!r}") from error
            began = moment if began is None else began
            own = mix(seed, number)
            chain = tuple(range(own, own + (prompt + output) // CHUNK))
            yield _request((moment - began).total_seconds() / speed, prompt, output, chain, name, number)


def log(path: Path, name: str, speed: float, seed: int) -> Iterator[Arrival]:
    """The runs of a log of FlowServe, with the answers that they got."""
    with opened(path) as file:
        yield from read_log(file, name, speed, seed)


CALL = SHAPES["call"]()


def _request(at: Seconds, prompt: Tokens, output: Tokens, chain: tuple[int, ...], name: str, number: int) -> Arrival:
    size = Size(max(1, prompt), max(1, output), max(1, output), chain)
    return Arrival(at, Recorded(size), CALL, mix(number), name)


READERS: dict[str, Reader] = {"mooncake": mooncake, "azure": azure, "log": log}
"""By the name that a workload file or --trace may use."""
