"""Kinds of indexes as text."""

import pytest

from flowserve.errors import InputError
from flowserve.retrieval.spec import EXACT, PARAMETERS, parse


@pytest.mark.parametrize("kind", PARAMETERS)
def test_a_kind_is_read_back_from_what_it_says_of_itself(kind: str) -> None:
    assert parse(str(parse(kind))) == parse(kind)


def test_what_is_not_said_is_the_default() -> None:
    assert parse("exact") == EXACT
    assert str(parse("ivf:nprobe=3")) == "ivf:clusters=0,nprobe=3"
    assert parse("bm25:b=0.5")["b"] == 0.5


@pytest.mark.parametrize(
    "text, message",
    [
        ("ivf:probes=3", "expected each of clusters, nprobe at most once, got 'probes=3'"),
        ("ivf:nprobe=1,nprobe=2", "at most once"),
        ("ivf:nprobe=0", "nprobe of kind 'ivf': expected a whole number from 1 to 1048576, got '0'"),
        ("ivf:nprobe=1.5", "whole number"),
        ("ivf:nprobe", "got ''"),
        ("bm25:b=nan", "number from 0.0 to 1.0"),
        ("exact:k=1", "no parameters"),
    ],
)
def test_parameters_that_are_not_there_or_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text)


def test_an_unknown_kind_is_told_the_known_ones() -> None:
    with pytest.raises(InputError, match="expected one of exact, ivf, hnsw, pq, bm25, hybrid; got 'flat'"):
        parse("flat")
