"""Reciprocal rank fusion."""

import pytest

from flowserve.retrieval.fusion import fuse


def test_what_two_rankings_name_stands_before_what_one_names_first() -> None:
    assert [key for key, _ in fuse([["a", "b"], ["c", "b"]])] == ["b", "a", "c"]


def test_scores_are_sums_of_reciprocal_ranks() -> None:
    assert dict(fuse([["a", "b"], ["b"]])) == pytest.approx({"a": 1 / 61, "b": 1 / 62 + 1 / 61})


def test_a_key_named_twice_in_a_ranking_counts_once_and_takes_up_one_place() -> None:
    assert fuse([["a", "a", "b"]]) == fuse([["a", "b"]])


def test_nothing_fuses_to_nothing() -> None:
    assert fuse([]) == [] and fuse([[], []]) == []
