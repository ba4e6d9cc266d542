"""Run the examples of frameworks whose pins clash, each in an environment of its own, against one server of the demo model.

`.venv/bin/python .ci/frameworks.py [NAME ...]`, in the repository. What an example prints of a workflow must be what the server itself
answers to the same question.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = {
    "llamaindex": ("llamaindex_rag.py", ["demo"], {"workflow"}, {"query engine", "found"}),
    "agents": ("agents_sdk.py", [], {"responses", "chat"}, set[str]()),
    "dspy": ("dspy_qa.py", [], {"workflow"}, set[str]()),
}
"""Extra -> (example, its further arguments, what is the workflow's answer, what else is printed)."""
QUESTION = "Which town does Rusu govern?"
DOCUMENTS = [
    {"id": "1", "text": "Rusu governs the town of Velol."},
    {"id": "2", "text": "The town of Velol is known for its lamps."},
]


@contextmanager
def server(folder: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(ROOT / ".venv/bin/flowserve"), "serve", "examples/rag.py", "--indexes", folder, "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            if not any(line.startswith("serving") for line in process.stderr):
                raise SystemExit("the server did not start")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def post(url: str, body: object) -> dict[str, object]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, object] = json.load(answer)
        return found


def said(name: str, url: str, folder: Path) -> dict[str, str]:
    """What the example prints, by what it says that it is."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin/python")
    subprocess.run([python, "-m", "pip", "install", "-q", f"{ROOT}[{name}]"], check=True)
    example, more, _, _ = EXAMPLES[name]
    done = subprocess.run(
        [python, str(ROOT / "examples/clients" / example), url, *more],
        cwd=folder,
        env={**os.environ, "DSPY_CACHEDIR": str(folder), "LLAMA_INDEX_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{example} failed:\n{done.stdout}{done.stderr[-4000:]}")
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)


def main(names: list[str]) -> int:
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, server(f"{folder}/indexes") as url:
        post(f"{url}/indexes/handbook/documents", {"documents": DOCUMENTS})
        run = post(f"{url}/workflows/rag/runs", {"input": {"question": QUESTION}})
        for name in names or list(EXAMPLES):
            _, _, answers, others = EXAMPLES[name]
            found = said(name, url, Path(folder) / name)
            good = found.keys() == answers | others and all(found[what] == run["result"] for what in answers)
            print(f"{name}: {'as expected' if good else 'WRONG'}: {found}, the server itself: {run['result']!r}")
            wrong += not good
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
