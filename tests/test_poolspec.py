"""A pool as a file: what is read, and that every mistake is named with its place."""

from pathlib import Path

import pytest

from flowserve.errors import ConfigError
from flowserve.poolspec import EngineSpec, PoolSpec, read, unknown_option

GOOD = """
[[engine]]
kind = "vllm"
model = "small-model"
replicas = 2
roles = "small"
args = { max_num_seqs = 8 }
cores = ["0", "1"]

[[engine]]
kind = "openai"
url = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
roles = ["large", "judge"]
dialect = "vllm"

[[engine]]
kind = "vllm"
model = "small-model"
id = "spare"

[pool]
stall_s = 5.0
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "pool.toml"
    file.write_text(text)
    return file


def test_entries_become_engines_with_names_and_roles(tmp_path: Path) -> None:
    spec = read(written(tmp_path, GOOD))
    assert spec.ids() == [["vllm-0", "vllm-1"], ["openai-0", "openai-1"], ["spare"]]
    assert [entry.roles for entry in spec.engines] == [("small",), ("large", "judge"), ()]
    assert [spec.is_default(entry) for entry in spec.engines] == [True, False, True], "the first, and who has its model"
    assert spec.engines[0].options == {"args": {"max_num_seqs": 8}, "cores": ["0", "1"]}
    assert spec.pool == {"stall_s": 5.0}


def test_entries_of_one_kind_are_numbered_on_and_a_lone_one_is_not() -> None:
    two = PoolSpec((EngineSpec("hf", "a"), EngineSpec("hf", "b"), EngineSpec("fake")))
    assert two.ids() == [["hf-0"], ["hf-1"], ["fake"]]


def test_who_says_default_is_alone_in_it() -> None:
    spec = PoolSpec((EngineSpec("hf", "a"), EngineSpec("hf", "b", default=True), EngineSpec("hf", "a", default=False)))
    assert [spec.is_default(entry) for entry in spec.engines] == [False, True, False]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engine = 3", "at least one [[engine]] table"),
        ("", "at least one [[engine]] table"),
        ("[[engine]\n", "expected TOML"),
        (
            "[[engine]]\nkind = 'hf'\n[pools]\na = 1",
            "the tables [[engine]], [pool], [tenant.NAME] and [price.MODEL]; got pools",
        ),
        ("[[engine]]\nmodel = 'x'", "engine 1: expected 'kind'; got model"),
        (
            "[[engine]]\nkind = 'hf'\n[[engine]]\nkind = 'vllm'\nreplicas = 0",
            "engine 2: replicas: expected a number from 1",
        ),
        ("[[engine]]\nkind = 'hf'\nreplicas = true", "replicas: expected a number"),
        ("[[engine]]\nkind = 'openai'\nurl = [1]", "url: expected a text or a list of texts"),
        ("[[engine]]\nkind = 'openai'\nurl = 'http://x'\nreplicas = 2", "either 'url' or 'replicas'; got both"),
        ("[[engine]]\nkind = 'hf'\ndefault = 'yes'", "default: expected true or false; got 'yes'"),
        ("[[engine]]\nkind = 'hf'\nmodel = 7", "model: expected a text; got 7"),
        ("pool = 3\n[[engine]]\nkind = 'hf'", "expected [pool] to be a table"),
    ],
)
def test_mistakes_name_the_file_the_entry_and_the_key(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as wrong:
        read(file)
    assert said in str(wrong.value)
    assert str(wrong.value).startswith(str(file))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "none.toml")


def test_an_unknown_setting_is_answered_with_near_ones() -> None:
    assert "did you mean stall_s" in str(unknown_option("[pool]", "stal_s", ["stall_s", "probe_s"]))
    assert "known: probe_s, stall_s" in str(unknown_option("[pool]", "zzz", ["stall_s", "probe_s"]))
