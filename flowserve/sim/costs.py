"""How long one step of an engine takes: a + b * prompt tokens + c * sequences that write + d * KV tokens read.

Every term is a thing an engine does: start a step and read the weights, compute prompt tokens, sample and move one token
per sequence, read the KV of what went before. The four numbers come from measurements by least squares (`fit`), or from
the data sheet of the device (`KNOWN`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowserve.errors import ConfigError
from flowserve.ids import Seconds, Tokens


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Coefficients, in seconds."""

    step_s: Seconds
    """a: of any step."""
    prefill_s: Seconds
    """b: per prompt token computed."""
    decode_s: Seconds
    """c: per sequence that writes a token."""
    kv_s: Seconds
    """d: per token of KV that is read."""

    def seconds(self, prefill: Tokens, decodes: int, kv: Tokens) -> Seconds:
        return self.step_s + self.prefill_s * prefill + self.decode_s * decodes + self.kv_s * kv


@dataclass(frozen=True, slots=True)
class Sample:
    """So many steps took so long together. The other fields are sums over these steps."""

    seconds: Seconds
    steps: int = 1
    prefill: Tokens = 0
    decodes: int = 0
    kv: Tokens = 0
    calls: int = 0
    """Calls whose way to the engine and back is in the time too."""
    weight: float = 1.0
    """Of the sample among others; less, where several tell of the same steps."""


def of_call(prompt: Tokens, output: Tokens, ttft_s: Seconds, e2e_s: Seconds) -> tuple[Sample, Sample]:
    """What a call teaches that had the engine to itself: one step of prefill, and a step per further token."""
    rest = max(0, output - 1)
    read = rest * prompt + rest * (rest + 1) // 2
    return Sample(ttft_s, 1, prompt, 0, 0), Sample(e2e_s - ttft_s, rest, 0, rest, read)


H100_8B = StepCosts(step_s=6.5e-3, prefill_s=3.2e-5, decode_s=2.0e-5, kv_s=5.6e-8)
"""An 8B model in 16 bits on an H100 SXM, by its data sheet, not measured: 16 GB of weights at 75 % of 3.35 TB/s; 16 GFLOP
per prompt token at half of 990 TFLOP/s; 128 KiB of KV per token (32 layers, 8 KV heads of 128) at 70 % of 3.35 TB/s; 20 us
per sequence for sampling and scheduling."""

CPU_66M = StepCosts(step_s=8.7e-3, prefill_s=3.7e-4, decode_s=3.1e-4, kv_s=1.7e-6)
"""Our random Llama of 66 million weights (`bench/random_model.py`) in bfloat16 on vLLM 0.32 for CPUs and one core of an AMD EPYC,
fitted by `flowserve bench fidelity` on 27 November 2026: median error of a sample 4 %. KV memory there: 14,944 tokens."""

KNOWN = {"h100-8b": H100_8B, "cpu-66m": CPU_66M}
"""By the name that a workload file may use."""


def fit(samples: Sequence[Sample]) -> StepCosts:
    """Least squares over relative errors, so that short steps count as much as long ones. No coefficient is negative: one
    that would be is 0, and the others are fitted without it. Raises ConfigError for fewer than four samples."""
    used = _usable(samples)
    return StepCosts(*_solve(used, _seconds(used))[:4])


TRIM = 6.0
"""A sample that is off by more than so many times the median error had the machine shared with something else."""
LEAST_S: Seconds = 1e-3
"""No sample is expected to take less, whatever the round before says: it would count for everything."""
ROUNDS = 6
"""Of reweighting; what is trimmed hardly changes after three."""


def fit_trimmed(samples: Sequence[Sample]) -> tuple[StepCosts, Seconds]:
    """Least squares, reweighted: errors relative to what the round before expects, without the samples that were far off in it.
    Also the seconds of `Sample.calls`.

    Relative to what was measured, a sample that was cut short by the rounding of news would weigh most: prompts would come
    out too cheap. The first round takes absolute errors, or the few long samples that tell of prompts would be trimmed.
    """
    used = _usable(samples)
    seconds = _seconds(used)
    found = _solve(used, np.ones(len(used)))
    for _ in range(ROUNDS):
        expected = np.array([_expected(found, sample) for sample in used])
        scale = np.maximum(expected, LEAST_S)
        errors = np.abs(seconds - expected) / scale
        kept = errors <= TRIM * np.median(errors)
        if kept.sum() < 4:
            break
        found = _solve([sample for sample, keep in zip(used, kept, strict=True) if keep], scale[kept])
    return StepCosts(*found[:4]), found[4]


def _seconds(samples: Sequence[Sample]) -> NDArray[np.float64]:
    return np.array([sample.seconds for sample in samples])


def _usable(samples: Iterable[Sample]) -> list[Sample]:
    used = [sample for sample in samples if sample.steps and sample.seconds > 0]
    if len(used) < 4:
        raise ConfigError(f"a cost model needs at least 4 samples with steps and a duration; got {len(used)}")
    return used


def _row(sample: Sample) -> tuple[float, ...]:
    return (sample.steps, sample.prefill, sample.decodes, sample.kv, sample.calls)


def _expected(coefficients: Sequence[float], sample: Sample) -> Seconds:
    return sum(coefficient * value for coefficient, value in zip(coefficients, _row(sample), strict=True))


def _solve(samples: Sequence[Sample], scale: NDArray[np.float64]) -> list[float]:
    """Coefficients of the five columns; a sample's error counts in units of its `scale`."""
    weights = np.sqrt([sample.weight for sample in samples]) / scale
    rows = np.array([_row(sample) for sample in samples], float) * weights[:, None]
    seconds = _seconds(samples) * weights
    found = np.zeros(rows.shape[1])
    active = [column for column in range(rows.shape[1]) if rows[:, column].any()]
    while active:
        norms = np.linalg.norm(rows[:, active], axis=0)
        solved = np.linalg.lstsq(rows[:, active] / norms, seconds, rcond=None)[0]
        if (solved >= 0).all():
            found[active] = solved / norms
            break
        del active[int(np.argmin(solved))]
    return [float(value) for value in found]


def error(costs: StepCosts, samples: Iterable[Sample], call_s: Seconds = 0.0) -> float:
    """Median relative error of the samples' times."""
    coefficients = (costs.step_s, costs.prefill_s, costs.decode_s, costs.kv_s, call_s)
    return float(np.median([abs(_expected(coefficients, sample) / sample.seconds - 1) for sample in _usable(samples)]))


def read(path: Path) -> StepCosts:
    """Costs from a JSON file: `{"costs": {...}}`, or measurements to fit: `{"steps": [...], "calls": [...]}`.

    A step is `{"seconds", "steps", "prefill", "decodes", "kv"}`; a call, alone at its engine, is `{"prompt", "output",
    "ttft_s", "e2e_s"}`. Raises ConfigError.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if "costs" in value:
            return StepCosts(**value["costs"])
        samples = [Sample(**step) for step in value.get("steps", ())]
        for call in value.get("calls", ()):
            samples += of_call(**call)
    except (OSError, ValueError, TypeError, AttributeError) as wrong:
        raise ConfigError(f"{path}: expected JSON with costs, or with measured steps or calls: {wrong}") from wrong
    return fit(samples)


def parse(value: Any, folder: Path) -> StepCosts:
    """A name in `KNOWN`, a table of the four coefficients, or a JSON file beside the workload."""
    if isinstance(value, str) and value in KNOWN:
        return KNOWN[value]
    if isinstance(value, Mapping) and value.keys() == asdict(H100_8B).keys():
        return StepCosts(**value)
    if isinstance(value, str) and value.endswith(".json"):
        return read(folder / value)
    raise ConfigError(
        f"costs: expected one of {', '.join(KNOWN)}, a .json file, or a table of {', '.join(asdict(H100_8B))}; got {value!r}"
    )
