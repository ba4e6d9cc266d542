"""vLLM's own, slower way of starting: inline, and in a replica with a worker process of its own."""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flowserve.engines.base import Call, Engine
from flowserve.engines.vllm import VLLMEngine, VLLMSettings

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SERVER = """
import asyncio, json, os, sys
import psutil
from flowserve.engines.base import Call, Origin, Sampling, Segment
from flowserve.engines.vllm import VLLMEngine, VLLMSettings
from flowserve.errors import EngineLost

CALL = dict(segments=(Segment((5, 6, 7, 8), Origin.VALUE),), sampling=Sampling(24, ignore_eos=True))
OURS = ("VLLM_RPC_BASE_PATH", "VLLM_CPU_OMP_THREADS_BIND", "LD_PRELOAD")

async def ids(engine, id):
    return [i async for output in engine.generate(Call(id, **CALL)) for i in output.token_ids]

async def main(model, core):
    told = {}
    args = {"dtype": "float32", "max_num_seqs": 8}
    child, inline = [
        VLLMEngine(VLLMSettings(model, mode=mode, id=mode, cores=core, kv_bytes=64 << 20, args=args, quiet=True))
        for mode in ("child", "inline")
    ]
    await child.start()
    told["child"] = await ids(child, "a")
    await child.close()
    await inline.start()
    told["inline"] = await ids(inline, "a")
    told["offers"] = [inline.capabilities.preempt, inline.capabilities.schema, inline.pid is None]
    told["left"] = [name for name in os.environ if name in OURS]

    lost = asyncio.Event()
    inline.watch(lambda engine, news: None if engine.status().up else lost.set())
    alive = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    next(p for p in alive if "EngineCore" in " ".join(p.cmdline())).kill()
    await asyncio.wait_for(lost.wait(), 10)
    try:
        await ids(inline, "b")
    except EngineLost as error:
        told["lost"] = str(error)
    await inline.start()
    told["again"] = await ids(inline, "c")
    await inline.close()
    alive = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    told["children"] = [" ".join(p.cmdline()) for p in alive]
    print(json.dumps(told), flush=True)

if __name__ == "__main__":  # vLLM spawns processes that import this
    asyncio.run(main(*sys.argv[1:]))
"""


def test_an_inline_engine_answers_dies_comes_back_and_closes_as_a_child_does(
    tiny: str, core: str, tmp_path: Path
) -> None:
    """In a process of its own, since vLLM is imported into it."""
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    command = [sys.executable, str(script), tiny, core]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["inline"] == told["again"] == told["child"] and len(told["child"]) == 24
    assert told["offers"] == [True, True, True]
    assert told["left"] == []
    assert "EngineCore" in told["lost"]
    assert all("nursery" in line or "resource_tracker" in line for line in told["children"])


async def test_a_replica_with_a_worker_process_answers_the_same_and_dies_with_all_of_it(
    settings_of: Callable[..., VLLMSettings], calls_for: Callable[[Engine], Callable[..., Call]]
) -> None:
    """EngineCore is spawned here, so that it dies with the replica is the plug-in's doing."""
    announced = importlib.metadata.entry_points(group="vllm.general_plugins")
    if "flowserve" not in announced.names:
        pytest.skip("the plug-in is not announced: install the project again")
    answers = []
    for args in ({}, {"distributed_executor_backend": "mp"}):
        engine = VLLMEngine(settings_of(args=args))
        await engine.start()
        replica = psutil.Process(engine.pid)
        everyone = [replica, *replica.children(recursive=True)]
        call = calls_for(engine)(max_tokens=24, ignore_eos=True)
        answers.append([i async for output in engine.generate(call) for i in output.token_ids])
        assert engine.capabilities.preempt and engine.capabilities.schema
        if args:
            assert len(everyone) >= 3, "replica, EngineCore, worker"
            replica.kill()
        else:
            await engine.close()
        _, alive = psutil.wait_procs(everyone, timeout=10)
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        await engine.close()
    assert answers[0] == answers[1]
