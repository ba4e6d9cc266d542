"""From what is said of the reuse of passages to the settings of one engine's store. Nothing is started."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from flowserve.assemble import Settings, pool_spec
from flowserve.assemble.engines import make_seats
from flowserve.assemble.reuse import reuse_settings
from flowserve.cachestore.settings import ReuseSettings
from flowserve.cli.targets import reuse
from flowserve.errors import ConfigError
from flowserve.poolspec import EngineSpec, PoolSpec, read


def test_a_table_gives_each_engine_a_folder_of_its_own(tmp_path: Path) -> None:
    table = {"disk": str(tmp_path), "host_bytes": 5, "gates": str(tmp_path), "fast": "sink0"}
    assert reuse_settings("hf", "hf-1", table, b"s") == ReuseSettings(
        host_bytes=5, disk=tmp_path / "hf-1", gates=tmp_path, fast="sink0", secret=b"s"
    )


def test_files_and_options_say_the_same(tmp_path: Path) -> None:
    options = reuse(tmp_path, 7, None, ["balanced=hkvd:0.2"], 0.5)
    spec = pool_spec(Settings(reuse=options))
    file = tmp_path / "pool.toml"
    file.write_text(
        f'[[engine]]\nkind = "hf"\nreuse = {{ disk = "{tmp_path}", host_bytes = 7, balanced = "hkvd:0.2", shadow_share = 0.5 }}\n'
    )
    tables = [one.engines[0].options["reuse"] for one in (spec, read(file))]
    first, second = (reuse_settings("hf", "hf", table, b"") for table in tables)
    assert first == second == ReuseSettings(host_bytes=7, disk=tmp_path / "hf", balanced="hkvd:0.2", shadow_share=0.5)
    assert "reuse" not in pool_spec(Settings()).engines[0].options, "off unless it is asked for"


@pytest.mark.parametrize(
    ("kind", "table", "said"),
    [
        ("hf", {"dsik": "a"}, "engine 'e': reuse: there is no setting 'dsik'; did you mean disk"),
        ("hf", {"secret": "a"}, "no setting 'secret'"),
        ("hf", {"disk": 3}, "engine 'e': reuse.disk: expected a text; got 3"),
        ("hf", {"balanced": "sink0"}, "engine 'e': ReuseSettings.balanced"),
        ("vllm", True, 'expected a table, as reuse = { disk = "..." }; got True'),
    ],
)
def test_what_is_wrong_is_said_with_the_engine_and_the_key(kind: str, table: Any, said: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        reuse_settings(kind, "e", table, b"")
    assert said in str(wrong.value)


@pytest.mark.parametrize("entry", [EngineSpec("fake"), EngineSpec("openai", url=("http://127.0.0.1:1",))])
def test_engines_that_cannot_have_a_store_refuse_it_by_name(entry: EngineSpec) -> None:
    with pytest.raises(ConfigError, match=f"an engine that can have a store, hf or vllm; got {entry.kind}"):
        make_seats(PoolSpec((EngineSpec(entry.kind, url=entry.url, options={"reuse": {}}),)))


def test_a_class_that_has_no_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="--reuse-policy: expected balanced=POLICY or fast=POLICY; got 'exact=full'"):
        reuse(None, None, None, ["exact=full"])


def test_options_beside_a_pool_file_are_refused_and_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reuse: expected it in pool\.toml"):
        pool_spec(Settings(pool=Path("pool.toml"), reuse={"host_bytes": 1}))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="the vllm engine needs vLLM")
def test_a_vllm_engine_gets_its_store_and_refuses_what_it_cannot_run(tmp_path: Path) -> None:
    table = {"disk": str(tmp_path), "balanced": "hkvd:0.2"}
    [seat] = make_seats(PoolSpec((EngineSpec(kind="vllm", model="m", options={"reuse": table}),)))
    engine: Any = seat.engine
    assert engine.settings.reuse == ReuseSettings(disk=tmp_path / engine.id, balanced="hkvd:0.2")
    with pytest.raises(ConfigError, match="expected kv_events off beside it"):
        make_seats(PoolSpec((EngineSpec(kind="vllm", options={"reuse": table, "kv_events": True}),)))
