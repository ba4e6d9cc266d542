"""From settings to seats: which engines, what they are told, and what is refused. Nothing is started."""

import os
from pathlib import Path
from typing import Any

import pytest

from flowserve.assemble import Settings, checked, make_runtime, pool_spec
from flowserve.assemble.engines import make_seats
from flowserve.errors import ConfigError, UnknownName
from flowserve.poolspec import EngineSpec, PoolSpec

URLS = ("http://127.0.0.1:1", "http://127.0.0.1:2/v1")


def seats(*entries: EngineSpec) -> list[Any]:
    return make_seats(PoolSpec(entries))


def test_an_engine_stands_for_each_address() -> None:
    made = seats(EngineSpec("openai", url=URLS, roles=("large",), options={"window": 7, "quiet": True}))
    assert [seat.engine.id for seat in made] == ["openai-0", "openai-1"]
    assert all(seat.roles == ("large",) and seat.default for seat in made)


def test_settings_describe_the_same_pools_as_files(tmp_path: Path) -> None:
    spec = pool_spec(Settings(engine="openai", url=URLS))
    assert spec.engines == (EngineSpec("openai", url=URLS),)
    spec = pool_spec(Settings(engine="vllm", model="m", replicas=2, engine_args={"max_num_seqs": 4}))
    assert spec.engines == (EngineSpec("vllm", "m", replicas=2, options={"args": {"max_num_seqs": 4}}),)
    file = tmp_path / "pool.toml"
    file.write_text("[[engine]]\nkind = 'fake'\nwindow = 3\n[pool]\nstall_s = 3\npreempt = false\n")
    runtime = make_runtime(Settings(pool=file))
    assert runtime.config.pool.stall_s == 3 and runtime.config.pool.preempt is False
    assert [row["window"] for row in runtime.engines()] == [3]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (EngineSpec("openai"), "expected the address of a server"),
        (EngineSpec("openai", url=("http://x",), options={"windw": 3}), "did you mean window"),
        (EngineSpec("openai", url=("http://x",), options={"api_key": "k"}), "no setting 'api_key'"),
        (
            EngineSpec("openai", url=("http://x",), options={"api_key_env": "NOT_SET_HERE"}),
            "NOT_SET_HERE, which is not set",
        ),
        (EngineSpec("fake", options={"replise": "x"}), "did you mean replies"),
        (EngineSpec("fake", options={"role": "small"}), "did you mean roles"),
        (EngineSpec("fake", options={"cores": "0"}), "no setting 'cores'"),
    ],
)
def test_wrong_entries_are_refused_before_anything_starts(entry: EngineSpec, said: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        seats(entry)
    assert said in str(wrong.value)


def test_an_unknown_kind_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="fake, hf, openai, vllm"):
        seats(EngineSpec("triton"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(engine="hf", engine_args={"a": 1}), "only vllm takes them"),
        (Settings(engine="openai", url=URLS, replicas=2), "either replicas or addresses"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: Settings, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        pool_spec(settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [("stal_s = 3", "did you mean stall_s"), ("stall_s = 'x'", "expected a number"), ("preempt = 1", "true or false")],
)
def test_wrong_pool_settings_of_a_file_are_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(f"[[engine]]\nkind = 'fake'\n[pool]\n{text}\n")
    with pytest.raises(ConfigError, match=said):
        make_runtime(Settings(pool=file))


def test_the_environment_and_choices_may_name_addresses_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSERVE_URL", " ".join(URLS))
    assert checked({}).url == URLS
    assert checked({"url": "http://x"}).url == ("http://x",)
    assert checked({"pool": "pool.toml"}).pool == Path("pool.toml")


@pytest.mark.vllm
class TestVLLM:
    """Needs the package: its presence and kind are looked at."""

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("vllm", reason="vLLM is not installed")

    def test_engines_on_a_cpu_share_no_core(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for allowed, count, expected in (
            ({0, 1}, 2, ["0", "1"]),
            ({0, 1}, 1, ["1"]),
            (set(range(9)), 2, ["1,2,3,4", "5,6,7,8"]),
            ({3}, 1, ["3"]),
            ({0, 1}, 3, ["0", "1", "0"]),
        ):
            monkeypatch.setattr(os, "sched_getaffinity", lambda pid, found=allowed: found)
            made = seats(EngineSpec("vllm", "m", replicas=count))
            assert [seat.engine.settings.cores for seat in made] == expected

    def test_cores_and_gpus_may_be_given_for_each_replica(self) -> None:
        options = {"cores": ["0", "1"], "gpus": ["2", "3"], "args": {"dtype": "float32"}}
        made = seats(EngineSpec("vllm", "m", replicas=2, options=options))
        assert [seat.engine.settings.cores for seat in made] == ["0", "1"]
        assert [seat.engine.settings.environment["CUDA_VISIBLE_DEVICES"] for seat in made] == ["2", "3"]
        assert made[0].engine.settings.args == {"dtype": "float32"}
        with pytest.raises(ConfigError, match="one for each of 2 replicas; got 1"):
            seats(EngineSpec("vllm", "m", replicas=2, options={"cores": "0"}))

    def test_our_own_models_keep_their_names(self) -> None:
        [seat] = seats(EngineSpec("vllm", "demo"))
        assert seat.engine.settings.own_name == "demo"
        assert Path(seat.engine.settings.model).is_dir()
