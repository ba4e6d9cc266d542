"""What kind an index is, with its parameters: `exact`, `ivf`, `hnsw`, `pq`, `bm25` or `hybrid`, written `ivf:nprobe=32`.

A kind says how passages are found, not what is stored: every index holds the vectors of its passages, so that its kind
can be changed without embedding anything again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flowserve.errors import InputError


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number that a kind may be given."""

    default: float
    least: float
    most: float
    built: bool
    """Whether it shapes what is built; another value then means building anew. Others are for searches alone."""


_BM25 = {"k1": Parameter(1.2, 0.0, 100.0, False), "b": Parameter(0.75, 0.0, 1.0, False)}
PARAMETERS: Mapping[str, Mapping[str, Parameter]] = {
    "exact": {},
    "ivf": {"clusters": Parameter(0, 0, 1 << 20, True), "nprobe": Parameter(16, 1, 1 << 20, False)},
    "hnsw": {
        "m": Parameter(32, 2, 256, True),
        "ef_construction": Parameter(200, 1, 1 << 16, True),
        "ef_search": Parameter(64, 1, 1 << 16, False),
    },
    "pq": {
        "segments": Parameter(0, 0, 4096, True),
        "bits": Parameter(8, 4, 8, True),
        "refine": Parameter(10, 1, 1000, False),
    },
    "bm25": _BM25,
    "hybrid": {**_BM25, "depth": Parameter(50, 1, 1000, False), "offset": Parameter(60, 0, 10_000, False)},
}
"""Kind -> its parameters. 0 clusters: four times the root of the passages; 0 segments: one for each 8 dimensions or more."""
APPROXIMATE = frozenset({"ivf", "hnsw", "pq"})
"""Kinds that may miss a passage that `exact` finds."""


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """A kind with all its parameters. Made by `parse`."""

    kind: str = "exact"
    parameters: tuple[tuple[str, float], ...] = ()
    """In the order of `PARAMETERS`, none left out."""

    def __str__(self) -> str:
        shown = ",".join(f"{name}={value}" for name, value in self.parameters)
        return f"{self.kind}:{shown}" if shown else self.kind

    def __getitem__(self, name: str) -> float:
        return dict(self.parameters)[name]

    def count(self, name: str) -> int:
        """A parameter that is a whole number."""
        return int(self[name])

    def builds_like(self, other: "IndexSpec") -> bool:
        """Whether what was built for `other` can be searched by this one."""
        shaping = [name for name, parameter in PARAMETERS[self.kind].items() if parameter.built]
        return self.kind == other.kind and all(self[name] == other[name] for name in shaping)


EXACT = IndexSpec()


def parse(text: str) -> IndexSpec:
    """`kind` or `kind:name=number,...`; what is not said is the default. Raises InputError."""
    kind, _, rest = text.partition(":")
    if kind not in PARAMETERS:
        raise InputError(f"kind of index: expected one of {', '.join(PARAMETERS)}; got '{kind:.80}'")
    known = PARAMETERS[kind]
    given: dict[str, float] = {}
    for item in filter(None, rest.split(",")):
        name, _, value = item.partition("=")
        if name not in known or name in given:
            names = ", ".join(known) or "no parameters"
            raise InputError(f"kind '{kind}' of index: expected each of {names} at most once, got '{item:.80}'")
        given[name] = _number(f"{name} of kind '{kind}'", value, known[name])
    return IndexSpec(kind, tuple((name, given.get(name, known[name].default)) for name in known))


def _number(what: str, text: str, parameter: Parameter) -> float:
    whole = isinstance(parameter.default, int)
    try:
        value: float = int(text) if whole else float(text)
    except ValueError:
        value = float("nan")
    if not parameter.least <= value <= parameter.most:  # also false for NaN
        raise InputError(
            f"{what}: expected a {'whole ' if whole else ''}number from {parameter.least} to {parameter.most}, got '{text:.80}'"
        )
    return value
