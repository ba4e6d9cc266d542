"""`flowserve pool` against a running server, and engines by options and by file."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowserve.cli.targets import engine_args
from flowserve.errors import ConfigError

COMMAND = [sys.executable, "-c", "from flowserve.cli import main; main()"]
POOL = """
[[engine]]
kind = "fake"
id = "small"
replies = "from small"
roles = ["tiny"]

[[engine]]
kind = "fake"
model = "huge"
id = "large"
replies = "from large"
roles = ["big"]
"""
APP = """
import flowserve as fs

@fs.llm(model="big")
def judge(text: str) -> str:
    fs.prompt("{{ text }}")

@fs.workflow()
def flow(text: str) -> str:
    return judge(text)
"""


def flowserve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False, env=env)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """(application, pool)."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "pool.toml").write_text(POOL)
    return str(tmp_path / "app.py"), str(tmp_path / "pool.toml")


@pytest.fixture
def server(files: tuple[str, str]) -> Iterator[str]:
    """The address of a server on that pool, without an application."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--pool", files[1], "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("serving models at "):
            yield line.split()[3]
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_nodes_run_on_the_engine_of_their_role(files: tuple[str, str]) -> None:
    done = flowserve("run", files[0], "--pool", files[1], "--input", '{"text": "x"}')
    assert (done.returncode, json.loads(done.stdout)) == (0, "from large"), done.stderr
    done = flowserve("run", files[0], "--input", '{"text": "x"}', FLOWSERVE_POOL=files[1])
    assert json.loads(done.stdout) == "from large"


def test_the_pool_of_a_running_server_is_shown_drained_and_had_back(server: str) -> None:
    shown = flowserve("pool", "status", "--url", server, COLUMNS="200")
    assert shown.returncode == 0, shown.stderr
    lines = {line.split()[0]: line for line in shown.stdout.splitlines() if line.strip()}
    assert "@tiny" in lines["small"] and "up" in lines["small"]
    assert "huge, @big" in lines["large"]
    drained = flowserve("pool", "drain", "small", "--url", server)
    assert drained.stdout.startswith("small: 0 calls")
    rows = json.loads(flowserve("pool", "status", "--json", "--url", server).stdout)
    assert {row["id"]: row["state"] for row in rows} == {"small": "closed", "large": "up"}
    assert "small: drained" in flowserve("pool", "status", "--url", server).stdout
    assert flowserve("pool", "resume", "small", "--url", server).returncode == 0
    wrong = flowserve("pool", "drain", "nobody", "--url", server)
    assert wrong.returncode == 2
    assert "there is no engine 'nobody'; known: large, small" in wrong.stderr


def test_without_a_server_the_message_says_what_was_tried() -> None:
    done = flowserve("pool", "status", "--url", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "http://127.0.0.1:9/v1/pool: expected a running FlowServe server" in done.stderr
    assert "Traceback" not in done.stderr


def test_engine_arguments_are_toml_values_or_text() -> None:
    given = ["max_num_seqs=8", "--enable-lora=true", "dtype=float32", 'speculative_config={method = "ngram"}', "x=a=b"]
    assert engine_args(given) == {
        "max_num_seqs": 8,
        "enable_lora": True,
        "dtype": "float32",
        "speculative_config": {"method": "ngram"},
        "x": "a=b",
    }
    for wrong in ("max_num_seqs", "=3", "a b=1"):
        with pytest.raises(ConfigError, match="expected name=value"):
            engine_args([wrong])


def test_engine_arguments_for_another_engine_are_refused() -> None:
    done = flowserve("serve", "--engine", "hf", "--engine-arg", "a=1")
    assert done.returncode == 2
    assert "only vllm takes them" in done.stderr
