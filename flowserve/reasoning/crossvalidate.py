"""What a rule family does to chains that took no part in choosing its parameters.

Problems are dealt into folds, and each fold is taken seed by seed. For the chains of one fold and one seed, parameters are chosen, per
model, on chains of other problems that were drawn with other seeds: those that save most among the points of the family's grid that
lose no more than is allowed there. The chosen ones are applied to the chains left out, and the figures are of these chains alone.
The grid is fixed beforehand; all else is chosen anew in every fold.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import product

from flowserve.core.stopping.chains import CHAIN_RULES
from flowserve.reasoning.outcomes import Outcome, accuracy_change_pp, tokens_saved_pct, untouched
from flowserve.reasoning.replay import Recording, walk

FOLDS = 10
ALLOWED_PP = 0.3
Args = Mapping[str, float]


def _grid(**values: Sequence[float]) -> tuple[Args, ...]:
    return tuple(dict(zip(values, point, strict=True)) for point in product(*values.values()))


GRIDS: dict[str, tuple[Args, ...]] = {
    "budget": _grid(tokens=[2048, 4096, 8192, 12288, 16384]),
    "deer": _grid(trials=[30], threshold=[0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999]),
    "agree": _grid(apart=[1], agreeing=[2, 3], threshold=[0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999]),
    "evidence": _grid(nines=[2, 2.5, 2.75, 3, 3.25, 3.5, 3.75, 4, 4.5], keep=[0, 0.3, 0.5], span=[2048, 3072]),
    "certaindex": _grid(every=[64, 128, 256], window=[8, 12, 16, 24, 48]),
}
"""Points of each family, from which parameters are chosen."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for one model in one fold."""

    model: str
    args: Args | None
    """None: no point lost as little as was allowed; the chains were left alone."""
    num_outcomes: int


def cross_validate(
    rule: str, recordings: Sequence[Recording], allowed_pp: float = ALLOWED_PP
) -> tuple[list[Outcome], list[Choice]]:
    """(outcomes of all chains, each under parameters chosen without it; what was chosen)."""
    outcomes: list[Outcome] = []
    choices: list[Choice] = []
    for model in sorted({item.trajectory.model for item in recordings}):
        own = [item for item in recordings if item.trajectory.model == model]
        points = [[walk(item, CHAIN_RULES[rule](args)).outcome for item in own] for args in GRIDS[rule]]
        for learned, left_out in _parts(points[0]):
            best = _best([[point[i] for i in learned] for point in points], allowed_pp)
            choices.append(Choice(model, None if best is None else GRIDS[rule][best], len(left_out)))
            outcomes += [untouched(points[0][i]) if best is None else points[best][i] for i in left_out]
    return outcomes, choices


def _parts(outcomes: Sequence[Outcome]) -> Iterator[tuple[list[int], list[int]]]:
    """(indices of other problems and other seeds, indices of the fold with the seed)."""
    cells = [(_fold(item), item.seed) for item in outcomes]
    for fold, seed in sorted(set(cells)):
        learned = [i for i, cell in enumerate(cells) if cell[0] != fold and cell[1] != seed]
        yield learned, [i for i, cell in enumerate(cells) if cell == (fold, seed)]


def _fold(item: Outcome) -> int:
    """By the problem, whatever the order of the bank is; all seeds and models of a problem are in one fold."""
    return int.from_bytes(sha256(f"{item.dataset}/{item.problem}".encode()).digest()[:4], "big") % FOLDS


def _best(points: Sequence[Sequence[Outcome]], allowed_pp: float) -> int | None:
    """Index of the point that saves most among those that lose no more; None if there is none."""
    allowed = [i for i, point in enumerate(points) if point and accuracy_change_pp(point) >= -allowed_pp]
    return max(allowed, key=lambda i: tokens_saved_pct(points[i]), default=None)
