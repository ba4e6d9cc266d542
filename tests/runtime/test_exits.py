"""Calls that end early, on the scripted engine: what is forked, what readers see, what is counted, and what ends with what."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import flowserve as fs
from flowserve.core import commands as c
from flowserve.core.log import replay
from flowserve.engines.base import Call
from flowserve.engines.fake import FakeEngine, Sure
from flowserve.engines.words import WordTokenizer
from flowserve.errors import EngineError
from flowserve.graphs.plan import ExitSpec
from flowserve.reasoning.certificates import Certificate, Subject
from flowserve.reasoning.certificates import Certificates as CertificateFolder
from flowserve.runtime.certified import Folder, template_of
from flowserve.runtime.records import SubmitOptions
from flowserve.runtime.run import Run
from flowserve.runtime.runner import Runtime

PARAGRAPHS = [" ".join(f"w{number}x{word}" for word in range(20)) for number in range(30)]
CHAIN = "\n\n".join(PARAGRAPHS)
TRIAL = "\nSo the answer is"
EXIT = fs.early_exit(answer="number", trial=TRIAL, skip=0)
UNSURE = Sure(" 41.\n", 0.98)
SURE = Sure(" 42.\n", 0.9999)


def flow_with(exit: ExitSpec | None, **settings: Any) -> fs.Workflow[Any, str]:
    quality = "exact" if exit is None else "balanced"

    @fs.llm(max_tokens=2_000, exit=exit, quality=quality, reuse="exact", **settings)
    def solve(question: str) -> str:
        fs.prompt("Think about {{ question }}.")

    @fs.workflow()
    def flow(question: str) -> str:
        return solve(question)

    return flow


async def begun(engine: FakeEngine, exit: ExitSpec | None = EXIT, **options: Any) -> tuple[Runtime, Run]:
    runtime = Runtime([engine], **options)
    await runtime.start()
    return runtime, await runtime.submit(flow_with(exit).program, {"question": "tides"})


async def ended(engine: FakeEngine, exit: ExitSpec | None = EXIT, **options: Any) -> Run:
    runtime, run = await begun(engine, exit, **options)
    await run.wait()
    await runtime.aclose()
    return run


def shown(run: Run) -> str:
    return "".join(event.data["text"] for event in run.log.events if event.type == "node.delta")


def calls(engine: FakeEngine, part: str) -> list[Call]:
    return [call for call in engine.calls if call.meta["node"] == part]


def ids_of(engine: FakeEngine, text: str) -> tuple[int, ...]:
    return tuple(engine.tokenizer.encode(text))


def counted(run: Run) -> int:
    [record] = run.records.values()
    return record.tokens_out + record.trial_tokens


async def test_a_rule_that_never_fires_changes_nothing_and_costs_its_trials_only() -> None:
    plain, watched = FakeEngine({"solve": CHAIN}), FakeEngine({"solve": CHAIN, "trial": UNSURE})
    before, run = await ended(plain, None), await ended(watched)
    assert run.outcome() == before.outcome() == CHAIN and shown(run) == CHAIN
    [one], [other] = calls(plain, "solve"), calls(watched, "solve")
    own: dict[str, Any] = {"id": "", "meta": {}, "session": None, "priority": 0, "timeout_s": None}
    assert replace(one, **own) == replace(other, **own)
    [record] = run.records.values()
    trials = calls(watched, "solve/trial")
    assert 5 < len(trials) <= len(CHAIN.split()) // 64
    assert record.tokens_out == len(ids_of(plain, CHAIN)) and record.exited is None
    assert counted(run) == watched.status().tokens_out_total


async def test_trials_continue_the_call_token_by_token_at_the_ends_of_paragraphs_64_tokens_apart() -> None:
    engine = FakeEngine({"solve": CHAIN, "trial": UNSURE})
    await ended(engine)
    [main], written, last = calls(engine, "solve"), ids_of(engine, CHAIN), 0
    for number, trial in enumerate(calls(engine, "solve/trial"), 1):
        prompt, cue = trial.prompt_ids, ids_of(engine, TRIAL)
        position = len(prompt) - len(main.prompt_ids) - len(cue)
        assert prompt == main.prompt_ids + written[:position] + cue
        assert engine.tokenizer.decode(written[:position]).endswith("\n\n")
        assert position >= last + 64
        last = position
        assert trial.id == f"{main.id}/trial-{number}" and trial.priority == main.priority - 1
        assert (trial.sampling.max_tokens, trial.sampling.temperature, trial.sampling.logprobs) == (20, 0.0, 0)


async def test_what_trials_write_is_seen_by_nobody() -> None:
    engine = FakeEngine({"solve": CHAIN, "trial": Sure(" 4711.\n", 0.5)})
    run = await ended(engine)
    assert "4711" not in shown(run) and "4711" not in run.outcome()
    assert all("4711" not in call.prompt_text for call in engine.calls)


async def test_a_sure_trial_ends_the_call_with_its_answer() -> None:
    engine = FakeEngine({"solve": CHAIN, "trial": [UNSURE, SURE]}, token_delay_s=0.001)
    run = await ended(engine)
    thoughts, said = run.outcome().split(TRIAL)
    assert CHAIN.startswith(thoughts) and len(thoughts) < len(CHAIN) / 2 and said == " 42"
    assert shown(run) == run.outcome()
    [record] = run.records.values()
    assert record.exited is not None and record.exited["did"] == "stopped"
    assert "confidence 0.99990 > 0.999" in record.exited["why"]
    assert run.snapshot().exits == (record.exited,)
    [main] = calls(engine, "solve")
    assert main.id in engine.aborted and counted(run) == engine.status().tokens_out_total


async def test_a_read_out_answer_is_written_behind_the_chain_and_streamed() -> None:
    exit = replace(EXIT, deliver="readout")
    engine = FakeEngine({"solve": CHAIN, "trial": SURE, "readout": " forty-two."}, token_delay_s=0.001)
    run = await ended(engine, exit)
    thoughts, said = run.outcome().split(TRIAL)
    assert CHAIN.startswith(thoughts) and said == " forty-two." and shown(run) == run.outcome()
    [main], [readout] = calls(engine, "solve"), calls(engine, "solve/readout")
    written, cue = ids_of(engine, thoughts), ids_of(engine, TRIAL)
    assert readout.prompt_ids == main.prompt_ids + written + cue
    assert readout.sampling == replace(main.sampling, max_tokens=2_000 - len(written))
    assert counted(run) == engine.status().tokens_out_total


async def test_a_reasoning_model_is_left_alone_behind_its_thoughts_and_closes_them_when_it_is_stopped() -> None:
    exit = replace(EXIT, think=("<think>", "</think>"))
    thoughts, answer = "\n\n".join(PARAGRAPHS[:5]), "</think>\n\n" + "\n\n".join(PARAGRAPHS[5:])
    engine = FakeEngine({"solve": thoughts + answer, "trial": UNSURE})
    assert (await ended(engine, exit)).outcome() == thoughts + answer
    assert len(calls(engine, "solve/trial")) == 1
    engine = FakeEngine({"solve": thoughts + answer, "trial": SURE}, token_delay_s=0.001)
    assert (await ended(engine, exit)).outcome().endswith(f"</think>{TRIAL} 42")


async def test_a_trial_that_has_to_close_its_thoughts_and_does_not_is_never_enough() -> None:
    exit = replace(EXIT, think=("<think>", "</think>"), must_close=True)
    open_ended, closing = Sure(" 42. Or wait", 1.0), Sure(" 42.</think>", 1.0)
    engine = FakeEngine({"solve": CHAIN, "trial": open_ended})
    assert (await ended(engine, exit)).outcome() == CHAIN
    engine = FakeEngine({"solve": CHAIN, "trial": closing}, token_delay_s=0.001)
    assert (await ended(engine, exit)).outcome().endswith(f"</think>{TRIAL} 42")


async def test_a_trial_that_is_at_work_when_the_call_ends_is_killed_and_counted() -> None:
    engine = FakeEngine({"solve": CHAIN, "trial": Sure(" x" * 99, 1.0)}, delays=lambda call: 0.0)
    slow = FakeEngine({"solve": CHAIN, "trial": "never"}, delays={"trial": float("inf")})
    run = await ended(slow)
    assert run.outcome() == CHAIN
    [trial] = calls(slow, "solve/trial")
    assert trial.id in slow.aborted and slow.status().running == 0
    assert counted(run) == slow.status().tokens_out_total
    run = await ended(engine)
    assert counted(run) == engine.status().tokens_out_total


async def test_cancelling_the_run_ends_the_call_and_its_trial_in_one_step() -> None:
    engine = FakeEngine({"solve": CHAIN, "trial": "never"}, delays={"trial": float("inf")}, token_delay_s=0.001)
    runtime, run = await begun(engine)
    while not calls(engine, "solve/trial"):
        await asyncio.sleep(0)
    written = engine.status().tokens_out_total
    run.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert engine.status().running == 0 and engine.status().tokens_out_total <= written + 1
    assert sorted(engine.aborted) == sorted(call.id for call in engine.calls)
    await runtime.aclose()


def without(*missing: str) -> Callable[[dict[str, Any]], FakeEngine]:
    def make(replies: dict[str, Any]) -> FakeEngine:
        engine = FakeEngine(replies)
        lacks: dict[str, Any] = dict.fromkeys(missing, False)
        engine._capabilities = replace(engine.capabilities, **lacks)
        return engine

    return make


@pytest.mark.parametrize("makes", [without(), without("thinking_budget")], ids=["ignores it", "has none"])
async def test_a_budget_is_kept_on_engines_that_ignore_it_or_have_none(makes: Callable[..., FakeEngine]) -> None:
    exit = replace(EXIT, think=("<think>", "</think>"), budget=50)
    engine = makes({"solve": CHAIN, "readout": "It is 42.", "trial": UNSURE})
    run = await ended(engine, exit)
    [main], [readout] = calls(engine, "solve"), calls(engine, "solve/readout")
    passed = 16 if engine.capabilities.thinking_budget else 0
    assert main.sampling.thinking_budget == (50 if passed else None)
    assert readout.sampling.thinking_budget is None
    thoughts, answer = run.outcome().split("</think>\n\n")
    assert len(ids_of(engine, thoughts)) == 50 + passed and answer == "It is 42."
    [record] = run.records.values()
    assert record.exited == {"node": "solve", "did": "budget", "why": "50 tokens of thought"}
    assert counted(run) == engine.status().tokens_out_total


async def test_thoughts_that_end_within_their_budget_are_not_cut() -> None:
    exit = replace(EXIT, think=("<think>", "</think>"), budget=50)
    text = f"{PARAGRAPHS[0]}</think>\n\n{CHAIN}"
    engine = FakeEngine({"solve": text})
    assert (await ended(engine, exit)).outcome() == text


@pytest.mark.parametrize("missing", ["logprobs", "tokens"])
async def test_an_engine_that_cannot_answer_trials_writes_to_the_end_and_this_is_said_once(
    missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = without(missing)({"solve": CHAIN, "trial": SURE})
    runtime, run = await begun(engine)
    again = await runtime.submit(flow_with(EXIT).program, {"question": "tides"})
    with caplog.at_level(logging.WARNING):
        assert await run.result() == await again.result() == CHAIN
    await runtime.aclose()
    assert [call.meta["node"] for call in engine.calls] == ["solve", "solve"]
    [told] = [event for event in run.log.events if event.type == "node.exit"]
    assert told.data["did"] == "unavailable" and f"lacks {missing}" in told.data["why"]
    assert len([record for record in caplog.records if "lacks" in record.message]) <= 1


async def test_a_trial_that_fails_is_an_answer_that_cannot_be_used() -> None:
    engine = FakeEngine({"solve": CHAIN, "trial": [EngineError("no room"), SURE]}, token_delay_s=0.001)
    assert (await ended(engine)).outcome().endswith(f"{TRIAL} 42")


async def test_a_call_that_goes_on_elsewhere_is_forked_there() -> None:
    replies = {"solve": CHAIN, "trial": UNSURE}
    words = WordTokenizer()  # it decodes what it has encoded, so both need the same
    first = FakeEngine(replies, id="a", token_delay_s=0.001, tokenizer=words)
    second = FakeEngine(replies, id="b", tokenizer=words)
    runtime = Runtime([first, second])
    await runtime.start()
    run = await runtime.submit(flow_with(EXIT).program, {"question": "tides"})
    while len(calls(first, "solve/trial")) + len(calls(second, "solve/trial")) < 2:
        await asyncio.sleep(0.001)
    here, there = (first, second) if first.calls else (second, first)
    here.startable = False
    here.crash()
    assert await run.result() == CHAIN
    await runtime.aclose()
    [resumed] = calls(there, "solve")
    assert resumed.resumed and calls(there, "solve/trial")
    for trial in calls(there, "solve/trial"):
        assert len(trial.prompt_ids) > len(resumed.prompt_ids) + len(resumed.resumed) - 64


class Certified:
    """A certificate for one rule."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    def rule(self, model: str, prompt: str, task: str) -> tuple[str, tuple[tuple[str, float], ...]] | None:
        self.asked.append((model, prompt, task))
        return ("default", (("threshold", 0.95), ("apart", 16.0)))

    def watch(self, request: str, model: str, template: str, task: str) -> None:
        return None


async def test_another_rule_than_the_conservative_one_needs_a_certificate() -> None:
    exit = replace(EXIT, rule="certified", task="tides")
    replies = {"solve": CHAIN, "trial": UNSURE}
    certified = Certified()
    assert (await ended(FakeEngine(replies), exit)).outcome() == CHAIN
    run = await ended(FakeEngine(replies, token_delay_s=0.001), exit, certificates=certified)
    assert run.outcome().endswith(f"{TRIAL} 41")
    [(model, prompt, task)] = certified.asked
    assert (model, len(prompt), task) == ("fake", 16, "tides")


class Wrong(Certified):
    """Names a rule that nobody knows, or parameters that it has not."""

    def __init__(self, name: str, *args: tuple[str, float]) -> None:
        super().__init__()
        self.told = (name, args)

    def rule(self, model: str, prompt: str, task: str) -> tuple[str, tuple[tuple[str, float], ...]] | None:
        return self.told

    def watch(self, request: str, model: str, template: str, task: str) -> None:
        return None


@pytest.mark.parametrize("certificates", [Wrong("nobody's"), Wrong("default", ("boldness", 1.0))], ids=repr)
async def test_a_certificate_that_makes_no_sense_allows_nothing_more(certificates: Wrong) -> None:
    engine = FakeEngine({"solve": CHAIN, "trial": UNSURE})
    assert (await ended(engine, replace(EXIT, rule="certified"), certificates=certificates)).outcome() == CHAIN


def test_certificates_name_the_usual_wording_and_tell_others_apart() -> None:
    usual = fs.early_exit(answer="boxed")
    assert template_of(usual) == template_of(replace(usual, deliver="readout", budget=9, task="x")) == "boxed"
    others = [EXIT, replace(EXIT, trial="?"), replace(EXIT, answer="choice"), replace(EXIT, skip=1)]
    assert len({template_of(exit) for exit in others}) == 4


async def test_a_folder_of_certificates_is_read(tmp_path: Path) -> None:
    exit = replace(EXIT, rule="certified", task="tides")
    subject = Subject("fake", template_of(exit), "tides")
    now = datetime.now(UTC)
    CertificateFolder(tmp_path).write(certificate(subject, now, now + timedelta(days=1)))
    replies = {"solve": CHAIN, "trial": UNSURE}
    run = await ended(FakeEngine(replies, token_delay_s=0.001), exit, certificates=Folder(tmp_path))
    assert run.outcome().endswith(f"{TRIAL} 41")
    CertificateFolder(tmp_path).write(certificate(subject, now - timedelta(days=2), now - timedelta(days=1)))
    assert (await ended(FakeEngine(replies), exit, certificates=Folder(tmp_path))).outcome() == CHAIN


def certificate(subject: Subject, created: datetime, expires: datetime) -> Certificate:
    figures: dict[str, Any] = {field.name: 0.0 for field in fields(Certificate)} | {
        "num_problems": 900,
        "num_trajectories": 900,
    }
    counts = dict.fromkeys(("stopped", "harmed", "rescued", "differing"), 0)
    known: dict[str, Any] = {"rule": "deer", "args": {"apart": 16.0}, "bank": "", "revoked": None, "created": created}
    return Certificate(**{**figures, **counts, **known, "subject": subject, "expires": expires})


async def test_a_recorded_run_replays_to_the_same_trials_and_the_same_end() -> None:
    lines: list[str] = []
    engine = FakeEngine({"solve": CHAIN, "trial": [UNSURE, SURE]}, token_delay_s=0.001)
    await ended(engine, log_line=lines.append)
    commands = [command for step in replay(lines) for command in step]
    assert [type(x) for x in commands if isinstance(x, c.Fork | c.Exit)] == [c.Fork, c.Fork, c.Exit]
    assert isinstance(commands[-1], c.Complete)


async def test_what_trials_wrote_is_charged_to_the_run() -> None:
    engine = FakeEngine({"solve": CHAIN, "trial": UNSURE})
    run = await ended(engine)
    snapshot = run.snapshot()
    assert snapshot.spent is not None and snapshot.trial_tokens > 0
    assert snapshot.spent.output == snapshot.tokens_out + snapshot.trial_tokens


async def test_a_run_without_readers_is_streamed_by_the_engine_all_the_same() -> None:
    engine = FakeEngine({"solve": CHAIN, "trial": UNSURE})
    runtime = Runtime([engine])
    await runtime.start()
    options = SubmitOptions(stream=False)
    run = await runtime.submit(flow_with(EXIT).program, {"question": "tides"}, options)
    await run.wait()
    await runtime.aclose()
    assert all(call.stream for call in engine.calls)
