"""`flowserve serve`: a runtime behind the doors, until a signal."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

from flowserve.assemble import Declared, Settings, load, make_runtime
from flowserve.cli.targets import lessons_of, say
from flowserve.core.events import Learned
from flowserve.server.app import create_app
from flowserve.server.listen import Listener, listener
from flowserve.server.settings import ServerSettings, from_environ


def serve(
    file: Path | None,
    settings: Settings,
    host: str,
    port: int,
    insecure: bool,
    record: Path | None,
    learn: Path | None = None,
) -> None:
    """Compile, start the engine, listen. Everything that can be wrong is found before the port is opened."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    declared = load(file) if file is not None else Declared(())
    lessons = lessons_of(learn)  # before `record` is opened: it may be the same file
    server_settings = from_environ(host=host, port=port, insecure=insecure or None)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(declared, settings, server_settings, record, lessons))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where uvicorn brought it (everywhere but on Windows): a request costs a quarter less."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(
    declared: Declared,
    settings: Settings,
    server_settings: ServerSettings,
    record: Path | None,
    lessons: Sequence[Learned],
) -> None:
    with record.open("w", encoding="utf-8") if record is not None else nullcontext() as file:
        write = file.write if file is not None else None
        async with listening(declared, settings, server_settings, write, lessons) as (server, task):
            names = ", ".join(workflow.name for workflow in declared.workflows) or "models"
            say(f"serving {names} at {server.url} (pages: {server.url}/docs)")
            await task


def _settle_memory() -> None:
    """What start-up made stays; collecting it again and again would only hold up requests (75 ms at 10,000 live nodes)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _what(settings: Settings) -> str:
    """The engines in a few words."""
    if settings.pool is not None:
        return f"the engines of {settings.pool}"
    if settings.url:
        return f"engine {settings.engine} at {', '.join(settings.url)}"
    times = f"{settings.replicas} times " if settings.replicas > 1 else ""
    return f"engine {settings.engine} {times}with {settings.model}"


@asynccontextmanager
async def listening(
    declared: Declared,
    settings: Settings,
    server_settings: ServerSettings,
    log_line: Callable[[str], object] | None = None,
    lessons: Sequence[Learned] = (),
) -> AsyncIterator[tuple[Listener, "asyncio.Task[None]"]]:
    """A server that accepts requests, and the task that ends when it has shut down. Closes the runtime at the end."""
    runtime = make_runtime(settings, declared.workflows, log_line)
    server = listener(
        create_app(runtime, server_settings, tools=declared.tools, dynamics=declared.dynamics), server_settings
    )
    runtime.learn(lessons)
    say(f"starting {_what(settings)}")
    await runtime.start()
    _settle_memory()
    task = asyncio.create_task(server.serve())
    try:
        ready = asyncio.create_task(server.listening.wait())
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            ready.cancel()
            task.result()
            raise SystemExit(2)  # uvicorn has said why (the port is taken)
        yield server, task
    finally:
        server.stop()
        await asyncio.wait([task])
        await runtime.aclose()
