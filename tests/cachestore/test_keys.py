"""Keys: equal for what is interchangeable, different for everything else."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.cachestore.keys import (
    Identity,
    Recipe,
    chunk_key,
    fingerprint,
    prefix_key,
    prefix_keys,
    seal_key,
    tenant_key,
)
from flowserve.errors import ConfigError

SECRET = bytes(range(32))
IDENTITY = Identity("model", "weights", "tokenizer", "bfloat16")
RECIPE = Recipe((1, 1, 1, 1))
IDS = (5, 6, 7)
PLAIN = chunk_key(SECRET, "a", IDENTITY, RECIPE, IDS)


@pytest.mark.parametrize(
    "other",
    [
        chunk_key(SECRET[::-1], "a", IDENTITY, RECIPE, IDS),
        chunk_key(SECRET, "b", IDENTITY, RECIPE, IDS),
        chunk_key(SECRET, "a", replace(IDENTITY, model="m"), RECIPE, IDS),
        chunk_key(SECRET, "a", replace(IDENTITY, weights="w"), RECIPE, IDS),
        chunk_key(SECRET, "a", replace(IDENTITY, tokenizer="t"), RECIPE, IDS),
        chunk_key(SECRET, "a", replace(IDENTITY, dtype="float16"), RECIPE, IDS),
        chunk_key(SECRET, "a", replace(IDENTITY, quantisation="awq"), RECIPE, IDS),
        chunk_key(SECRET, "a", replace(IDENTITY, adapter="lora@1"), RECIPE, IDS),
        chunk_key(SECRET, "a", IDENTITY, Recipe((1, 1, 1)), IDS),
        chunk_key(SECRET, "a", IDENTITY, replace(RECIPE, schema=2), IDS),
        chunk_key(SECRET, "a", IDENTITY, RECIPE, (5, 6)),
        chunk_key(SECRET, "a", IDENTITY, Recipe((1, 1, 1, 1, 5)), (6, 7)),
        prefix_key(SECRET, "a", IDENTITY, None, IDS),
    ],
)
def test_whatever_decides_the_kv_is_in_its_key(other: bytes) -> None:
    assert other != PLAIN and len(other) == len(PLAIN) == 32


def test_equal_inputs_have_equal_keys_in_every_process() -> None:
    assert chunk_key(SECRET, "a", IDENTITY, RECIPE, list(IDS)) == PLAIN
    assert PLAIN.hex() == "a20485d826521e9a6d52298dc107f73c59af692000821db1ab154d664a2ab024"


TEXTS = st.text(max_size=3)
INPUTS = st.tuples(TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, st.lists(st.integers(0, 2**32 - 1), max_size=3))


@given(INPUTS, INPUTS)
def test_no_two_inputs_are_confused_by_their_borders(
    one: tuple[str, str, str, str, str, str, Sequence[int]], two: tuple[str, str, str, str, str, str, Sequence[int]]
) -> None:
    keys = [
        chunk_key(
            SECRET, tenant, Identity(model, weights, tokenizer, "float32", quantisation, adapter), Recipe(()), ids
        )
        for tenant, model, weights, tokenizer, quantisation, adapter, ids in (one, two)
    ]
    assert (keys[0] == keys[1]) == (one == two)


def test_a_block_of_a_prompt_is_named_after_all_that_stands_before_it() -> None:
    first, second, third = prefix_keys(SECRET, "a", IDENTITY, (1, 2, 3, 4, 5, 6, 7), 2)
    assert second == prefix_key(SECRET, "a", IDENTITY, first, (3, 4))
    assert third == prefix_key(SECRET, "a", IDENTITY, second, (5, 6))
    assert prefix_keys(SECRET, "a", IDENTITY, (9, 2, 3, 4), 2)[1] != second


def test_names_and_seals_of_a_tenant_are_made_with_different_keys() -> None:
    assert len({tenant_key(SECRET, "a"), tenant_key(SECRET, "b"), seal_key(SECRET, "a"), seal_key(SECRET, "b")}) == 4


def test_a_secret_that_could_be_guessed_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected at least 16 bytes, got 15"):
        chunk_key(bytes(15), "a", IDENTITY, RECIPE, IDS)


def test_a_fingerprint_does_not_depend_on_the_order_of_facts() -> None:
    assert fingerprint({"a": 1, "b": [2, {"c": 3, "d": None}]}) == fingerprint({"b": [2, {"d": None, "c": 3}], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
