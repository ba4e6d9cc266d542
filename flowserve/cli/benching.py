"""`flowserve bench ...`: run a measurement, show a short table, write the record."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowserve.bench import report
from flowserve.cli.targets import say
from flowserve.errors import ConfigError


def core(out: Path | None, quick: bool) -> None:
    from flowserve.bench import core as bench

    results = bench.run(quick=quick)
    report.write("flowserve bench core", results, bench.SEED, out)


def retrieval(
    data: Path, out: Path | None, embedder: str, url: str | None, limit: int | None, kinds: Sequence[str]
) -> None:
    from flowserve.bench import index_kinds
    from flowserve.bench import retrieval as bench

    chosen = index_kinds.ALL if list(kinds) == [ALL_KINDS] else kinds
    results = bench.run(_questions(data), embedder=embedder, url=url, limit=limit, kinds=chosen, say=say)
    report.write("flowserve bench retrieval", results, 0, out)


def indexes(out: Path | None, vectors: int, dimension: int, queries: int, kinds: Sequence[str]) -> None:
    from flowserve.bench import index_kinds as bench

    results = bench.run(vectors, dimension, queries, kinds, 10, say)
    report.write("flowserve bench indexes", results, bench.SEED, out)


def reuse_on_vllm(out: Path | None, model: str, policies: Sequence[str], chunks: int, tokens: int, rounds: int) -> None:
    from flowserve.bench.reuse import on_vllm as bench

    results = bench.run(model, policies or bench.POLICIES, chunks, tokens, rounds, say)
    shown = ("ttft_ms_p50", "speedup_vs_full", "speedup_vs_prefix", "stall_ms_p50", "stall_vs_full", "pasted")
    report.show("reuse on vLLM", {case["policy"]: {name: case[name] for name in shown} for case in results["cases"]})
    report.write("flowserve bench reuse --engine vllm", results, bench.SEED, out)


def demo(out: Path | None, url: str, limit: int | None) -> None:
    from flowserve.bench import demo as bench

    results = bench.run(url, limit)
    for item in results["wrong"]:
        say(f"wrong: {item['question']}\n  expected {item['expected']}\n  came     {item['came']}")
    report.write("flowserve bench demo", results, 0, out)


def arithmetic(out: Path | None, limit: int) -> None:
    from flowserve.bench import arithmetic as bench

    report.write("flowserve bench arithmetic", bench.run(limit), bench.SEED, out)


def pool(out: Path | None, parts: Sequence[str], model: Path | None, size: str, quick: bool) -> None:
    from flowserve.bench import pool as bench

    results = bench.run(model, size, quick, parts or bench.PARTS, say)
    report.write("flowserve bench pool", results, bench.SEED, out)


def reuse(
    out: Path | None,
    svg: Path | None,
    engine: str,
    model: str,
    policies: Sequence[str],
    tiers: Sequence[str],
    chunks: int,
    sizes: Sequence[int],
    rounds: int,
    data: Path | None,
) -> None:
    if engine == "vllm":
        if len(sizes) > 1 or tiers or svg is not None or data is not None:
            raise ConfigError("bench reuse --engine vllm: expected one --tokens, and no --tier, --plot or --data")
        reuse_on_vllm(out, model, policies, chunks, sizes[0], rounds)
        return
    if engine != "hf":
        raise ConfigError(f"bench reuse --engine: expected hf or vllm; got '{engine}'")
    from flowserve.assemble import model_folder
    from flowserve.bench.reuse import timing as bench
    from flowserve.bench.reuse.picture import picture

    shapes = [bench.Shape(chunks, tokens) for tokens in sizes]
    path = model if model.partition(":")[0] == "random" else model_folder(model)
    results: dict[str, Any] = {"model": model} | bench.run(
        path, policies or bench.POLICIES, tiers or bench.TIERS, shapes, rounds, data, say
    )
    for case in results["cases"]:
        lost = "" if case["kl_mean"] is None else f", KL {case['kl_mean']:.4f}, agrees {case['agreement']:.0%}"
        say(
            f"{case['chunks']}x{case['chunk_tokens']} {case['tier'] or ''} {case['policy']}: {case['ttft_ms_p50']:,.0f} ms, "
            f"x{case['speedup_vs_full']:.2f} of full prefill, x{case['speedup_vs_prefix']:.2f} of prefix caching{lost}"
        )
    if svg is not None:
        svg.write_text(picture(f"Passages reused: {model}, {engine}", results["cases"]), encoding="utf-8")
    report.write("flowserve bench reuse", results, bench.SEED, out)


def fidelity(out: Path | None, picture: Path | None, rate: float, seconds: float, size: str, log: Path | None) -> None:
    from flowserve.bench import fidelity as bench
    from flowserve.sim import fidelity as simulated
    from flowserve.sim.plot import curves

    seen = bench.live(rate, seconds, size, say)
    if log is not None:
        log.write_text("\n".join(seen.lines) + "\n", encoding="utf-8")
    found = simulated.compare(seen.lines, bench.CALIBRATION)
    report.show("latency of workflows", found.figures["workflows"])
    named = [{"name": name, **row} for name, row in found.figures["workflows"].items()]
    figures = {**found.figures, "other_programs_share": seen.others_share, "workflows": named}
    report.write("flowserve bench fidelity", figures, bench.SEED, out)
    if picture is not None:
        title = "Workflows on vLLM (CPU): measured and simulated"
        picture.write_text(curves(title, found.latencies), encoding="utf-8")


def overhead(out: Path | None, quick: bool) -> None:
    from flowserve.bench import overhead as bench

    results = bench.run(quick)
    for case in results["cases"]:
        say(
            f"{case['shape']}: "
            + ", ".join(f"{name} {us:.1f}" for name, us in case["us_per_node"].items())
            + " us per node"
        )
    report.write("flowserve bench overhead", results, bench.SEED, out)


def workflows(out: Path | None, svg: Path | None, names: Sequence[str], **options: Any) -> None:
    from flowserve.bench.workflows import compare
    from flowserve.bench.workflows.picture import picture

    results = compare.run(names, **options, say=say)
    if svg is not None:
        where = "GPU" if results["gpu"] else "CPU"
        title = f"FlowServe against LangGraph on vLLM ({where}): latency of workflows, LangGraph / FlowServe"
        svg.write_text(picture(results["workloads"], title), encoding="utf-8")
    report.write("flowserve bench workflows", results, compare.SEED, out)


def speculation(out: Path | None, plot: Path | None, **options: Any) -> None:
    from flowserve.bench.speculation import compare
    from flowserve.bench.speculation.picture import picture

    results = compare.run(compare.Options(**options), say)
    for kind, columns in compare.shown(results["cases"]).items():
        report.show(f"{kind}: a passage looked up every few tokens, against step by step", columns)
    if plot is not None:
        title = "One request: step by step, and with passages guessed and verified"
        plot.write_text(picture(results["timelines"], title), encoding="utf-8")
    report.write("flowserve bench speculation", results, compare.SEED, out)


def load(out: Path | None, url: str, clients: int, seconds: float) -> None:
    from flowserve.bench import load as bench

    report.write("flowserve bench load", bench.run(url, clients, seconds), 0, out)


def predictors(out: Path | None, traces: Sequence[Path], logs: Sequence[Path]) -> None:
    from flowserve.bench import predictors as bench

    results = bench.run(traces, logs, say)
    for case in results["cases"]:
        report.show(
            f"{case['recording']}: {case['calls']:,} calls of {case['mean_tokens']:,} tokens", case["predictors"]
        )
    report.write("flowserve bench predictors", results, 0, out)


def eviction(out: Path | None, picture: Path | None, data: Path) -> None:
    from flowserve.bench import eviction as bench
    from flowserve.bench.eviction_plot import panels

    results = bench.run(data, say)
    shown = {
        policy: {f"{row['name']} {row['capacity']:.0%}": row["byte_hit_rate"][policy] for row in results["traces"]}
        for policy in results["traces"][0]["byte_hit_rate"]
    }
    report.show("share of asked bytes that was held", shown)
    report.write("flowserve bench eviction", results, bench.SEED, out)
    if picture is not None:
        picture.write_text(panels("Byte-weighted hit rate over capacity", results["traces"]), encoding="utf-8")


def reasoning(
    out: Path | None,
    plot: Path | None,
    bank: Path,
    model: str | None,
    samples: int,
    engines: int,
    programs: int,
    seeds: int,
    targets: Sequence[float],
    seed: int,
    jobs: int,
) -> None:
    from flowserve.bench.reasoning import compare
    from flowserve.bench.reasoning.picture import picture

    options = compare.Options(bank, model, samples, engines, programs, seeds, tuple(targets), seed, jobs)
    results = compare.measure(options, say)
    for target in targets:
        title = f"votes over {samples} chains, p90 within {target:g} times that without load"
        shown = [case for case in results["cases"] if case["target"] == target]
        report.show(title, {case["policy"]: {name: case[name] for name in compare.SHOWN} for case in shown})
    if plot is not None:
        first = [case for case in results["cases"] if case["target"] == targets[0]]
        title = f"Votes over {samples} recorded chains on {engines} simulated engine{'s' if engines > 1 else ''}"
        plot.write_text(picture(title, first), encoding="utf-8")
    report.write("flowserve bench reasoning", results, seed, out)


ALL_RULES = "all"
ALL_KINDS = "all"


def stopping(
    out: Path | None,
    bank: Path,
    samples: Path | None,
    rule: str,
    sample_rule: str,
    certificates: Path | None,
    template: str,
    tasks: Sequence[str],
    unseen: str | None,
    picture: Path | None,
) -> None:
    from flowserve.bench import stopping as bench
    from flowserve.bench.stopping_plot import pareto
    from flowserve.cli.gating import classes_of
    from flowserve.core.stopping.chains import DEFAULT_RULE

    asked = bench.candidate_of(DEFAULT_RULE if rule == ALL_RULES else rule)
    if certificates is None:
        name, choose = str(asked) if asked.args else asked.rule, bench.always(asked)
    elif rule == DEFAULT_RULE:
        name, choose = "certified", bench.certified(certificates, template, classes_of(tasks))
    else:
        raise ConfigError(f"--certificates say by which rule chains are stopped; leave out --rule {rule}")
    recordings = bench.read(bank)
    results = bench.run(recordings, name, choose)
    if rule == ALL_RULES:
        results["rules"] = bench.run_all(recordings)
        for each in results["rules"]:
            say(bench.told(each["rule"], each))
    for each in results["by_model_set"]:
        say(bench.told(f"{each['model']} {each['dataset']} {each['rule']}", each))
    if unseen is not None:
        results["unseen"] = bench.run_unseen(recordings, unseen)
        say(bench.told(results["unseen"]["rule"], results["unseen"]))
    if samples is not None:
        results["samples"] = bench.run_samples(samples, bench.candidate_of(sample_rule))
        results["samples_mean"] = results["samples"]["mean"]
    if picture is not None:
        title = f"Stopping chains of {bank.name}: accuracy against tokens"
        picture.write_text(pareto(title, bench.pareto(recordings)), encoding="utf-8")
    report.write("flowserve bench stopping", results, bench.SEED, out)


def _questions(data: Path) -> Path:
    """The file itself, or the MuSiQue file of a data folder."""
    if data.is_dir():
        data = data / "rag" / "musique.dev.jsonl"
    if not data.is_file():
        raise ConfigError(f"--data: expected a JSON-lines file of questions; there is none at {data}")
    return data
