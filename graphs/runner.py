"""The seam between a workflow object and whatever runs it.

`graphs` does not know the runtime. Somebody above installs a factory once (`set_runner`); tests put another
runner in front for the length of a `with` block (`override_runner`).
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from flowserve.errors import ConfigError
from flowserve.graphs.program import Program


class Handle(Protocol):
    """A submitted run."""

    @property
    def id(self) -> str: ...

    @property
    def status(self) -> str:
        """queued running completed failed cancelled timed_out."""
        ...

    def result(self, timeout_s: float | None = None) -> Any:
        """The typed result; blocks until there is one. Raises RunError, or TimeoutError after `timeout_s`."""
        ...

    def cancel(self) -> None: ...

    def events(self, after: int = 0) -> Iterator[Any]:
        """Events (`runtime.records.RunEvent`) with `seq > after` as they come, the terminal one last."""
        ...

    def snapshot(self) -> Any:
        """Status, node table, timings and tokens (`runtime.records.RunSnapshot`)."""
        ...


class Runner(Protocol):
    """Runs programs. `inputs` are typed arguments by name; `options` are the runtime's (timeout_s, seed, ...)."""

    def run(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> Any:
        """The typed result. Blocks."""
        ...

    async def arun(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> Any:
        """The typed result."""
        ...

    def stream(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> Iterator[Any]:
        """Events of a run, the terminal one last. Closing the iterator cancels the run."""
        ...

    def astream(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> AsyncIterator[Any]:
        """As `stream`, for an event loop."""
        ...

    def submit(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> Handle:
        """Start a run and return at once."""
        ...


_factory: Callable[[], Runner] | None = None
_override: ContextVar[tuple[Runner, ...]] = ContextVar("flowserve_runners", default=())
_overriding: list[Runner] = []
"""The same for threads that were started without the context of the block: a pool's, a test client's."""


def set_runner(factory: Callable[[], Runner] | None) -> None:
    """Install what makes (or returns) this process's runner; None removes it."""
    global _factory
    _factory = factory


def current_runner() -> Runner:
    """The innermost overriding runner, else the installed one. Raises ConfigError when there is none."""
    overriding = _override.get() or _overriding
    if overriding:
        return overriding[-1]
    if _factory is None:
        raise ConfigError(
            "expected a runner to run the workflow; got none. `import flowserve` installs one; "
            "in tests use `with fs.testing.engine(...)`."
        )
    return _factory()


@contextmanager
def override_runner(runner: Runner) -> Iterator[Runner]:
    """Use `runner` until the block ends; nests. In other contexts the block that was entered last counts."""
    token = _override.set((*_override.get(), runner))
    _overriding.append(runner)
    try:
        yield runner
    finally:
        _overriding.remove(runner)
        _override.reset(token)
