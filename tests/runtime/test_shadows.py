"""Calls that run on after they were stopped under a certificate: what they cost, who sees them, and what ends a certificate."""

import asyncio
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import flowserve as fs
from flowserve.engines.fake import FakeEngine, Sure
from flowserve.errors import ConfigError, EngineError
from flowserve.reasoning.certificates import Absent, Certificate, Subject
from flowserve.reasoning.certificates import Certificates as CertificateFolder
from flowserve.reasoning.tallies import path_of
from flowserve.runtime.certified import Folder, template_of
from flowserve.runtime.run import Run
from flowserve.runtime.runner import Runtime

THOUGHTS = "\n\n".join(" ".join(f"w{number}x{word}" for word in range(20)) for number in range(30))
EXIT = fs.early_exit(answer="number", trial="\nSo the answer is", skip=0, rule="certified", task="tides")
SURE = Sure(" 42.\n", 0.99)
NOW = datetime.now(UTC)


def certificate(**changes: Any) -> Certificate:
    """Of a rule that stops at once, and of which half of the recorded chains were stopped, 2 % of all differing at most."""
    values: dict[str, Any] = {field.name: 0.0 for field in fields(Certificate)} | {
        "subject": Subject("fake", template_of(EXIT), "tides"),
        "rule": "deer",
        "args": {"apart": 16.0},
        "num_problems": 900,
        "num_trajectories": 900,
        "stopped": 450,
        "harmed": 0,
        "rescued": 0,
        "differing": 0,
        "differing_high": 0.02,
        "margin": 0.01,
        "bank": "",
        "created": NOW,
        "expires": NOW + timedelta(days=1),
        "revoked": None,
    }
    return Certificate(**values | changes)


async def solved(engine: FakeEngine, folder: Path, share: float, times: int = 1) -> tuple[Runtime, list[Run]]:
    @fs.llm(max_tokens=2_000, exit=EXIT, quality="balanced")
    def solve(question: str) -> str:
        fs.prompt("Think about {{ question }}.")

    @fs.workflow()
    def flow(question: str) -> str:
        return solve(question)

    runtime = Runtime([engine], certificates=Folder(folder, share))
    await runtime.start()
    runs = []
    for number in range(times):
        run = await runtime.submit(flow.program, {"question": f"tides {number}"})
        await run.wait()
        runs.append(run)
        await settled(runtime)
    return runtime, runs


async def settled(runtime: Runtime) -> None:
    """Until no shadow is at work."""
    async with asyncio.timeout(20):
        while runtime._driver.shadows._busy:
            await asyncio.sleep(0.001)


def engine(ending: str, **options: Any) -> FakeEngine:
    return FakeEngine({"solve": THOUGHTS + ending, "trial": SURE, "shadow": THOUGHTS + ending}, **options)


async def test_a_stopped_call_runs_on_where_it_was_stopped_and_nobody_sees_or_pays_it(tmp_path: Path) -> None:
    CertificateFolder(tmp_path).write(certificate())
    fake = engine(" So it is 42.", token_delay_s=0.0005)
    runtime, [run] = await solved(fake, tmp_path, 1.0)
    await runtime.aclose()
    assert run.outcome().endswith("So the answer is 42")
    [main] = [call for call in fake.calls if call.meta["node"] == "solve"]
    [shadow] = [call for call in fake.calls if call.meta["node"] == "solve/shadow"]
    decode = fake.tokenizer.decode
    assert shadow.segments == main.segments and shadow.priority > main.priority + 1000
    assert THOUGHTS.startswith(decode(shadow.resumed)) and 0 < len(shadow.resumed) < len(THOUGHTS.split())
    assert run.outcome().startswith(decode(shadow.resumed))
    verdicts, tokens = runtime.shadows()
    assert dict(verdicts) == {"agreed": 1} and tokens > 500
    [record] = run.records.values()
    assert record.tokens_out < 200
    assert path_of(tmp_path, certificate()).read_text() == "agreed\n"


async def test_no_call_runs_on_without_a_share_or_a_certificate(tmp_path: Path) -> None:
    fake = engine(" So it is 42.")
    runtime, _ = await solved(fake, tmp_path, 1.0)
    await runtime.aclose()
    CertificateFolder(tmp_path).write(certificate())
    other, _ = await solved(fake, tmp_path, 0.0)
    await other.aclose()
    assert not runtime.shadows()[0] and not other.shadows()[0]


async def test_chains_that_end_in_another_answer_revoke_the_certificate_and_later_calls_run_to_their_end(
    tmp_path: Path,
) -> None:
    CertificateFolder(tmp_path).write(certificate())
    fake = engine(" So it is 7.", token_delay_s=0.0001)
    runtime, runs = await solved(fake, tmp_path, 1.0, times=8)
    await runtime.aclose()
    told = CertificateFolder(tmp_path).lookup(certificate().subject, NOW)
    assert isinstance(told, Absent) and "more differing answers than 4.00 % of stopped requests" in told.reason
    differed = runtime.shadows()[0]["differed"]
    assert 1 < differed < 8
    assert [run.outcome().endswith("7.") for run in runs] == [False] * differed + [True] * (8 - differed)


async def test_what_was_shown_before_a_restart_counts_after_it_and_a_new_certificate_begins_anew(
    tmp_path: Path,
) -> None:
    CertificateFolder(tmp_path).write(certificate())
    counts = []
    for _ in range(2):
        runtime, _ = await solved(engine(" So it is 7.", token_delay_s=0.0001), tmp_path, 1.0)
        await runtime.aclose()
        counts.append(path_of(tmp_path, certificate()).read_text().count("differed\n"))
    assert counts == [1, 2]
    assert not path_of(tmp_path, certificate(created=NOW + timedelta(days=2))).exists()


async def test_a_chain_that_names_no_answer_is_asked_at_its_end(tmp_path: Path) -> None:
    CertificateFolder(tmp_path).write(certificate())
    words = "\n\n".join(" ".join("abcdefghij"[i % 10] * 3 for i in range(20)) for _ in range(30))
    fake = FakeEngine({"solve": words, "trial": SURE, "shadow": words}, token_delay_s=0.0005)
    runtime, _ = await solved(fake, tmp_path, 1.0)
    await runtime.aclose()
    assert runtime.shadows()[0] == {"agreed": 1}
    assert [call.meta["node"] for call in fake.calls][-1] == "solve/shadow/trial"


async def test_a_shadow_that_fails_says_nothing_of_the_certificate(tmp_path: Path) -> None:
    CertificateFolder(tmp_path).write(certificate())
    fake = FakeEngine({"solve": THOUGHTS, "trial": SURE, "shadow": EngineError("boom")}, token_delay_s=0.0005)
    runtime, [run] = await solved(fake, tmp_path, 1.0)
    await runtime.aclose()
    assert run.outcome().endswith("42") and runtime.shadows()[0] == {"failed": 1}
    assert not path_of(tmp_path, certificate()).exists()


async def test_closing_does_not_wait_for_shadows(tmp_path: Path) -> None:
    CertificateFolder(tmp_path).write(certificate())
    fake = engine(" So it is 42.", token_delay_s=0.001)
    runtime = Runtime([fake], certificates=Folder(tmp_path, 1.0))
    await runtime.start()

    @fs.llm(max_tokens=2_000, exit=EXIT, quality="balanced")
    def solve(question: str) -> str:
        fs.prompt("Think about {{ question }}.")

    @fs.workflow()
    def flow(question: str) -> str:
        return solve(question)

    run = await runtime.submit(flow.program, {"question": "tides"})
    await run.wait()
    await runtime.aclose()
    assert not runtime.shadows()[0] and fake.status().running == 0


def test_a_share_is_a_share(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 to 1; got 7"):
        Folder(tmp_path, 7)
