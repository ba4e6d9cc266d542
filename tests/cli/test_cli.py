"""The command line as a user meets it: output, exit codes, messages."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowserve.cli.targets import weights
from flowserve.core.placements import PLACEMENTS
from flowserve.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

WRONG = """
import flowserve as fs
from pydantic import BaseModel

class Answer(BaseModel):
    text: str

@fs.llm()
def answer(question: str, n: int) -> Answer:
    fs.prompt("{{ question }} {{ nn }}")

@fs.workflow()
def wrong(question: str) -> int:
    first = answer(question, question)
    return answer(first.tekst, 1)

@fs.workflow()
def endless(question: str) -> Answer:
    return fs.loop(lambda a: answer(a.text, 1), answer(question, 1), until=lambda a: a.text == "x")
"""


def flowserve(*arguments: str, cwd: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from flowserve.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, input=stdin, timeout=120, check=False)


def test_help_names_every_command() -> None:
    out = flowserve("--help").stdout
    for command in ("serve", "run", "check", "draw", "ingest", "search", "demo", "bench", "gate", "version"):
        assert command in out


def test_help_names_every_placement() -> None:
    for command in ("serve", "simulate"):
        shown = " ".join(flowserve(command, "--help").stdout.replace("│", " ").split())
        assert "--placement" in shown
        for name in PLACEMENTS:
            assert re.search(rf"\b{name}\b", shown), (command, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--placement", "near"], "priced"),
        (["--compare-placements", "e2,near"], "near"),
        (["--compare-placements", "e2,sal", "--compare", "fcfs,plas"], "--compare-placements; got both"),
        (["--compare-placements", "e2,sal", "--record", "log"], "--record: expected one policy and placement"),
    ],
)
def test_wrong_placements_are_refused_with_what_was_expected(options: list[str], message: str) -> None:
    done = flowserve("simulate", str(EXAMPLES / "workloads" / "sessions.toml"), *options)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_placements_are_compared_in_a_column_each(tmp_path: Path) -> None:
    file, out = tmp_path / "load.toml", tmp_path / "out.json"
    file.write_text('duration_s = 2\n[engine]\ncount = 2\n[[mix]]\nworkflow = "call"\nrate = 5.0\n')
    done = flowserve("simulate", str(file), "--compare-placements", "all", "--json", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == list(PLACEMENTS)
    assert [result["placement"] for result in json.loads(out.read_text())["results"]] == list(PLACEMENTS)


def test_serve_refuses_a_placement_that_is_none() -> None:
    done = flowserve("serve", "--engine", "fake", "--placement", "near", "--port", "0")
    assert done.returncode == 2 and "placement: expected one of autellix, e2" in done.stderr


def test_check_shows_all_errors_of_all_workflows_at_once(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text(WRONG)
    done = flowserve("check", str(file))
    assert done.returncode == 1
    shown = done.stderr
    assert "Traceback" not in shown
    for part in ("'wrong'", "{{ nn }}", "argument 'n' of type int", "tekst", "'endless'", "max_iters"):
        assert part in shown, part
    assert len(shown.splitlines()) < 24


def test_check_says_ok_with_the_version() -> None:
    done = flowserve("check", str(EXAMPLES / "rag.py"))
    assert done.returncode == 0
    assert done.stdout.startswith("rag: ok")


def test_check_names_the_list_whose_order_is_left_to_the_server(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    declared = (EXAMPLES / "rag.py").read_text()
    file.write_text(declared.replace("max_tokens=64", 'max_tokens=64, any_order="passages"'))
    shown = flowserve("check", str(file)).stdout
    assert "order: answer writes 'passages' in the order that shares most with recent prompts" in shown


def test_check_names_the_calls_whose_passages_may_be_pasted() -> None:
    shown = flowserve("check", str(EXAMPLES / "rag_reuse.py")).stdout
    assert "reuse: answer is served exactly by engines that have no store or no gate file for its model" in shown
    assert "reuse:" not in flowserve("check", str(EXAMPLES / "rag.py")).stdout


def test_check_names_the_calls_that_may_end_early(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    declared = (EXAMPLES / "rag.py").read_text()
    exit = 'max_tokens=64, quality="balanced", exit=fs.early_exit(answer="line")'
    file.write_text(declared.replace("max_tokens=64", exit))
    shown = flowserve("check", str(file)).stdout
    assert "exit: answer may end early by rule 'default', so its answer is approximate" in shown


def test_run_prints_the_result_as_json_and_the_nodes_beside_it() -> None:
    target = f"{EXAMPLES / 'branch_and_loop.py'}:essay"
    done = flowserve("run", target, "--input", '{"topic": "tides", "strict": false}', "--engine", "fake")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"text", "score"}
    assert "completed write" in done.stderr


def test_run_reads_its_input_from_stdin_and_files(tmp_path: Path) -> None:
    text = json.dumps({"topic": "tides", "strict": False})
    file = tmp_path / "input.json"
    file.write_text(text)
    target = str(EXAMPLES / "branch_and_loop.py")
    first = flowserve("run", target, "--input", "-", "--engine", "fake", stdin=text)
    second = flowserve("run", target, "--input", f"@{file}", "--engine", "fake")
    assert first.returncode == second.returncode == 0
    assert first.stdout == second.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "no/such/file.py"), 2, "there is no such file"),
        (("run", f"{EXAMPLES / 'rag.py'}:other"), 2, "there is no workflow 'other'; known: rag"),
        (("run", str(EXAMPLES / "rag.py"), "--input", "{"), 2, "expected a JSON object"),
        (("run", str(EXAMPLES / "rag.py"), "--engine", "fake", "--input", '{"q": 1}'), 2, "/question: is required"),
        (
            ("run", str(EXAMPLES / "rag.py"), "--engine", "nope"),
            2,
            "there is no engine 'nope'; known: fake, hf, openai, vllm",
        ),
        (("draw", str(EXAMPLES / "rag.py"), "--format", "gif"), 2, "expected mermaid, svg or json"),
        (("search", "nothing", "x", "--embedder", "hash"), 2, "nothing"),
    ],
)
def test_mistakes_are_one_message_without_a_traceback(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    done = flowserve(*arguments, cwd=tmp_path)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == code


def test_draw_writes_mermaid_svg_and_a_spec_without_code(tmp_path: Path) -> None:
    target = str(EXAMPLES / "map_reduce.py")
    assert flowserve("draw", target).stdout.startswith("flowchart")
    assert flowserve("draw", target, "--format", "svg", "--out", str(tmp_path / "x.svg")).returncode == 0
    assert (tmp_path / "x.svg").read_text().startswith("<svg")
    spec = json.loads(flowserve("draw", target, "--format", "json").stdout)
    assert spec["apiVersion"] == "flowserve/v1"
    assert "def split" not in json.dumps(spec)


def test_what_is_ingested_is_found(tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "tides.md").write_text("The tide follows the moon.")
    (documents / "bread.txt").write_text("Bread needs yeast.")
    common = ("--indexes", str(tmp_path / "indexes"), "--embedder", "hash")
    done = flowserve("ingest", str(documents), "--index", "notes", *common)
    assert done.returncode == 0, done.stderr
    assert "2 documents" in done.stdout
    hits = flowserve("search", "notes", "moon and tide", "-k", "1", "--json", *common)
    assert json.loads(hits.stdout)["document"] == "tides.md"
    hits = flowserve("search", "notes", "moon and tide", "--where", "type=pdf", "--json", *common)
    assert (hits.returncode, hits.stdout) == (0, "")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import sys\nsys.exit(5)", "app.py, line 2: cannot be imported: SystemExit: 5"),
        ("\nimport a_module_that_is_missing", "app.py, line 2: cannot be imported: ModuleNotFoundError"),
        ("x = (", "app.py, line 1: cannot be imported: SyntaxError"),
        ("\0", "app.py: cannot be imported"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_with_the_line(tmp_path: Path, source: str, told: str) -> None:
    (tmp_path / "app.py").write_text(source)
    done = flowserve("check", "app.py", cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "app.py:flow", "--input", "@nothing.json"), "nothing.json"),
        (("run", "app.py:flow", "--input", "@latin.json"), "a file of JSON in UTF-8"),
        (("run", "app.py:flow", "--timeout", "-1"), "timeout_s: expected a number of seconds above 0"),
        (("draw", "app.py:flow", "--out", "no/such/folder.svg"), "No such file or directory: no/such/folder.svg"),
    ],
)
def test_what_cannot_be_read_or_written_is_told_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    (tmp_path / "app.py").write_text("import flowserve as fs\n@fs.workflow()\ndef flow() -> int:\n    return 1\n")
    (tmp_path / "latin.json").write_bytes(b'{"a": "caf\xe9"}')
    engine = ("--engine", "fake") if arguments[0] == "run" else ()
    done = flowserve(*arguments, *engine, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


FAILING = """
import time
import flowserve as fs

@fs.tool
def odd(text: str) -> str:
    raise ValueError("[/bold] " + "a long story " * 20)

@fs.tool(timeout=0.1)
def slow(text: str) -> str:
    time.sleep(60)
    return text

@fs.workflow()
def markup(text: str) -> str:
    return odd(text)

@fs.workflow()
def hangs(text: str) -> str:
    return slow(text)
"""


def test_what_a_failure_says_is_printed_as_it_is_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FAILING)
    done = flowserve("run", "app.py:markup", "--engine", "fake", "--input", '{"text": "x"}', cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("RunFailed node odd failed: tool odd raised ValueError: [/bold] a")


def test_a_run_ends_without_waiting_for_a_tool_that_hangs_in_a_thread(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FAILING)
    before = time.monotonic()
    done = flowserve("run", "app.py:hangs", "--engine", "fake", "--input", '{"text": "x"}', cwd=tmp_path)
    assert done.returncode == 1
    assert "its time was up (timeout=0.1 s)" in done.stderr
    assert time.monotonic() - before < 30


def test_the_environment_gives_the_defaults_of_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSERVE_ENGINE", "fake")
    target = str(EXAMPLES / "branch_and_loop.py")
    done = flowserve("run", target, "--input", '{"topic": "tides", "strict": false}', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("FLOWSERVE_ENGINE", "nope")
    assert "no engine 'nope'" in flowserve("run", target, "--input", "{}", cwd=tmp_path).stderr


@pytest.mark.parametrize("given", ["team-a", "=2", "team-a=two"])
def test_a_weight_that_names_no_tenant_or_no_number_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="--weight: expected TENANT=NUMBER"):
        weights([given])


def test_weights_are_read_in_order() -> None:
    assert weights(["a=2", "b=0.5", "org=x=3"]) == (("a", 2.0), ("b", 0.5), ("org=x", 3.0))
