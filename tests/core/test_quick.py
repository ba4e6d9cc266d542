"""Records that are made quickly are what dataclasses make, in all else."""

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass, field, fields, make_dataclass
from typing import Any, get_args

import pytest

from flowserve.core.commands import Command, Mark, Status
from flowserve.core.events import Event
from flowserve.core.quick import quick
from flowserve.ids import RunId, TaskId

RECORDS = [*get_args(Command), *get_args(Event)]


@quick
@dataclass(frozen=True, slots=True)
class Noted:
    number: int
    words: list[str] = field(default_factory=list)
    most: int = 3


@pytest.mark.parametrize("cls", RECORDS, ids=lambda cls: cls.__name__)
def test_a_record_holds_what_that_of_dataclass_holds(cls: Any) -> None:
    described = [(item.name, Any, field(default=item.default)) for item in fields(cls)]
    slow = make_dataclass(cls.__name__, described, frozen=True, slots=True)
    values = [object() for _ in fields(cls)]
    for count in range(len(values) + 1):
        try:
            wanted = repr(slow(*values[:count]))
        except TypeError:
            with pytest.raises(TypeError):
                cls(*values[:count])
        else:
            assert repr(cls(*values[:count])) == wanted
            named = {item.name: value for item, value in zip(fields(cls), values[:count], strict=False)}
            assert cls(**named) == cls(*values[:count])


def test_it_stays_frozen_slotted_and_comparable() -> None:
    mark = Mark(RunId("a"), Status.READY, TaskId(1))
    with pytest.raises(FrozenInstanceError):
        mark.attempt = 2  # type: ignore[misc]
    assert type(mark) is Mark and not hasattr(mark, "__dict__")
    for other in (copy.deepcopy(mark), pickle.loads(pickle.dumps(mark)), Mark(RunId("a"), Status.READY, TaskId(1))):
        assert other == mark and hash(other) == hash(mark)


def test_defaults_that_are_made_are_made_for_each() -> None:
    one, other = Noted(1), Noted(2, most=4)
    assert (one.words, one.most, other.most) == ([], 3, 4) and one.words is not other.words


def test_what_a_record_lacks_is_named() -> None:
    with pytest.raises(TypeError, match=r"Mark\.__init__\(\) missing 1 required positional argument: 'status'"):
        Mark(RunId("a"))  # type: ignore[call-arg]
