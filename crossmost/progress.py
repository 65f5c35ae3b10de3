"""What a run says while it works: a bar on a terminal, a line an epoch elsewhere, TensorBoard where asked for."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RunProgress:
    """Shows loss, kept ratio, agreement and time left; everything goes to stderr, which leaves stdout to programs."""

    def __init__(self, batches: int, done: int = 0, tensorboard: Path | None = None):
        """Begin.

        Args:
            batches: of the whole run.
            done: of them before this start.
            tensorboard: folder for TensorBoard events, or None.
        """
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            disable=not sys.stderr.isatty(),
        )
        self.task = self.bar.add_task("adapting", total=batches, completed=done, figures="")
        self.started = time.monotonic()
        self.writer = _writer(tensorboard)

    def __enter__(self) -> RunProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.writer is not None:
            self.writer.close()

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.console.print(f"warning: {text}", highlight=False, soft_wrap=True, markup=False)

    def batch(self, figures: dict[str, Any]) -> None:
        """Advance by one batch."""
        text = f"loss {figures['loss']:.3f}  kept {figures['kept']:.0%}"
        if "agreement" in figures:
            text += f"  agree {figures['agreement']:.0%}"
        self.bar.update(self.task, advance=1, figures=text)

    def epoch(self, record: dict[str, Any]) -> None:
        """Print the line of an epoch, and hand its numbers to TensorBoard."""
        if self.writer is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self.writer.add_scalar(name, value, record["epoch"] + 1)
        where = "at first" if record["epoch"] < 0 else f"epoch {record['epoch'] + 1}"
        line = f"{where:<10} {time.monotonic() - self.started:6.0f} s"
        if "loss" in record:
            line += f"  loss {record['loss']:.3f}"
        line += f"  kept {record['watched/kept']:.0%}"
        if record["watched/agreement"] is not None:
            line += f"  branches agree {record['watched/agreement']:.0%}"
        if "churn" in record:
            line += f"  labels changed {record['churn']:.1%}"
        self.console.print(line, highlight=False, soft_wrap=True)


def _writer(folder: Path | None) -> Any:
    if folder is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
