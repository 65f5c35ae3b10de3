"""What a run saves: weights as safetensors, the training state as plain values, and both as one set.

No pickle is ever loaded: the state is a torch file of plain containers, numbers, strings and tensors, read
with `weights_only=True`.

Files that belong together (student, teacher, state) are a `Generation`. All of them are written into
`.saving/`, one rename to `.saved/` makes the set the valid one, and its files are then moved up into the run.
Whatever the moment of a crash, `load_generation` finds one whole set: a file still in `.saved/` wins over the
one in the run, and the next save clears up.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crossmost.checkpoints.atomic import (
    failing_as_work,
    reason,
    replacing,
    sync,
    sync_folder,
    write_json_atomic,
    write_text_atomic,
)
from crossmost.checkpoints.destination import check_utf8
from crossmost.checkpoints.signs import LONG_ENOUGH, no_weights
from crossmost.errors import InputError

__all__ = [
    "Generation",
    "Weights",
    "is_whole",
    "load_generation",
    "load_metadata",
    "load_state",
    "load_weights",
    "not_safetensors",
    "save_generation",
    "save_state",
    "save_weights",
    "write_json_atomic",
    "write_text_atomic",
]

STATE_FILE = "state.pt"
STAGING_FOLDER = ".saving"
COMMITTED_FOLDER = ".saved"
GENERATION_KEY = "generation"
# safetensors writes its metadata in a random order, and equal checkpoints must be equal byte for byte: all of
# the metadata is one entry, JSON with sorted keys.
METADATA_KEY = "crossmost"
DIGEST_KEY = "tensors_sha256"  # safetensors has no sum of its own: damaged numbers are numbers
ZIP_START = b"PK\x03\x04"
PICKLE_STARTS = (ZIP_START, b"\x80")


class Weights(NamedTuple):
    """The content of one safetensors file: tensors by name, and free text by key."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Generation:
    """The files of one moment of a run: saved together, loaded together.

    Attributes:
        number: which save this is (say, the optimiser step), 0 or more; every file carries it.
        weights: by file name without suffix: `student` is `student.safetensors`.
        state: what `state.pt` holds: see `save_state`.
    """

    number: int
    weights: dict[str, Weights]
    state: dict[str, Any]


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    The same tensors and metadata give the same bytes. Tensors that share memory are stored one by one.

    Raises:
        WorkFailed: the file cannot be written (disk full, permission); the one saved before is untouched.
    """
    with replacing(path) as partial:
        _write_weights(partial, tensors, metadata)


def load_weights(path: Path, *, check: bool = True) -> Weights:
    """Read a safetensors file to the CPU, metadata included.

    Args:
        path: of the file.
        check: whether to compare the tensors with what `save_weights` noted; if not, they stay on the disk until they
            are used.

    Raises:
        InputError: no such file, not readable, a pickle, a truncated or damaged file, or other tensors in a file of
            ours than `save_weights` wrote.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = _metadata(file)
    noted = metadata.pop(DIGEST_KEY, None)  # files of others and of older versions have none
    if check and noted is not None and noted != _digest(tensors):
        raise InputError(
            f"{path}: its tensors are not those that were written: copy it again, or delete it and make it anew"
        )
    return Weights(tensors, metadata)


def load_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file and none of its tensors, however large they are.

    Raises:
        InputError: see `load_weights`.
    """
    with _opened(path) as file:
        metadata = _metadata(file)
    metadata.pop(DIGEST_KEY, None)
    return metadata


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    _check_file(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise InputError(not_safetensors(path, error)) from error


def _metadata(file: Any) -> dict[str, str]:
    """The metadata of an open file, what is ours among it.

    Raises:
        ValueError: ours is no JSON of texts.
    """
    metadata: dict[str, str] = file.metadata() or {}
    own = json.loads(metadata.pop(METADATA_KEY, "{}"))
    if not isinstance(own, dict) or not all(isinstance(value, str) for value in own.values()):
        raise ValueError("its metadata are no texts")
    return metadata | own


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of tensors with their names, types and shapes, in order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of optimiser, schedule and random generators, whole or not at all.

    Args:
        path: where to.
        state: dicts, lists, tuples, numbers, strings, None and tensors, nested at will. NumPy scalars and
            arrays are not plain: `.item()`, `.tolist()` or `torch.from_numpy` make them so.

    Raises:
        TypeError: something else is in it, which could not be loaded again; the message says where.
        WorkFailed: the file cannot be written (disk full, permission); the one saved before is untouched.
    """
    _check_plain(state, "state")
    with replacing(path) as partial:
        _write_state(partial, state)


def load_state(path: Path, *, check: bool = True) -> dict[str, Any]:
    """Read what `save_state` wrote, tensors to the CPU; they stay on the disk until they are used.

    Args:
        path: of the file.
        check: whether to read all of it once and compare it with the archive's own sums, which torch does not.

    Raises:
        InputError: no such file, not readable, damaged, or holding objects other than plain ones.
    """
    _check_file(path)
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == ZIP_START  # what torch can map; all that `save_state` writes
        if zipped and check:
            with zipfile.ZipFile(path) as archive:
                if not is_whole(archive):
                    raise zipfile.BadZipFile("other bytes than were written")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        raise InputError(
            f"expected a saved training state in {path}, found a damaged file or other objects in it: "
            "train anew, without resuming"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"expected a saved training state in {path}, found a {type(state).__name__}")
    return state


def save_generation(run: Path, generation: Generation) -> None:
    """Save a run's files as one: after a crash at any moment either all of them are new or none is.

    Needs room for a second set beside the one in place. One process writes to a run at a time.

    Args:
        run: an existing folder.
        generation: becomes `NAME.safetensors` for each of its weights, and `state.pt`.

    Raises:
        TypeError: the state is not plain: see `save_state`.
        WorkFailed: not all files can be written; the generation saved before is untouched.
    """
    _check_plain(generation.state, "state")
    stamp = str(generation.number)
    staging, committed = run / STAGING_FOLDER, run / COMMITTED_FOLDER
    with failing_as_work(f"cannot save a checkpoint in {run}", "the one saved before is untouched"):
        _finish_interrupted(run)
        try:
            staging.mkdir()
            for name, (tensors, metadata) in generation.weights.items():
                stamped = {**metadata, GENERATION_KEY: stamp}
                _write_weights(staging / f"{name}.safetensors", tensors, stamped)
            _write_state(staging / STATE_FILE, {**generation.state, GENERATION_KEY: stamp})
            sync_folder(staging)
            os.replace(staging, committed)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    # From here on the new set is the valid one, even if it cannot be moved up now.
    with failing_as_work(f"cannot move a checkpoint up into {run}", f"it is whole in {committed}"):
        sync_folder(run)
        _finish_interrupted(run)


def load_generation(run: Path, names: Sequence[str], *, state: bool = True, check: bool = True) -> Generation:
    """Load files that were saved together; changes nothing on disk, so a run in training can be read.

    Args:
        run: the folder.
        names: the weights wanted, without suffix, at least one.
        state: whether to read `state.pt` too; if not, the generation's state is empty.
        check: see `load_weights` and `load_state`.

    Raises:
        InputError: a file is missing or damaged, or the files come from different saves.
    """
    weights: dict[str, Weights] = {}
    found: dict[str, str] = {}
    for name in names:
        file = f"{name}.safetensors"
        tensors, metadata = load_weights(_locate(run, file), check=check)
        found[file] = metadata.pop(GENERATION_KEY, "none")
        weights[name] = Weights(tensors, metadata)
    values = load_state(_locate(run, STATE_FILE), check=check) if state else {}
    if state:
        found[STATE_FILE] = str(values.pop(GENERATION_KEY, "none"))
    numbers = set(found.values())
    if len(numbers) != 1 or not min(numbers).isdecimal():
        listed = ", ".join(f"{file} from {number}" for file, number in found.items())
        raise InputError(
            f"expected files of one save in {run}, found {listed}: "
            "if a training is writing there, try again; else copy the whole folder again or train anew"
        )
    return Generation(int(numbers.pop()), weights, values)


def has_generation(run: Path) -> bool:
    """Whether a folder holds a saved generation, be it one whose last renames were interrupted."""
    return _locate(run, STATE_FILE).is_file()


def _finish_interrupted(run: Path) -> None:
    """Move a committed generation up into the run and drop one that was never committed."""
    shutil.rmtree(run / STAGING_FOLDER, ignore_errors=True)
    committed = run / COMMITTED_FOLDER
    if committed.is_dir():
        for file in sorted(committed.iterdir()):
            os.replace(file, run / file.name)
        sync_folder(run)
        committed.rmdir()


def _locate(run: Path, file: str) -> Path:
    committed = run / COMMITTED_FOLDER / file
    return committed if committed.is_file() else run / file


def _write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    path.touch()
    mode = path.stat().st_mode  # safetensors makes its files private; a run is as readable as its folder
    stored = _storable(tensors)
    noted = {**metadata, DIGEST_KEY: _digest(stored)}
    try:
        save_file(stored, path, metadata={METADATA_KEY: json.dumps(noted, sort_keys=True)})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)
    with open(path, "r+b") as file:
        sync(file)


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and no two in the same memory: what safetensors accepts."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        stored[name] = plain.clone() if address in seen else plain
        seen.add(address)
    return stored


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    with open(path, "wb") as file:
        try:
            # Given a path, torch would store the file's name too, and the bytes would depend on it.
            torch.save(dict(state), file)
        except RuntimeError as error:  # torch raises its own over the OSError of a failed write
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        sync(file)


def _check_plain(value: Any, where: str) -> None:
    """Refuse what `weights_only=True` would refuse to load, while there is still something to save."""
    # Exact types: a numpy.float64 is a float, and comes back only through pickle.
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif type(value) not in (str, int, float, bool, type(None)) and not isinstance(value, Tensor):
        raise TypeError(
            f"expected plain containers, numbers, strings or tensors, found {type(value)} at {where}"
        )


def is_whole(archive: zipfile.ZipFile) -> bool:
    """Whether an archive of torch holds what was written, by its sums, all of which torch.save can leave out."""
    summed = any(member.CRC for member in archive.infolist())
    return not summed or archive.testzip() is None


def _check_file(path: Path) -> None:
    check_utf8(path)
    if not path.is_file():
        raise InputError(f"expected a file at {path}, found {'a folder' if path.is_dir() else 'none'}")


def not_safetensors(path: Path, error: Exception) -> str:
    """What is said of a file that safetensors cannot read, which does not know what it was given instead."""
    with open(path, "rb") as file:
        start = file.read(LONG_ENOUGH)
    found = no_weights(start) or f"a truncated or damaged file ({reason(error)}): copy or download it again"
    if start.startswith(PICKLE_STARTS):
        found = "a pickle (torch.save): `crossmost convert` makes a base of a published checkpoint"
    return f"expected safetensors in {path}, found {found}"
