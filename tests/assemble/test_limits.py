"""Limits and prices of a pool's file and of the command line."""

from pathlib import Path

import pytest

from flowserve.assemble import Settings, make_runtime
from flowserve.assemble.limits import with_limits
from flowserve.cli.targets import limits, prices
from flowserve.config import Price, RuntimeConfig, TenantLimits
from flowserve.errors import ConfigError
from flowserve.poolspec import read

GOOD = """
[[engine]]
kind = "fake"

[tenant.team-a]
weight = 2
live_runs = 8
queued_runs = 16

[tenant."*"]
runs_per_minute = 60

[price.large]
input = 2.5
output = 10
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "pool.toml"
    file.write_text(text)
    return file


def test_a_file_sets_limits_weights_and_prices(tmp_path: Path) -> None:
    config = make_runtime(Settings(pool=written(tmp_path, GOOD))).config
    assert config.tenant_weights == (("team-a", 2.0),)
    assert config.tenant_limits == (
        ("team-a", TenantLimits(live_runs=8, queued_runs=16)),
        ("*", TenantLimits(runs_per_minute=60)),
    )
    assert config.prices == (("large", Price(2.5, 10)),)


def test_what_the_command_line_says_of_a_tenant_or_model_replaces_that_of_the_file(tmp_path: Path) -> None:
    given = RuntimeConfig(
        tenant_limits=limits(["team-a.live_runs=1", "*.tokens_per_minute=1e3"]),
        tenant_weights=(("team-a", 5.0),),
        prices=prices(["large=1/2/0.5", "small=0/0"]),
    )
    config = with_limits(given, read(written(tmp_path, GOOD)))
    assert config.tenant_limits == (
        ("team-a", TenantLimits(live_runs=1)),
        ("*", TenantLimits(tokens_per_minute=1000.0)),
    )
    assert config.tenant_weights == (("team-a", 5.0),)
    assert config.prices == (("large", Price(1, 2, 0.5)), ("small", Price(0, 0)))


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ("[tenant.a]\nlive_run = 1", r"\[tenant.a\]: there is no setting 'live_run'; did you mean live_runs"),
        ("[tenant.a]\nlive_runs = 0", r"\[tenant.a\]: TenantLimits.live_runs: expected a whole number of at least 1"),
        ("[tenant.a]\nweight = 'much'", r"\[tenant.a\]: weight: expected a number above 0; got 'much'"),
        ("[price.m]\ninput = 1", r"\[price.m\]: expected input and output; got input"),
        ("[price.m]\ninput = 1\noutput = -1", r"\[price.m\]: Price.output: expected a finite number of at least 0"),
        ("tenant = 5", r"expected tables \[tenant.NAME\]; got tenant = 5"),
        ("[price]\nm = 5", r"expected \[price.m\] to be a table; got 5"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place(tmp_path: Path, tables: str, told: str) -> None:
    text = (
        f"{tables}\n[[engine]]\nkind = 'fake'\n"
        if "=" in tables.split("\n")[0]
        else f"[[engine]]\nkind = 'fake'\n{tables}"
    )
    with pytest.raises(ConfigError, match=told):
        make_runtime(Settings(pool=written(tmp_path, text)))


@pytest.mark.parametrize("given", ["team-a", "live_runs=3", "team-a.live_runs=many", "team-a.live_runs="])
def test_a_limit_that_names_no_tenant_or_no_number_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"--limit: expected TENANT\.NAME=NUMBER, such as team-a\.live_runs=8; got"):
        limits([given])


def test_a_limit_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--limit a: there is no setting 'lives'"):
        limits(["a.lives=3"])


@pytest.mark.parametrize("given", ["large", "large=1", "large=1/2/3/4", "large=1/x", "=1/2"])
def test_a_price_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="--price: expected MODEL=INPUT/OUTPUT"):
        prices([given])


def test_names_may_have_dots_and_equals_signs() -> None:
    assert limits(["org.x.live_runs=3"]) == (("org.x", TenantLimits(live_runs=3)),)
    assert prices(["a=b=1/2"]) == (("a=b", Price(1, 2)),)
