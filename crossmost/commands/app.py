"""The application, and how an error becomes one line and an exit code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from crossmost import __version__
from crossmost.errors import InputError, WorkFailed

ORDER = (
    "demo",
    "zoo",
    "convert",
    "train",
    "eval",
    "export",
    "predict",
    "embed",
    "inspect",
    "render",
    "bench",
    "doctor",
    "vocabulary",
    "pretrain",
)


class InOrderOfUse(TyperGroup):
    """Lists the commands as people come to need them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, those of `ORDER` first."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    cls=InOrderOfUse,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Adapt zero-shot 3D classifiers to your own unlabelled point clouds.",
    epilog="Try it: `crossmost demo`",
)
EXTRAS = {
    "train": {
        "torch",
        "torchvision",
        "open_clip",
        "timm",
        "safetensors",
        "huggingface_hub",
        "pydantic",
        "yaml",
        "rich",
        "PIL",
    },
    "export": {"onnx", "onnxscript", "onnx_ir", "polygraphy", "filelock"},
    "cpu": {"onnxruntime"},
    "text": {"tokenizers"},
    "report": {"matplotlib", "jinja2"},
    "io": {"plyfile", "pypcd4", "trimesh", "scipy", "laspy", "h5py", "charset_normalizer"},
    "tensorboard": {"tensorboard"},
    "ros": {"rosbags"},
}
_debug = False


def command(
    *, interrupted: str = "interrupted", **options: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose errors are one line on stderr and an exit code.

    Args:
        interrupted: the line after Ctrl-C.
        options: of the command, for typer.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except (
                BrokenPipeError
            ):  # what read the output has gone, as `| head` does: typer ends without a word
                raise
            except Exception as error:
                if _debug:
                    raise
                code, line = explain(error)
                if line is None:
                    raise
                typer.echo(f"error: {line}", err=True)
                raise typer.Exit(code) from None
            except KeyboardInterrupt:
                typer.echo(interrupted, err=True)
                raise typer.Exit(1) from None

        app.command(**options)(guarded)
        return function

    return register


def explain(error: Exception) -> tuple[int, str | None]:
    """Exit code and line of an error; no line for one that is a defect of ours and keeps its traceback."""
    from crossmost.runtime.errors import (  # it has no error class in common with the trainer
        InvalidInput,
        RuntimeFailure,
    )

    if isinstance(error, (InputError, InvalidInput)):
        return 2, " ".join(str(error).split())
    if isinstance(error, (WorkFailed, RuntimeFailure)):
        return 1, " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name:
        for extra, modules in EXTRAS.items():
            if error.name.partition(".")[0] in modules:
                return 2, f'this needs {error.name}: pip install "crossmost[{extra}]"'
    if type(error).__name__ == "OutOfMemoryError":  # torch's; the robot has no torch
        return 1, "out of GPU memory: lower batch_size, or --set precision=bfloat16"
    if isinstance(error, OSError):
        return 1, f"{error.filename or 'file'}: {error.strerror or error}"
    return 1, None


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command."""
    global _debug
    _debug = debug
