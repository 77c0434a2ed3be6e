"""Progress of a run on the terminal: one line per stage with a bar; silent where nobody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from compressor.stages import NOTE, Report, silent

WORDS = {
    "load": "Loading model and data",
    "train": "Training the network",
    "check": "Checking model and data",
    "units": "Finding units",
    "observe": "Observing units",
    "findings": "Explaining units",
    "layers": "Measuring layers",
    "table": "Timing layers",
    "timing": "Timing a plan",
    "paths": "Ordering units",
    "exact": "Certifying surplus units",
    "verdict": "Judging",
    "export": "Exporting and timing",
}


@contextmanager
def shown(console: Console, quiet: bool) -> Iterator[Report]:
    """A `Report` that draws bars on `console` while inside; without a terminal, or `quiet`, it does nothing."""
    if quiet or not console.is_terminal:
        yield silent
        return
    columns = (SpinnerColumn(), TextColumn("{task.description:28}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: float) -> None:
            if stage.startswith(NOTE):
                progress.console.print(stage.removeprefix(NOTE), style="dim", highlight=False)
                return
            if stage not in tasks:
                for task in tasks.values():
                    progress.update(task, completed=1.0)
                tasks[stage] = progress.add_task(WORDS.get(stage, stage.capitalize()), total=1.0)
            progress.update(tasks[stage], completed=done)

        yield report
