"""Dying, freezing and wrongly set engines: what is told, and that no process is left."""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from flowserve.engines.base import Call, Finish, Output
from flowserve.engines.vllm import VLLMEngine, VLLMSettings
from flowserve.errors import ConfigError, EngineError, EngineLost, Overloaded

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]
MakeCall = Callable[..., Call]
LONG: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True}


@pytest_asyncio.fixture(loop_scope="module")
async def engine(settings_of: Callable[..., VLLMSettings]) -> AsyncIterator[VLLMEngine]:
    """One that may be killed."""
    made = VLLMEngine(settings_of(stop_s=2.0))
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def call(engine: VLLMEngine, calls_for: Callable[[VLLMEngine], MakeCall]) -> MakeCall:
    return calls_for(engine)


async def collect(engine: VLLMEngine, call: Call) -> list[Output]:
    return [output async for output in engine.generate(call)]


def ids(outputs: Iterable[Output]) -> tuple[int, ...]:
    return tuple(i for output in outputs for i in output.token_ids)


def family(engine: VLLMEngine) -> list[psutil.Process]:
    """The replica and everything below, the replica first."""
    replica = psutil.Process(engine.pid)
    return [replica, *replica.children(recursive=True)]


def core_of(engine: VLLMEngine) -> psutil.Process:
    return next(process for process in family(engine)[1:] if "EngineCore" in " ".join(process.cmdline()))


async def gone(processes: Iterable[psutil.Process], seconds: float = 10) -> None:
    """They end in time."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, list(processes), timeout=seconds)
    alive = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not alive


async def read_until_lost(engine: VLLMEngine, call: Call, then: Callable[[], object]) -> EngineLost:
    """Reads two outputs, does `then`, and reads on until the engine is lost."""
    seen = 0
    with pytest.raises(EngineLost) as lost:
        async with asyncio.timeout(20):
            async for _ in engine.generate(call):
                seen += 1
                if seen == 2:
                    then()
    return lost.value


async def test_an_engine_is_spared_the_terminals_ctrl_c_and_shares_cores_with_the_server(engine: VLLMEngine) -> None:
    for process in family(engine):
        assert os.getpgid(process.pid) == engine.pid != os.getpgid(0)
        assert os.getsid(process.pid) == os.getsid(0), "a session of its own would have a share of its own"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
async def test_a_call_of_a_dying_engine_core_is_lost_and_the_engine_can_be_started_again(
    engine: VLLMEngine, call: MakeCall, how: signal.Signals
) -> None:
    before = ids(await collect(engine, call()))
    everyone = family(engine)
    await read_until_lost(engine, call(**LONG), lambda: core_of(engine).send_signal(how))
    async with asyncio.timeout(10):
        while engine.status().up:  # a terminated one says goodbye before it goes
            await asyncio.sleep(0.01)
    assert "EngineCore" in engine.status().reason
    with pytest.raises(EngineLost, match="EngineCore"):
        await collect(engine, call())
    await gone(everyone)
    await engine.start()
    assert ids(await collect(engine, call())) == before


async def test_an_engine_core_that_dies_without_a_call_is_noticed(engine: VLLMEngine) -> None:
    heard = asyncio.Event()
    engine.watch(lambda told, news: None if told.status().up else heard.set())
    core_of(engine).kill()
    async with asyncio.timeout(5):
        await heard.wait()


async def test_a_killed_replica_takes_its_engine_core_along_and_calls_are_lost(
    engine: VLLMEngine, call: MakeCall
) -> None:
    everyone = family(engine)
    began = time.monotonic()
    lost = await read_until_lost(engine, call(**LONG), everyone[0].kill)
    assert time.monotonic() - began < 5
    assert str(everyone[0].pid) in str(lost)
    await gone(everyone)


async def test_a_dying_engine_takes_nobody_along(
    engine: VLLMEngine, call: MakeCall, settings_of: Callable[..., VLLMSettings]
) -> None:
    other = VLLMEngine(settings_of(id="other"))
    await other.start()
    whole = ids(await collect(other, call(**LONG)))
    wanted = call(**LONG)
    outputs: list[Output] = []
    async for output in other.generate(wanted):
        outputs.append(output)
        if len(outputs) == 3:
            family(engine)[0].kill()
    assert ids(outputs) == whole
    assert not engine.status().up and other.status().up
    await other.close()


async def test_engines_come_back_when_the_process_they_are_forked_from_was_killed(
    engine: VLLMEngine, call: MakeCall
) -> None:
    before = ids(await collect(engine, call()))
    everyone = family(engine)
    nursery = everyone[0].parent()
    assert nursery is not None
    await read_until_lost(engine, call(**LONG), nursery.kill)
    await gone(everyone)
    await engine.start()
    assert ids(await collect(engine, call())) == before


@pytest.mark.parametrize("who", [0, 1], ids=["replica", "core"])
async def test_closing_a_frozen_engine_leaves_nothing(engine: VLLMEngine, call: MakeCall, who: int) -> None:
    everyone = family(engine)
    outputs = engine.generate(call(**LONG))
    await anext(outputs)
    (everyone[0] if who == 0 else core_of(engine)).suspend()
    async with asyncio.timeout(15):
        await engine.close()
    await gone(everyone, seconds=1)
    assert [output.finish async for output in outputs][-1] is Finish.ABORT


async def test_leaving_a_start_leaves_nothing(settings_of: Callable[..., VLLMSettings]) -> None:
    engine = VLLMEngine(settings_of())
    task = asyncio.create_task(engine.start())
    while engine.pid is None:
        await asyncio.sleep(0.01)
    everyone = family(engine)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(everyone)
    assert not engine.status().up
    with pytest.raises(EngineLost, match="not started"):
        await engine.probe()


async def test_an_abort_storm_leaves_an_idle_engine(engine: VLLMEngine, call: MakeCall) -> None:
    before = ids(await collect(engine, call()))
    chance = random.Random(7)

    async def leave_early(wanted: Call) -> None:
        async with aclosing(engine.generate(wanted)) as outputs:  # type: ignore[type-var]
            left = chance.randrange(6)
            async for _ in outputs:
                left -= 1
                if left < 0:
                    break

    storm = [asyncio.create_task(leave_early(call(f"storm {i}", **LONG))) for i in range(60)]
    for task in storm[::3]:
        await asyncio.sleep(0.002)
        task.cancel()
    await asyncio.gather(*storm, return_exceptions=True)
    assert (engine.status().running, engine.status().waiting) == (0, 0)
    async with asyncio.timeout(10):
        while engine.status().kv_used > 0:
            await asyncio.sleep(0.01)
    assert ids(await collect(engine, call())) == before


ORPHANS = """
import asyncio, sys
from flowserve.engines.vllm import VLLMEngine, VLLMSettings

async def main(model, core):
    args = {"dtype": "float32"}
    engine = VLLMEngine(VLLMSettings(model, cores=core, kv_bytes=64 << 20, args=args, quiet=True))
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_killed_server_process_leaves_nothing(tiny: str, core: str) -> None:
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))
    command = [sys.executable, "-c", ORPHANS, tiny, core]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    server = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE, env=environment)
    try:
        assert server.stdout is not None
        replica = psutil.Process(int(await asyncio.to_thread(server.stdout.readline)))
        everyone = [*psutil.Process(server.pid).children(recursive=True), replica, *replica.children(recursive=True)]
        assert len(set(everyone)) >= 3, "nursery, replica, EngineCore"
        assert list(temporary.iterdir())
        server.kill()
        await gone(everyone, seconds=5)
        assert not list(temporary.iterdir()), "sockets and the log are tidied up"
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(temporary)


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        ({"args": {"tensor_paralel_size": 2}}, ConfigError, "tensor_parallel_size"),
        ({"args": {"dtype": "float13"}}, ConfigError, "float13"),
        ({"model": "/no/such/model"}, ConfigError, "/no/such/model"),
        ({"loras": {"extra": "/no/such/adapter"}}, ConfigError, "adapter_config.json"),
        ({"kv_bytes": 1 << 17}, EngineError, "KV cache"),
    ],
    ids=["unknown", "value", "model", "lora", "memory"],
)
async def test_a_wrong_setting_is_told_with_its_cause(
    settings_of: Callable[..., VLLMSettings], wrong: dict[str, Any], error: type[Exception], told: str
) -> None:
    engine = VLLMEngine(settings_of(**wrong))
    with pytest.raises(error, match=told):
        await engine.start()
    assert told in engine.status().reason
    assert engine.pid is None


async def test_a_full_queue_is_told_as_overload_and_the_others_are_answered(
    settings_of: Callable[..., VLLMSettings], calls_for: Callable[[VLLMEngine], MakeCall]
) -> None:
    engine = VLLMEngine(settings_of(args={"max_num_queued_reqs": 3}))
    await engine.start()
    call = calls_for(engine)
    ends = await asyncio.gather(*(collect(engine, call(f"call {i}")) for i in range(6)), return_exceptions=True)
    await engine.close()
    refused = [end for end in ends if isinstance(end, Overloaded)]
    assert len(refused) == 3 and all(end.retry_after_s > 0 for end in refused)
    assert sum(isinstance(end, list) for end in ends) == 3


async def test_the_log_has_what_vllm_says(settings_of: Callable[..., VLLMSettings], tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    engine = VLLMEngine(settings_of(log=str(log), environment={"VLLM_LOGGING_LEVEL": "INFO"}))
    await engine.start()
    await engine.close()
    assert "EngineCore" in log.read_text()
    assert os.environ.get("VLLM_LOGGING_LEVEL") != "INFO"
