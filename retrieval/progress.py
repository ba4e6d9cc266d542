"""Progress of long work as bars on stderr; silent when stderr is not a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from flowserve.retrieval.protocols import Progress


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A `Progress` that draws one bar for each `what` it is called with. Callable from any thread."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            task = tasks.get(what)
            if task is None:
                task = tasks[what] = bars.add_task(what, total=total)
            bars.update(task, completed=done, total=total)

        yield show
