"""What a function reads and writes is told only when its source shows it."""

from typing import Any

import pytest

pytest.importorskip("langgraph")

from flowserve.integrations.langgraph.footprint import UNKNOWN, footprint

KNOWN = {"b": 1}


def plain(state: Any) -> Any:
    if state["a"]:
        return None
    return {"b": state.get("c", "") + "x"}


async def nested(state: Any) -> Any:
    return {"b": [state["a"] for _ in range(2)]}


def passes_it_on(state: Any) -> Any:
    return {"b": str(state)}


def assigns(state: Any) -> Any:
    state["a"] = 1
    return {"b": 1}


def renames(state: Any) -> Any:
    other = state
    return {"b": other["a"]}


def computed(state: Any) -> Any:
    key = "a"
    return {"b": state[key]}


def spreads(state: Any) -> Any:
    return {**KNOWN, "c": state["a"]}


def looks_around(state: Any) -> Any:
    return {"b": locals()["state"]["a"]}


def test_constant_keys_are_read_and_literal_keys_are_written() -> None:
    assert footprint(plain).reads == {"a", "c"} and footprint(plain).writes == {"b"}
    assert footprint(nested).reads == {"a"} and footprint(nested).writes == {"b"}
    assert not footprint(plain).commands


@pytest.mark.parametrize("function", [passes_it_on, assigns, renames, computed])
def test_any_other_use_of_the_state_makes_the_reads_unknown(function: Any) -> None:
    assert footprint(function).reads is None


def test_a_return_that_is_no_literal_makes_the_writes_unknown() -> None:
    assert footprint(spreads).writes is None and footprint(spreads).reads == {"a"} and footprint(spreads).commands


def test_what_has_no_source_or_looks_around_is_unknown() -> None:
    assert footprint(looks_around) == UNKNOWN
    assert footprint(len) == UNKNOWN
