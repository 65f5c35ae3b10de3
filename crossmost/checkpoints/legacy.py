"""Published checkpoints as they are, most of them pickles: read without running anything of theirs."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from crossmost.checkpoints.atomic import reason
from crossmost.checkpoints.signs import AGAIN, LONG_ENOUGH, no_weights
from crossmost.checkpoints.store import is_whole, load_weights
from crossmost.errors import InputError

ZIP, PICKLE = b"PK\x03\x04", b"\x80"


class Unread:
    """In the place of an object that no base needs: takes what the pickle has for it and keeps nothing."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


STAND_INS = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    *(
        f"{module}.{path}"
        for module in ("pathlib", "pathlib._local")  # as Python 3.13 calls it
        for path in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    ),
)
"""What the published files hold beside tensors and plain values: options, folders and accuracies, which are not read.

Of these only the names are allowed. An `Unread` is made for each, so that no code but torch's and ours runs.
"""


def read_legacy(path: Path) -> Mapping[Any, Any]:
    """Read a file of torch.save (.pt, .pth, .bin) or a .safetensors, tensors to the CPU.

    Returns:
        What the file holds, as it is; an `Unread` stands for what is in `STAND_INS`. Tensors of a large file stay on
        the disk until they are used, where its format allows it.

    Raises:
        InputError: no such file, not a checkpoint, damaged, or holding objects beside tensors and plain values.
    """
    start = _start(path)
    if found := no_weights(start):
        raise _refused(path, found)
    if start.startswith(ZIP):
        _check_zip(path)
    elif not start.startswith(PICKLE):
        return _read_safetensors(path)
    content = _load(path, mmap=start.startswith(ZIP))
    if not isinstance(content, Mapping):
        raise _refused(path, f"a single {type(content).__name__} in the pickle")
    return content


def _start(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(
            f"expected a checkpoint at {path}, found {'a folder' if path.is_dir() else 'no such file'}"
        )
    try:
        with open(path, "rb") as file:
            return file.read(LONG_ENOUGH)
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error


def _check_zip(path: Path) -> None:
    """Refuse archives that torch.save did not write, or that are not as it wrote them: torch checks no sum."""
    damaged = _refused(path, f"a truncated or damaged file: {AGAIN}")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist())
            whole = is_whole(archive)
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise damaged from error
    if not whole:
        raise damaged


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if any(name.endswith("/constants.pkl") for name in names):
        raise _refused(path, "a TorchScript archive, which is a program: save its state dict")
    if not any(name.endswith("data.pkl") for name in names):
        raise _refused(
            path, f"another zip archive, with {names[0] if names else 'nothing'!r} in it: unpack it"
        )
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _refused(path, "a compressed archive, which torch cannot read: unpack it and `zip -0` it again")


def _load(path: Path, *, mmap: bool) -> Any:
    misnamed = path.suffix == ".safetensors"  # given such a path, torch reads that format whatever is in it
    try:
        with (
            open(path, "rb") as file,
            torch.serialization.safe_globals([(Unread, name) for name in STAND_INS]),
        ):
            source = file if misnamed else path
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap and not misnamed)
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        named = re.search(r"GLOBAL (\S+) (?:was not|whose module)", str(error))
        if isinstance(error, pickle.UnpicklingError) and named:
            raise _refused(
                path,
                f"{named[1]} in the pickle, which could run code and was not loaded: where you trust the file, "
                "save its state dict alone, as .safetensors",
            ) from error
        raise _refused(path, f"a truncated, damaged or other kind of pickle: {AGAIN}") from error


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    weights = load_weights(path)
    if weights.metadata.get("format", "").startswith("crossmost-"):
        raise _refused(path, f"a file of crossmost's own ({weights.metadata['format']}): use it as it is")
    return weights.tensors


def _refused(path: Path, found: str) -> InputError:
    return InputError(f"expected a checkpoint (.pt, .pth, .bin, .safetensors) at {path}, found {found}")
