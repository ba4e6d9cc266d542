"""The command line. Results go to stdout, progress and messages to stderr.

Exit codes: 0 ok, 1 the run or the check failed, 2 wrong usage. Each command imports what it needs when it
is called, so that `flowserve --help` is quick. The commands' bodies stand in the files beside this one.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flowserve.assemble import Settings

app = typer.Typer(
    name="flowserve",
    help="The application server for LLM workflows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure FlowServe on this machine; --json OUT writes one object.", no_args_is_help=True)
app.add_typer(bench, name="bench")
pool_app = typer.Typer(help="The engines of a running server.", no_args_is_help=True)
app.add_typer(pool_app, name="pool")
gate = typer.Typer(help="What may be used, judged by records.", no_args_is_help=True)
app.add_typer(gate, name="gate")

Engine = Annotated[
    str,
    typer.Option(
        help="hf (embedded transformers), vllm, openai (servers by --url) or fake (scripted answers)",
        envvar="FLOWSERVE_ENGINE",
    ),
]
Model = Annotated[
    str, typer.Option(help="folder or hub name; demo, demo-arithmetic: our own", envvar="FLOWSERVE_MODEL")
]
Replicas = Annotated[int, typer.Option(help="engines of that model; vllm: a process each", min=1)]
Url = Annotated[
    list[str] | None,
    typer.Option("--url", help="openai: address of a server; again for each further one", envvar="FLOWSERVE_URL"),
]
EngineArg = Annotated[
    list[str] | None, typer.Option("--engine-arg", help="vllm: any of its engine arguments, as name=value")
]
PoolFile = Annotated[
    Path | None, typer.Option("--pool", help="TOML file that describes the engines", envvar="FLOWSERVE_POOL")
]
Indexes = Annotated[Path, typer.Option(help="folder of the indexes", envvar="FLOWSERVE_INDEXES")]
Embedder = Annotated[
    str, typer.Option(help="minilm, hash, or a sentence-transformers name", envvar="FLOWSERVE_EMBEDDER")
]
Json = Annotated[Path | None, typer.Option("--json", help="write the result object to this file")]
INDEXES = Path(".flowserve/indexes")
POLICY = "critical_path"
PREDICTOR = "mean"
SHADOW_SHARE = 0.01
PLACEMENT = "marginal"
PLACEMENTS = "priced, marginal, round_robin, least_calls, least_work, sticky, e2, sal, scls, autellix or objectives"


@app.command()
def serve(
    file: Annotated[
        Path | None, typer.Argument(help="Python file that declares workflows; without one, only models are served")
    ] = None,
    engine: Engine = "hf",
    model: Model = "demo",
    replicas: Replicas = 1,
    url: Url = None,
    engine_arg: EngineArg = None,
    pool: PoolFile = None,
    indexes: Indexes = INDEXES,
    embedder: Embedder = "minilm",
    private_indexes: Annotated[
        bool, typer.Option("--private-indexes", help="tenants have indexes of their own, beside those ingested here")
    ] = False,
    reranker: Annotated[
        Path | None, typer.Option(help="folder of a cross-encoder, for searches with rerank=; docs/retrieval.md")
    ] = None,
    host: Annotated[str, typer.Option(help="address; anything but loopback needs FLOWSERVE_API_KEYS")] = "127.0.0.1",
    port: int = 8400,
    policy: Annotated[str, typer.Option(help="who goes first: critical_path, fcfs, ...; docs/scheduling.md")] = POLICY,
    predictor: Annotated[
        str, typer.Option(help="who says how long answers will be: mean, quantile, ...; docs/scheduling.md")
    ] = PREDICTOR,
    placement: Annotated[str, typer.Option(help=f"which engine a call goes to: {PLACEMENTS}")] = PLACEMENT,
    weight: Annotated[list[str] | None, typer.Option(help="a tenant's share, TENANT=NUMBER; repeatable")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="what a tenant may take, TENANT.NAME=NUMBER, as team-a.live_runs=8; docs/scheduling.md"),
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option(help="of a million tokens, MODEL=INPUT/OUTPUT or MODEL=INPUT/OUTPUT/CACHED")
    ] = None,
    drop_hopeless: Annotated[
        bool, typer.Option("--drop-hopeless", help="end runs before calls that would end long after their deadline")
    ] = False,
    certificates: Annotated[
        Path | None, typer.Option(help="folder of what gate stopping has written; docs/early-exit.md")
    ] = None,
    shadow_share: Annotated[
        float, typer.Option(help="of calls stopped by a certified rule, so many run on unseen", min=0.0, max=1.0)
    ] = SHADOW_SHARE,
    reuse_store: Annotated[
        Path | None, typer.Option(help="folder for the KV of passages, found again after a restart; docs/cachestore.md")
    ] = None,
    reuse_bytes: Annotated[int | None, typer.Option(help="memory for the KV of passages", min=0)] = None,
    reuse_gates: Annotated[Path | None, typer.Option(help="folder of gate files; without, nothing is pasted")] = None,
    reuse_policy: Annotated[
        list[str] | None, typer.Option(help="CLASS=POLICY, as balanced=first_k:16; repeatable")
    ] = None,
    reuse_shadow_share: Annotated[
        float | None,
        typer.Option(
            help="of calls with pasted passages, so many are prefilled in full as well; 0.01", min=0.0, max=1.0
        ),
    ] = None,
    passes: Annotated[bool, typer.Option(help="run what the passes make of a workflow; see draw --passes")] = True,
    insecure: Annotated[bool, typer.Option(help="allow another address without keys")] = False,
    record: Annotated[Path | None, typer.Option(help="write the scheduler's events here, for replay")] = None,
    learn: Annotated[Path | None, typer.Option(help="begin with what a log of --record teaches")] = None,
) -> None:
    """Serve the workflows of FILE over REST and as OpenAI models, on one engine or a pool of them."""
    from flowserve.cli import serving
    from flowserve.cli.targets import reuse

    settings = _settings(
        engine,
        model,
        indexes,
        embedder,
        policy,
        replicas,
        url,
        engine_arg,
        pool,
        weight,
        passes,
        predictor,
        limit,
        price,
        drop_hopeless,
        placement,
        certificates,
        shadow_share,
        reuse(reuse_store, reuse_bytes, reuse_gates, reuse_policy or [], reuse_shadow_share),
        private_indexes,
        reranker,
    )
    serving.serve(file, settings, host, port, insecure, record, learn)


@app.command()
def run(
    target: Annotated[str, typer.Argument(help="FILE:WORKFLOW; the name may be left out where there is one")],
    input: Annotated[str, typer.Option(help="arguments as a JSON object, @FILE, or - for stdin")] = "{}",
    engine: Engine = "hf",
    model: Model = "demo",
    url: Url = None,
    engine_arg: EngineArg = None,
    pool: PoolFile = None,
    indexes: Indexes = INDEXES,
    embedder: Embedder = "minilm",
    seed: Annotated[int | None, typer.Option(help="seed of every sampled node")] = None,
    timeout: Annotated[float | None, typer.Option(help="seconds for the whole run")] = None,
) -> None:
    """Run a workflow once: progress of its nodes on stderr, the result as JSON on stdout."""
    from flowserve.cli import running

    settings = _settings(engine, model, indexes, embedder, url=url, engine_arg=engine_arg, pool=pool)
    raise typer.Exit(running.run(target, input, settings, seed, timeout))


@app.command()
def check(file: Annotated[Path, typer.Argument(help="Python file that declares workflows")]) -> None:
    """Compile every workflow of FILE: all errors at once, then hints, and what the passes will change."""
    from flowserve.cli import checking

    raise typer.Exit(checking.check(file))


@app.command()
def draw(
    target: Annotated[str, typer.Argument(help="FILE:WORKFLOW; the name may be left out where there is one")],
    format: Annotated[str, typer.Option(help="mermaid, svg or json")] = "mermaid",
    out: Annotated[Path | None, typer.Option(help="write here instead of stdout")] = None,
    passes: Annotated[bool, typer.Option("--passes", help="before and after the passes, and what they did")] = False,
) -> None:
    """Draw a workflow's graph."""
    from flowserve.cli import checking

    text = checking.drawn(target, format, passes)
    if out is None:
        print(text)
    else:
        out.write_text(text, encoding="utf-8")


@app.command()
def ingest(
    path: Annotated[Path, typer.Argument(help="file or folder: text, Markdown, HTML, PDF")],
    index: Annotated[str, typer.Option(help="name of the index; made when new")],
    indexes: Indexes = INDEXES,
    embedder: Embedder = "minilm",
    kind: Annotated[
        str | None, typer.Option(help="exact, ivf, hnsw, pq, bm25 or hybrid, e.g. ivf:nprobe=32; else as it is")
    ] = None,
) -> None:
    """Add documents to an index; what is there already is replaced, what is unchanged is left alone."""
    from flowserve.cli import indexing

    indexing.ingest(path, index, _settings("fake", "", indexes, embedder), kind)


@app.command()
def search(
    index: str,
    query: str,
    k: Annotated[int, typer.Option("-k", help="hits")] = 5,
    indexes: Indexes = INDEXES,
    embedder: Embedder = "minilm",
    json_lines: Annotated[bool, typer.Option("--json", help="one JSON object per hit")] = False,
    where: Annotated[list[str] | None, typer.Option(help="name=value that passages must have; may be repeated")] = None,
) -> None:
    """Search an index."""
    from flowserve.cli import indexing

    indexing.search(index, query, k, _settings("fake", "", indexes, embedder), json_lines, where or ())


@app.command()
def demo(
    model: Model = "demo",
    port: int = 8400,
    once: Annotated[bool, typer.Option(help="answer one question and end")] = False,
    question: Annotated[str | None, typer.Option(help="instead of the prepared one")] = None,
) -> None:
    """Ingest the sample documents, start the server, ask a question, keep serving."""
    from flowserve.cli import demonstration

    raise typer.Exit(demonstration.demo(model, port, once, question))


@app.command("simulate")
def simulate_(
    workload: Annotated[
        Path | None, typer.Argument(help="workload file (TOML or JSON), or a trace with --trace")
    ] = None,
    engines: Annotated[int | None, typer.Option(help="instead of the workload's number", min=1)] = None,
    policy: Annotated[str | None, typer.Option(help="instead of the workload's")] = None,
    compare: Annotated[str | None, typer.Option(help="several policies, as a,b,c: one column each")] = None,
    predictor: Annotated[str | None, typer.Option(help="of lengths, instead of the workload's")] = None,
    placement: Annotated[str | None, typer.Option(help=f"instead of the workload's: {PLACEMENTS}")] = None,
    compare_placements: Annotated[
        str | None, typer.Option(help="several placements, as a,b,c, or all: one column each")
    ] = None,
    trace: Annotated[
        str | None, typer.Option(help="WORKLOAD is a trace: mooncake, azure, or log (of --record)")
    ] = None,
    seed: int = 0,
    json: Json = None,
    plot: Annotated[Path | None, typer.Option(help="write curves of latency here, as SVG")] = None,
    record: Annotated[Path | None, typer.Option(help="write the scheduler's events here, for replay")] = None,
    learn: Annotated[Path | None, typer.Option(help="begin with what a log of --record teaches")] = None,
    check: Annotated[
        int | None, typer.Option(help="instead: so many random runs with failures, every step checked", min=1)
    ] = None,
    jobs: Annotated[int, typer.Option(help="processes for --check", min=1)] = 1,
) -> None:
    """A workload through the live scheduler on engines, tools and clients that are models; the same seed, the same bytes."""
    from flowserve.cli import simulating

    if check is not None:
        raise typer.Exit(simulating.check(check, seed, jobs))
    policies = compare.split(",") if compare is not None else [policy] if policy is not None else []
    placements = simulating.placements(placement, compare_placements)
    simulating.run(workload, trace, engines, policies, predictor, learn, placements, seed, json, plot, record)


Server = Annotated[str, typer.Option("--url", help="a running server")]
HERE = "http://127.0.0.1:8400"


@app.command()
def explain(
    run: Annotated[str, typer.Argument(help="id of a run, or last, or slowest")],
    log: Annotated[Path, typer.Option(help="what `flowserve serve --record` or `simulate --record` wrote")],
    json: Json = None,
    svg: Annotated[Path | None, typer.Option(help="write a picture of the run to this file")] = None,
    changes: Annotated[bool, typer.Option(help="simulate what one change would give")] = True,
) -> None:
    """Where a recorded run's time went: critical path, waiting, prefill, decode, tools, slack; what one change would give."""
    from flowserve.cli import explaining

    explaining.explain(run, log, json, svg, changes)


@pool_app.command("status")
def pool_status(url: Server = HERE, json_rows: Annotated[bool, typer.Option("--json", help="as JSON")] = False) -> None:
    """How every engine is: state, load, memory, cache hits, pace, and what happened to it."""
    from flowserve.cli import pooling

    pooling.status(url, json_rows)


@pool_app.command("drain")
def pool_drain(
    engine: str,
    replace: Annotated[bool, typer.Option(help="start it anew when it is empty; else it is closed")] = False,
    url: Server = HERE,
) -> None:
    """Give an engine no more calls; what it has ends there or moves, then it ends."""
    from flowserve.cli import pooling

    pooling.drain(engine, replace, url)


@pool_app.command("resume")
def pool_resume(engine: str, url: Server = HERE) -> None:
    """Have a drained engine back."""
    from flowserve.cli import pooling

    pooling.resume(engine, url)


@gate.command("stopping")
def gate_stopping(
    bank: Annotated[Path, typer.Option(help="recorded chains: a file of JSON lines, packed or not")],
    out: Annotated[Path, typer.Option(help="folder of the certificates")],
    rule: Annotated[
        list[str] | None, typer.Option(help="judge this rule; several share the error. docs/certificates.md")
    ] = None,
    risk: Annotated[float, typer.Option(help="net harm that is allowed, in percentage points")] = 1.0,
    confidence: Annotated[float, typer.Option(help="that it is not greater")] = 0.95,
    template: Annotated[str, typer.Option(help="name of the prompt by which answers were forced")] = "boxed",
    task: Annotated[list[str] | None, typer.Option(help="judge sets as one class of tasks: CLASS=SET,SET")] = None,
    days: Annotated[int, typer.Option(help="how long certificates hold", min=1, max=3650)] = 90,
    json_rows: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Certify, for each recorded model and class of tasks, how its chains may be stopped, or refuse it; 1 if all are refused."""
    from flowserve.cli import gating

    raise typer.Exit(gating.stopping(bank, out, rule or [], risk, confidence, template, task or [], days, json_rows))


@gate.command("reuse")
def gate_reuse(
    out: Annotated[Path, typer.Option(help="folder of the gate files")],
    cases: Annotated[
        list[Path] | None, typer.Option(help="measured cases of a model and a policy: JSON lines; repeatable")
    ] = None,
    model: Annotated[str | None, typer.Option(help="measure this one on --data: folder or hub name, or demo")] = None,
    data: Annotated[Path | None, typer.Option(help="questions with answers and passages: JSON lines")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="to be measured, as first_k:16; repeatable")] = None,
    limit: Annotated[int | None, typer.Option(help="only the first questions", min=1)] = None,
    score: Annotated[str, typer.Option(help="f1 or exact")] = "f1",
    loss: Annotated[float, typer.Option(help="of score, that is allowed in the mean")] = 0.02,
    confidence: Annotated[float, typer.Option(help="that no limit is broken")] = 0.95,
    kl: Annotated[float, typer.Option(help="nats from which a first token is far from that of full prefill")] = 1.0,
    far: Annotated[float, typer.Option(help="share of cases that may be far")] = 0.1,
    differing: Annotated[float, typer.Option(help="share of cases that may have another likeliest first token")] = 0.1,
    full: Annotated[float, typer.Option(help="score that full prefill must reach")] = 0.3,
    days: Annotated[int, typer.Option(help="how long gates hold", min=1, max=3650)] = 90,
    json_rows: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Open the gate of each model and policy, measured now or before, or refuse it and shut an open one; 1 if all are refused."""
    from flowserve.cachestore.gates import Thresholds
    from flowserve.cli import gating_reuse

    limits = Thresholds(loss, round(1 - confidence, 12), kl, far, differing, full)
    files = gating_reuse.cases_of(cases or [], model, data, policy or [], limit, out)
    raise typer.Exit(gating_reuse.reuse(files, out, score, limits, days, json_rows))


@app.command()
def version() -> None:
    """Print the version."""
    from flowserve import __version__

    print(__version__)


@bench.command("core")
def bench_core(json: Json = None, quick: Annotated[bool, typer.Option(help="fewer sizes and repeats")] = False) -> None:
    """Microseconds per event and bytes per live node of the scheduler."""
    from flowserve.cli import benching

    benching.core(json, quick)


@bench.command("retrieval")
def bench_retrieval(
    data: Annotated[Path, typer.Option(help="JSON lines with question, answers, passages", envvar="FLOWSERVE_DATA")],
    json: Json = None,
    embedder: Embedder = "minilm",
    url: Annotated[str | None, typer.Option(help="also ask this running server and compare the hits")] = None,
    limit: Annotated[int | None, typer.Option(help="only the first so many questions")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="also this kind of index on the same passages; may be repeated; or `all`")
    ] = None,
) -> None:
    """Recall@k of passages that contain an answer, embedding and search throughput, kinds of indexes side by side."""
    from flowserve.cli import benching

    benching.retrieval(data, json, embedder, url, limit, kind or ())


@bench.command("indexes")
def bench_indexes(
    json: Json = None,
    vectors: Annotated[int, typer.Option(min=100, help="synthetic vectors, in clusters")] = 20_000,
    dimension: Annotated[int, typer.Option(min=8)] = 384,
    queries: Annotated[int, typer.Option(min=1)] = 200,
    kind: Annotated[list[str] | None, typer.Option(help="may be repeated; else all that go by vectors")] = None,
) -> None:
    """Recall of what exact search finds, throughput, stages and building time of each kind of index."""
    from flowserve.cli import benching

    benching.indexes(json, vectors, dimension, queries, kind or ())


@bench.command("demo")
def bench_demo(
    json: Json = None,
    url: Annotated[str, typer.Option(help="a running `flowserve demo`")] = "http://127.0.0.1:8400",
    limit: Annotated[int | None, typer.Option(help="only the first so many questions")] = None,
) -> None:
    """The held-back questions of the demo language through a running server: accuracy by kind."""
    from flowserve.cli import benching

    benching.demo(json, url, limit)


@bench.command("arithmetic")
def bench_arithmetic(
    json: Json = None, limit: Annotated[int, typer.Option(min=1, help="so many problems")] = 100
) -> None:
    """Votes over sums of the demo model, with and without stopping early: accuracy, samples and tokens. Starts its server."""
    from flowserve.cli import benching

    benching.arithmetic(json, limit)


@bench.command("pool")
def bench_pool(
    json: Json = None,
    part: Annotated[
        list[str] | None, typer.Option(help="added, single or sessions; may be given again; default: all")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="folder of a model; default: random weights of --size")] = None,
    size: Annotated[str, typer.Option(help="4m, 66m or 165m: parameters of the random model")] = "66m",
    quick: Annotated[bool, typer.Option(help="little of everything, once")] = False,
) -> None:
    """FlowServe over vLLM against vLLM's own server, round robin and vllm-router; latency added to a canned engine.

    Starts all servers itself, on this machine. The router is measured where `vllm-router` is on the PATH.
    """
    from flowserve.cli import benching

    benching.pool(json, part or [], model, size, quick)


@bench.command("fidelity")
def bench_fidelity(
    json: Json = None,
    plot: Annotated[Path | None, typer.Option(help="write both curves of latency here, as SVG")] = None,
    rate: Annotated[float, typer.Option(help="workflows per second")] = 0.8,
    seconds: Annotated[float, typer.Option(help="of the measured workload")] = 120.0,
    size: Annotated[str, typer.Option(help="4m, 66m or 165m: parameters of the random model")] = "66m",
    record: Annotated[Path | None, typer.Option(help="write the scheduler's events here")] = None,
) -> None:
    """Workflows live on a vLLM engine on this machine, and the same ones simulated: p50 and p95 of their latency."""
    from flowserve.cli import benching

    benching.fidelity(json, plot, rate, seconds, size, record)


@bench.command("load")
def bench_load(
    json: Json = None,
    url: Annotated[str, typer.Option(help="a running `flowserve demo`, on this machine")] = "http://127.0.0.1:8400",
    clients: int = 64,
    seconds: float = 60.0,
) -> None:
    """Concurrent clients that ask the demo's questions and sometimes leave: errors, rates, memory."""
    from flowserve.cli import benching

    benching.load(json, url, clients, seconds)


@bench.command("overhead")
def bench_overhead(json: Json = None, quick: Annotated[bool, typer.Option(help="little, twice")] = False) -> None:
    """What a node that does nothing costs, against LangGraph (with and without checkpointer) and asyncio."""
    from flowserve.cli import benching

    benching.overhead(json, quick)


@bench.command("predictors")
def bench_predictors(
    json: Json = None,
    trace: Annotated[
        list[Path] | None, typer.Option(help="recorded lengths of others; again for each further file")
    ] = None,
    log: Annotated[list[Path] | None, typer.Option(help="what --record wrote; again for each further file")] = None,
) -> None:
    """Error, order and coverage of each predictor of lengths, on calls that are shown one after the other."""
    from flowserve.cli import benching

    benching.predictors(json, trace or [], log or [])


@bench.command("eviction")
def bench_eviction(
    data: Annotated[Path, typer.Option(help="folder with mooncake_*.jsonl.gz, or one above its folder traces")],
    json: Json = None,
    plot: Annotated[Path | None, typer.Option(help="write a picture of the rates to this file")] = None,
) -> None:
    """Hit rates of the cachestore's eviction policies and of one that knows the future, on recorded and made-up requests."""
    from flowserve.cli import benching

    benching.eviction(json, plot, data)


@bench.command("reasoning")
def bench_reasoning(
    bank: Annotated[Path, typer.Option(help="recorded chains with trials, as JSON lines")],
    json: Json = None,
    plot: Annotated[Path | None, typer.Option(help="write a picture of the rates to this file")] = None,
    model: Annotated[str | None, typer.Option(help="only its chains; default: all models with trials")] = None,
    samples: Annotated[int, typer.Option(help="chains per program", min=1, max=64)] = 3,
    engines: Annotated[int, typer.Option(help="simulated engines", min=1)] = 1,
    programs: Annotated[int, typer.Option(help="per load", min=10)] = 400,
    seeds: Annotated[int, typer.Option(help="loads that differ in problems and arrivals", min=1, max=10)] = 4,
    target: Annotated[
        list[float] | None, typer.Option(help="p90, in terms of that without load; again for further ones")
    ] = None,
    seed: int = 0,
    jobs: Annotated[int, typer.Option(help="processes", min=1)] = 2,
    quick: Annotated[bool, typer.Option(help="fewer programs, twice")] = False,
) -> None:
    """Votes over recorded chains on simulated engines: program rate at equal p90, by who goes first and what stops."""
    from flowserve.cli import benching

    if quick:
        programs, seeds = min(programs, 150), min(seeds, 2)
    benching.reasoning(json, plot, bank, model, samples, engines, programs, seeds, target or [2.0], seed, jobs)


@bench.command("reuse")
def bench_reuse(
    json: Json = None,
    plot: Annotated[Path | None, typer.Option(help="write a picture of the speedups to this file, as SVG")] = None,
    engine: Annotated[
        str, typer.Option(help="hf or vllm; with vllm one size, and stall of a running answer besides")
    ] = "hf",
    model: Annotated[str, typer.Option(help="folder or hub name, demo, or random:SIZE (4m, 66m, ...)")] = "random:66m",
    policy: Annotated[list[str] | None, typer.Option(help="as hkvd:0.15; again for each further one")] = None,
    tier: Annotated[list[str] | None, typer.Option(help="host or disk; may be given again; default: both")] = None,
    chunks: Annotated[int, typer.Option(help="passages of a prompt", min=2)] = 6,
    tokens: Annotated[list[int] | None, typer.Option(help="of a passage; again for each further size", min=16)] = None,
    rounds: Annotated[int, typer.Option(help="each way is asked so often", min=1)] = 3,
    data: Annotated[Path | None, typer.Option(help="questions over passages, to score answers as well")] = None,
) -> None:
    """Time to the first token with passages' KV reused: full prefill, prefix caching and each policy side by side."""
    from flowserve.cli import benching

    benching.reuse(json, plot, engine, model, policy or [], tier or [], chunks, tokens or [512], rounds, data)


@bench.command("stopping")
def bench_stopping(
    bank: Annotated[Path, typer.Option(help="recorded chains: a file of JSON lines, packed or not")],
    json: Json = None,
    samples: Annotated[Path | None, typer.Option(help="recorded samples; JSON lines of target and answers")] = None,
    rule: Annotated[
        str, typer.Option(help="for chains: a name, or deer(threshold=0.99, trials=30); all: a row for each as well")
    ] = "default",
    sample_rule: Annotated[str, typer.Option(help="for --samples, written likewise")] = "adaptive_consistency",
    certificates: Annotated[
        Path | None, typer.Option(help="folder; chains without a certificate are stopped by the default")
    ] = None,
    template: Annotated[str, typer.Option(help="of the certificates; see gate stopping")] = "boxed",
    task: Annotated[list[str] | None, typer.Option(help="of the certificates; see gate stopping")] = None,
    unseen: Annotated[
        str | None, typer.Option(help="a family of rules, its numbers chosen on other problems and seeds as well")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="write what families save and lose as SVG to this file")] = None,
) -> None:
    """What a rule would have done to recorded chains and samples: accuracy lost, tokens saved, samples drawn."""
    from flowserve.cli import benching

    benching.stopping(
        json, bank, samples, rule, sample_rule, certificates, template, task or [], unseen=unseen, picture=plot
    )


@bench.command("speculation")
def bench_speculation(
    json: Json = None,
    plot: Annotated[Path | None, typer.Option(help="write a picture of one request per retriever")] = None,
    vectors: Annotated[int, typer.Option(help="passages, of 384 dimensions", min=100)] = 1_000_000,
    hnsw_vectors: Annotated[
        int | None, typer.Option(help="passages for HNSW; as --vectors by default", min=100)
    ] = None,
    requests: Annotated[int, typer.Option(help="questions per retriever", min=1)] = 16,
    tokens: Annotated[int, typer.Option(help="of an answer", min=8)] = 128,
    retriever: Annotated[list[str] | None, typer.Option(help="exact, hnsw, bm25; again for each further one")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="only this one; again for each further one")] = None,
    size: Annotated[str, typer.Option(help="random weights: 4m, 66m, 165m")] = "4m",
    model: Annotated[Path | None, typer.Option(help="a model's folder, instead of random weights")] = None,
) -> None:
    """A passage looked up every four tokens: guessed and verified, against step by step."""
    from flowserve.cli import benching

    chosen = {name: given for name, given in (("retrievers", retriever), ("ways", mode)) if given}
    sizes = {"vectors": vectors, "hnsw_vectors": hnsw_vectors or vectors, "requests": requests, "tokens": tokens}
    benching.speculation(json, plot, **sizes, size=size, model=model, **chosen)


@bench.command("workflows")
def bench_workflows(
    json: Json = None,
    svg: Annotated[Path | None, typer.Option(help="write a picture of the speedups to this file")] = None,
    workload: Annotated[list[str] | None, typer.Option(help="only this one; again for each further one")] = None,
    rounds: Annotated[int, typer.Option(help="loads per system and workload", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="of arrivals per load", min=1.0)] = 20.0,
    load: Annotated[float, typer.Option(help="factor on all arrival rates", min=0.01)] = 1.0,
    size: Annotated[str, typer.Option(help="random weights: 4m, 66m, 165m, 1b, 8b")] = "66m",
    model: Annotated[Path | None, typer.Option(help="a model's folder, instead of random weights")] = None,
    replicas: Annotated[int, typer.Option(help="vLLM servers", min=1)] = 2,
    policy: Annotated[str, typer.Option(help="FlowServe's; another one than the default is an ablation")] = POLICY,
    shared: Annotated[bool, typer.Option(help="FlowServe in front of the baselines' servers, over HTTP")] = False,
    scale: Annotated[float, typer.Option(help="factor on the published lengths of prompts and answers")] = 0.125,
    data: Annotated[
        Path | None, typer.Option(help="folder of recorded inputs; without one, random words", envvar="FLOWSERVE_DATA")
    ] = None,
    balance: Annotated[str, typer.Option(help="what the baselines bind to a server: run (sticky) or call")] = "run",
    quick: Annotated[bool, typer.Option(help="one short round of each")] = False,
) -> None:
    """Whole workflows on FlowServe, in LangGraph and in asyncio, on the same vLLM servers."""
    from flowserve.cli import benching

    os.environ["FLOWSERVE_BENCH_SCALE"] = str(scale)
    if data is not None:
        os.environ["FLOWSERVE_DATA"] = str(data)
    if quick:
        rounds, seconds = 1, min(seconds, 8.0)
    options = {"rounds": rounds, "seconds": seconds, "load": load, "size": size, "model": model}
    benching.workflows(
        json, svg, workload or [], **options, replicas=replicas, policy=policy, shared=shared, balance=balance
    )


def _settings(
    engine: str,
    model: str,
    indexes: Path,
    embedder: str,
    policy: str = POLICY,
    replicas: int = 1,
    url: list[str] | None = None,
    engine_arg: list[str] | None = None,
    pool: Path | None = None,
    weight: list[str] | None = None,
    passes: bool = True,
    predictor: str = PREDICTOR,
    limit: list[str] | None = None,
    price: list[str] | None = None,
    drop_hopeless: bool = False,
    placement: str = PLACEMENT,
    certificates: Path | None = None,
    shadow_share: float = SHADOW_SHARE,
    reuse: "dict[str, Any] | None" = None,
    private_indexes: bool = False,
    reranker: Path | None = None,
) -> "Settings":
    from flowserve.assemble import Settings
    from flowserve.cli.targets import engine_args, limits, prices, weights
    from flowserve.config import RuntimeConfig

    return Settings(
        engine=engine,
        model=model,
        replicas=replicas,
        url=tuple(url or ()),
        engine_args=engine_args(engine_arg or []),
        pool=pool,
        indexes=indexes,
        private_indexes=private_indexes,
        reranker=reranker,
        embedder=embedder,
        certificates=certificates,
        shadow_share=shadow_share,
        reuse=reuse or {},
        runtime=RuntimeConfig(
            policy=policy,
            predictor=predictor,
            placement=placement,
            tenant_weights=weights(weight or []),
            tenant_limits=limits(limit or []),
            prices=prices(price or []),
            drop_hopeless=drop_hopeless,
            passes=passes,
        ),
    )


def main() -> None:
    """Entry point of the `flowserve` command: errors of ours are one message, not a traceback."""
    from flowserve.errors import FlowServeError, RunError

    try:
        app()
    except FlowServeError as error:
        print(f"flowserve: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, RunError) else 2)
    except BrokenPipeError:  # who read our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"flowserve: {error.strerror}: {error.filename}", file=sys.stderr)
        sys.exit(2)
