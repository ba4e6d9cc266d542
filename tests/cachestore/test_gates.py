import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.cachestore.gatefiles import Absent, Gates, read
from flowserve.cachestore.gates import Figures, Gate, Thresholds, allowed, subject_of
from flowserve.cachestore.keys import Identity
from flowserve.cachestore.policies import NAMES, Policy, parse_policy
from flowserve.cachestore.segments import Quality
from flowserve.errors import ConfigError, StoreError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
IDENTITY = Identity("f" * 64, "main", "tok", "bfloat16")
GOOD = Figures(400, "f1", 0.62, 0.618, 0.015, 0.02, 6, 8)


FIRST_K = Policy("first_k")


def gate(policy: Policy = FIRST_K, identity: Identity = IDENTITY, codec: str = "raw16", **changes: Any) -> Gate:
    made = Gate(
        subject_of(identity, policy, codec),
        "org/model-7b",
        GOOD,
        Thresholds(),
        "musique",
        "0" * 64,
        NOW,
        NOW + timedelta(days=90),
        {"torch": "2.9"},
    )
    return replace(made, **changes)


def test_what_is_written_is_found_for_its_subject_alone(tmp_path: Path) -> None:
    gates, made = Gates(tmp_path / "new"), gate()
    path = gates.write(made)
    assert gates.lookup(made.subject, NOW) == made == read(path)
    assert list(gates) == [made]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "other",
    [
        gate(identity=replace(IDENTITY, model="e" * 64)),
        gate(identity=replace(IDENTITY, weights="v2")),
        gate(identity=replace(IDENTITY, dtype="float16")),
        gate(identity=replace(IDENTITY, quantisation="awq")),
        gate(identity=replace(IDENTITY, adapter="lora@1")),
        gate(Policy("first_k", k=8)),
        gate(Policy("hkvd")),
        gate(codec="int8"),
    ],
    ids=lambda other: str(other.subject),
)
def test_nothing_is_carried_over_to_another_subject(tmp_path: Path, other: Gate) -> None:
    gates = Gates(tmp_path)
    gates.write(gate())
    found = gates.lookup(other.subject, NOW)
    assert isinstance(found, Absent)
    assert found.reason.startswith(f"no gate for {other.subject}")


def test_parameters_of_other_policies_make_no_other_subject() -> None:
    assert gate(Policy("first_k", ratio=0.4)).subject == gate(Policy("first_k")).subject


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"revoked": "drift"}, "was revoked: drift"),
        ({"expires": NOW}, "has expired: it held until 2026-03-01"),
        ({"figures": replace(GOOD, loss_high=0.03)}, "did not pass: loss of f1: 0.0020 in 400 cases, at most 0.0300"),
    ],
)
def test_a_gate_that_does_not_hold_is_as_none_and_says_why(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    gates, made = Gates(tmp_path), gate(created=NOW - timedelta(days=1), **changes)
    gates.write(made)
    found = gates.lookup(made.subject, NOW)
    assert isinstance(found, Absent)
    assert told in found.reason
    assert allowed(gates, IDENTITY, "raw16", Quality.FAST, NOW) == ()


def test_a_revoked_gate_comes_back_by_a_new_measurement_only(tmp_path: Path) -> None:
    gates, made = Gates(tmp_path), gate()
    assert not gates.revoke(made.subject, "drift")
    gates.write(made)
    assert gates.revoke(made.subject, "drift")
    assert isinstance(gates.lookup(made.subject, NOW), Absent)
    gates.write(made)
    assert gates.lookup(made.subject, NOW) == made


@pytest.mark.parametrize(
    ("figures", "thresholds", "told"),
    [
        (GOOD, Thresholds(), None),
        (
            replace(GOOD, score_full=0.1, score_policy=0.1),
            Thresholds(),
            "full prefill scores 0.100 f1 on musique, under 0.3",
        ),
        (replace(GOOD, loss_high=0.0201), Thresholds(), "allowed is 0.02; more cases would tell"),
        (replace(GOOD, score_policy=0.5, loss_high=0.2), Thresholds(), "at most 0.2000; allowed is 0.02"),
        (replace(GOOD, far=40), Thresholds(), "a KL from 1 nats: 0.1000 in 400 cases"),
        (replace(GOOD, differing=60), Thresholds(), "another first token: 0.1500 in 400 cases"),
        (replace(GOOD, n=20, far=0, differing=0), Thresholds(), "more cases would tell"),
        (replace(GOOD, differing=60), Thresholds(differing=0.3), None),
    ],
)
def test_a_policy_passes_only_within_every_limit(figures: Figures, thresholds: Thresholds, told: str | None) -> None:
    refusal = gate(figures=figures, thresholds=thresholds).refusal
    assert refusal is None if told is None else told in (refusal or "")
    assert (
        "more cases" in (refusal or "more cases")
        or figures.score_full < 0.3
        or (refusal or "").endswith(("0.02", "0.1"))
    )


def test_a_class_bounds_what_its_nodes_may_use() -> None:
    policies = [
        Policy("hkvd"),
        Policy("sink0"),
        Policy("first_k", k=32),
        Policy("first_k"),
        Policy("none"),
        Policy("full"),
    ]
    gates = [gate(policy) for policy in policies]
    found = {quality: allowed(gates, IDENTITY, "raw16", quality, NOW) for quality in Quality}
    assert [str(policy).partition(",")[0] for policy in found[Quality.FAST]] == [
        "none",
        "sink0",
        "first_k:k=16",
        "first_k:k=32",
        "hkvd:ratio=0.15",
    ]
    assert found[Quality.BALANCED] == found[Quality.FAST][2:]
    assert found[Quality.EXACT] == ()
    assert allowed(gates, IDENTITY, "int8", Quality.FAST, NOW) == ()
    assert allowed(gates, replace(IDENTITY, weights="v2"), "raw16", Quality.FAST, NOW) == ()
    assert allowed([], IDENTITY, "raw16", Quality.FAST, NOW) == ()


def changed(field: str, value: Any) -> Any:
    def change(record: dict[str, Any]) -> None:
        *outer, last = field.split(".")
        for name in outer:
            record = record[name]
        if value is None:
            del record[last]
        else:
            record[last] = value

    return change


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("schema", 2, "field 'schema': got 2"),
        ("surprise", 1, "unknown field 'surprise'"),
        ("figures.n", None, "field 'figures.n' is missing"),
        ("figures.n", 4.5, "field 'figures.n': expected int; got 4.5"),
        ("figures.n", True, "expected int; got True"),
        ("figures.far", 401, "counts from 0 to n"),
        ("figures.score_full", 1.5, "scores from 0 to 1"),
        ("figures.loss_high", 0.0, "field 'figures.loss_high': 0.0 is under the loss"),
        ("figures", 3, "field 'figures': expected an object"),
        ("thresholds.error", 0.9, "gate error: expected a chance between 0 and 0.5"),
        ("policy", "blend", "reuse policy: expected one of none"),
        ("created", "yesterday", "field 'created': expected a time with its zone"),
        ("expires", "2026-01-01T00:00:00+00:00", "is not after 'created'"),
        ("versions", {"torch": 2}, "field 'versions': expected an object of texts"),
        ("name", 5, "field 'name': expected text, got 5"),
    ],
)
def test_a_broken_file_is_an_error_that_names_file_and_field(tmp_path: Path, field: str, value: Any, told: str) -> None:
    gates = Gates(tmp_path)
    path = gates.write(gate())
    record = json.loads(path.read_text())
    changed(field, value)(record)
    path.write_text(json.dumps(record))
    with pytest.raises(StoreError) as error:
        gates.lookup(gate().subject, NOW)
    assert str(path) in str(error.value)
    assert told in str(error.value)


def test_a_file_does_not_pass_because_it_was_edited_to_expect_less(tmp_path: Path) -> None:
    """Figures decide; a copy for another codec is foreign."""
    gates, other = Gates(tmp_path), gate(codec="int4")
    gates.path(other.subject).write_text(gates.write(gate()).read_text())
    found = gates.lookup(other.subject, NOW)
    assert isinstance(found, Absent)
    assert (
        "is foreign: it is for model ffffffffffff revision main+bfloat16, policy first_k:k=16, codec raw16"
        in found.reason
    )


@given(
    st.builds(
        Policy,
        st.sampled_from(NAMES),
        ratio=st.floats(0, 1),
        k=st.integers(0, 10**6),
        check_layer=st.integers(1, 99),
        metric=st.sampled_from(["v_l2", "k_l2", "kv_l2"]),
        gradual=st.sampled_from([(), (0.0,), (0.1 + 0.2e-16,)]),
    ).filter(lambda policy: not policy.gradual or policy.gradual[0] <= policy.ratio)
)
def test_a_policy_that_is_written_is_read_back(policy: Policy) -> None:
    assert parse_policy(str(policy)).parameters == policy.parameters


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("sink0", Policy("sink0")),
        ("first_k:32", Policy("first_k", k=32)),
        ("query_attn:0.3", Policy("query_attn", ratio=0.3)),
        ("hkvd:0.2,gradual=0.2/0.1", Policy("hkvd", ratio=0.2, gradual=(0.2, 0.1))),
    ],
)
def test_a_policy_is_read_from_its_short_form(text: str, policy: Policy) -> None:
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("blend", "expected one of none, sink0"),
        ("none:k=1", "expected no parameters; got 'k=1'"),
        ("first_k:ratio=0.1", "expected k=; got 'ratio=0.1'"),
        ("first_k:many", "k: expected a number, got 'many'"),
        ("none:1", "expected no parameters; got '1'"),
        ("first_k:k=many", "k: expected a number, got 'many'"),
        ("hkvd:check_layer=0", "check_layer: expected at least 1"),
    ],
)
def test_a_policy_that_is_none_is_told(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_policy(text)
