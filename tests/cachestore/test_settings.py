from pathlib import Path
from typing import Any

import pytest

from flowserve.cachestore.policies import Policy
from flowserve.cachestore.segments import Quality
from flowserve.cachestore.settings import ReuseSettings, parsed
from flowserve.errors import ConfigError


def test_the_class_of_a_call_decides_its_policy() -> None:
    settings = ReuseSettings(balanced="hkvd:0.2", fast="sink0")
    assert settings.policy(Quality.EXACT) is None
    assert settings.policy(Quality.BALANCED) == Policy("hkvd", ratio=0.2)
    assert settings.policy(Quality.FAST) == Policy("sink0")


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("full", Policy("full")),
        ("first_k:8", Policy("first_k", k=8)),
        ("first_k", Policy("first_k", k=16)),
        ("budgeted:0.3", Policy("budgeted", ratio=0.3)),
        ("query_attn:1", Policy("query_attn", ratio=1.0)),
        ("hkvd:0.2,gradual=0.2/0.1", Policy("hkvd", ratio=0.2, gradual=(0.2, 0.1))),
    ],
)
def test_a_policy_is_written_as_its_name_and_its_number(text: str, policy: Policy) -> None:
    assert parsed(text, "fast") == policy


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"host_bytes": -1}, "host_bytes: expected a whole number of at least 0; got -1"),
        ({"host_bytes": True}, "host_bytes: expected a whole number"),
        ({"host_bytes": 0}, "expected memory, a disk folder or a remote tier"),
        ({"disk_bytes": 0}, "disk_bytes: expected a whole number of at least 1"),
        ({"disk": Path(__file__)}, "disk: expected a folder"),
        ({"gates": Path(__file__).parent / "none"}, "gates: expected a folder"),
        ({"remote": "http://h:1", "secret": b"s"}, "expected valkey:// or s3:// and an address; got 'http://...'"),
        ({"remote": "valkey:", "secret": b"s"}, "expected valkey:// or s3:// and an address"),
        ({"remote": "valkey://h:1"}, "secret: expected one beside `remote`"),
        ({"shadow_share": 2.0}, "shadow_share: expected a number from 0 to 1; got 2.0"),
        ({"balanced": "sink0"}, "only `fast` allows"),
        ({"balanced": "first"}, "expected one of none, sink0, first_k, hkvd"),
        (
            {"fast": "hkvd:much"},
            "fast: reuse policy 'hkvd:much' ratio: expected a number, got 'much'. Use e.g. hkvd:0.15.",
        ),
        ({"fast": "hkvd:nan"}, "ratio: expected 0 to 1, got nan"),
        ({"fast": "hkvd:2"}, "ratio: expected 0 to 1"),
        ({"fast": "first_k:0.5"}, "Use e.g. first_k:16."),
        ({"fast": "none:1"}, "expected no parameters; got '1'. Use e.g. none."),
    ],
)
def test_what_is_wrong_is_said_with_its_field_and_a_remedy(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ReuseSettings(**given)
    assert message in str(caught.value)


def test_neither_the_secret_nor_a_password_is_shown() -> None:
    assert "hidden" not in repr(ReuseSettings(secret=b"hidden", remote="valkey://user:hidden@h:1"))
    with pytest.raises(ConfigError) as caught:
        ReuseSettings(remote="redis://user:hidden@h:1", secret=b"s")
    assert "hidden" not in str(caught.value)
