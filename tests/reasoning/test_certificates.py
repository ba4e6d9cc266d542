import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flowserve.errors import StoreError
from flowserve.reasoning.certificates import Absent, Certificate, Certificates, Subject, read

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_what_is_written_is_found_by_model_template_and_task(certificate: Certificate, tmp_path: Path) -> None:
    store = Certificates(tmp_path / "new")
    path = store.write(certificate)
    assert store.lookup(certificate.subject, NOW) == certificate == read(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "other",
    [
        Subject("org/model-8b", "boxed", "math"),
        Subject("org/model-7b", "other", "math"),
        Subject("org/model-7b", "boxed", "code"),
    ],
)
def test_nothing_is_carried_over_to_another_subject(certificate: Certificate, tmp_path: Path, other: Subject) -> None:
    store = Certificates(tmp_path)
    store.write(certificate)
    found = store.lookup(other, NOW)
    assert isinstance(found, Absent)
    assert found.reason == f"no certificate for {other} in {tmp_path}"


def test_names_that_make_the_same_file_name_stay_apart(certificate: Certificate, tmp_path: Path) -> None:
    store = Certificates(tmp_path)
    assert store.path(Subject("a/b", "t", "math")) != store.path(Subject("a-b", "t", "math"))
    assert store.path(Subject("../../etc/x", "t", "..")).parent == tmp_path


def test_it_holds_until_it_expires_and_not_then(certificate: Certificate, tmp_path: Path) -> None:
    store = Certificates(tmp_path)
    store.write(certificate)
    assert store.lookup(certificate.subject, certificate.expires - timedelta(seconds=1)) == certificate
    found = store.lookup(certificate.subject, certificate.expires)
    assert isinstance(found, Absent)
    assert "has expired" in found.reason


def test_a_revoked_one_is_as_none_and_says_why(certificate: Certificate, tmp_path: Path) -> None:
    store = Certificates(tmp_path)
    assert not store.revoke(certificate.subject, "drift")
    store.write(certificate)
    assert store.revoke(certificate.subject, "drift")
    found = store.lookup(certificate.subject, NOW)
    assert isinstance(found, Absent)
    assert found.reason.endswith("was revoked: drift")


def test_a_copy_under_another_name_is_foreign(certificate: Certificate, tmp_path: Path) -> None:
    store = Certificates(tmp_path)
    other = replace(certificate.subject, model="org/model-70b")
    store.path(other).write_text(store.write(certificate).read_text())
    found = store.lookup(other, NOW)
    assert isinstance(found, Absent)
    assert "is foreign: it is for org/model-7b" in found.reason


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schema": 2}, "field 'schema': got 2"),
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"rule": None}, "field 'rule': expected str; got None"),
        ({"num_problems": 4.5}, "field 'num_problems': expected int; got 4.5"),
        ({"stopped": True}, "field 'stopped': expected int; got True"),
        ({"change": "good"}, "field 'change': expected float; got 'good'"),
        ({"change": float("nan")}, "NaN is no number"),
        ({"args": {"threshold": "high"}}, "field 'args': expected an object of numbers"),
        ({"created": "2026-03-01T12:00:00"}, "field 'created': expected a time with its zone"),
        ({"expires": "soon"}, "field 'expires': expected a time with its zone"),
        ({"expires": "2026-02-01T12:00:00+00:00"}, "is not after 'created'"),
        ({"harmed": 1201}, "counts: expected each between 0 and num_trajectories"),
        ({"change_low": -0.02}, "is under -margin"),
        ({"revoked": 1}, "field 'revoked'"),
    ],
)
def test_a_file_that_is_not_exactly_one_is_refused_with_file_and_field(
    certificate: Certificate, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    path = Certificates(tmp_path).write(certificate)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(StoreError) as caught:
        Certificates(tmp_path).lookup(certificate.subject, NOW)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '"yes"', "null"])
def test_a_file_that_is_no_object_is_refused(certificate: Certificate, tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(StoreError, match="expected a certificate of schema 1"):
        read(path)


def test_a_missing_field_is_named(certificate: Certificate, tmp_path: Path) -> None:
    path = Certificates(tmp_path).write(certificate)
    record = json.loads(path.read_text())
    del record["bank"]
    path.write_text(json.dumps(record))
    with pytest.raises(StoreError, match="field 'bank' is missing"):
        read(path)


def test_a_folder_that_cannot_be_written_is_told(certificate: Certificate, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="writing a certificate failed"):
        Certificates(tmp_path / "file").write(certificate)
