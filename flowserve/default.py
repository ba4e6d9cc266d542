"""What `wf.run(...)` runs on where nothing else is said: one runtime per process, made at its first use."""

import threading
from typing import Any

from flowserve.graphs.runner import Runner, set_runner

_lock = threading.Lock()
_choices: dict[str, Any] = {}
_runner: Any = None


def install() -> None:
    """Make `_current` the runner of workflow objects. Called by `import flowserve`; cheap."""
    set_runner(_current)


def configure(**settings: Any) -> None:
    """Choose what workflows of this process run on, before or between runs.

    Keywords are the fields of `flowserve.assemble.Settings`: engine="hf", model=a folder or hub name, indexes=a folder,
    embedder=..., max_batch=..., runtime=RuntimeConfig(...). What is not given comes from the environment
    (FLOWSERVE_ENGINE, FLOWSERVE_MODEL, FLOWSERVE_INDEXES, FLOWSERVE_EMBEDDER). A runtime that is up is closed.
    """
    from flowserve.assemble import checked

    checked(settings)
    close()
    _choices.clear()
    _choices.update(settings)


def close() -> None:
    """Cancel what runs and free the engines; the next run starts afresh."""
    global _runner
    with _lock:
        runner, _runner = _runner, None
    if runner is not None:
        runner.close()


def _current() -> Runner:
    global _runner
    with _lock:
        if _runner is None:
            from flowserve.assemble import default_runtime
            from flowserve.runtime.blocking import BlockingRunner

            choices = dict(_choices)
            _runner = BlockingRunner(lambda: default_runtime(choices))
        made: Runner = _runner
        return made
