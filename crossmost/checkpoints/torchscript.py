"""The tensors of a TorchScript archive, in which OpenAI ships CLIP, without running the program that it is.

`torch.jit.load` compiles what is in the archive, and its pickle may name any function. Here two things are read:
the pickle of the modules' attributes, by an unpickler that knows ten names and makes notes of tensors; and the
declarations in the archived source, as text, of which attributes are parameters and buffers.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST_BYTES = 2**26
"""Size of the pickle, or of the source, from which on an archive is refused: OpenAI's have less than a megabyte."""
MOST_MODULES = 10**5

STORAGES = {
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ShortStorage": torch.int16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
}
STORING = ("PUT", "BINPUT", "LONG_BINPUT")
"""Instructions of a pickle that keep a value under an index of the file's choice."""
LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
DECLARATION = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*?)\]\n  __buffers__ = \[(.*?)\]", re.MULTILINE
)


class NotReadable(ValueError):
    """An archive that is damaged, or that wants more than tensors; says what was found."""


class TensorNote(NamedTuple):
    """Where a tensor lies: which record holds its storage, and which part of that it is."""

    record: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Part:
    """A module of the archive; `find_class` makes a class of its own for each kind, which a pickle may spoil."""

    kind = ""
    attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class Only:
    """A function that a pickle can call and not change."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]):
        object.__setattr__(self, "_make", make)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"an attempt to change {name}")

    def __call__(self, *arguments: Any) -> Any:
        """Call it."""
        return self._make(*arguments)


class Outline(pickle.Unpickler):
    """Makes modules into `Part`s and tensors into `TensorNote`s; every other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for."""
        place = f"{module}.{name}"
        if module.partition(".")[0] == "__torch__":
            return type("Part", (Part,), {"kind": place})
        if place in STORAGES:
            return STORAGES[place]
        if place == "torch._utils._rebuild_tensor_v2":
            return Only(note_tensor)
        if place == "collections.OrderedDict":
            return Only(dict)
        if module == "torch.jit._pickle" and name in LISTS:
            return Only(list)
        raise pickle.UnpicklingError(f"{place} in the pickle, which is no tensor")

    def persistent_load(self, identity: Any) -> tuple[str, torch.dtype]:
        """A storage: its record and dtype; on which device it was does not matter."""
        match identity:
            case ("storage", torch.dtype() as dtype, str(record), _, _):
                return record, dtype
        raise pickle.UnpicklingError("a storage that is described in another way")


def note_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorNote:
    """Note where a tensor lies in place of making it."""
    record, dtype = storage
    return TensorNote(record, dtype, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of torch.jit.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(member.endswith("/constants.pkl") for member in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def outline(archive: zipfile.ZipFile) -> dict[str, TensorNote]:
    """List the parameters and buffers of the archived module by name; no tensor is read.

    Raises:
        NotReadable: damaged, of another form, or the pickle names something other than tensors and modules.
    """
    try:
        root = _root(archive)
        content = _read_text(archive, f"{root}data.pkl")
        _check_memo(content)
        whole = Outline(io.BytesIO(content)).load()
        if not isinstance(whole, Part):
            raise NotReadable("found no module in the pickle")
        notes = _tensors(whole, _declared(archive, root))
    except NotReadable:
        raise
    except Exception as error:  # a pickle that was tampered with makes the unpickler raise nearly anything
        raise NotReadable(f"found {str(error) or type(error).__name__}") from error
    if not notes:
        raise NotReadable("found no tensor in it")
    return {name: note._replace(record=f"{root}data/{note.record}") for name, note in notes.items()}


def read_tensor(archive: zipfile.ZipFile, note: TensorNote) -> Tensor:
    """Read one tensor of the archive, to the CPU.

    Raises:
        NotReadable: its record is missing, compressed or too short.
    """
    try:
        info = archive.getinfo(note.record)
        if info.compress_type != zipfile.ZIP_STORED:
            raise NotReadable(f"found a compressed record {note.record}")
        if math.prod(note.size) * note.dtype.itemsize > info.file_size:
            raise NotReadable(f"found a tensor {note.size} in a record of {info.file_size} bytes")
        if 0 in note.size:
            return torch.empty(note.size, dtype=note.dtype)
        flat = torch.frombuffer(bytearray(archive.read(info)), dtype=note.dtype)
        return flat.as_strided(note.size, note.stride, note.offset).clone()
    except NotReadable:
        raise
    except Exception as error:  # numbers of any size, and whatever a damaged zip archive raises
        raise NotReadable(f"found a damaged record {note.record}") from error


def _root(archive: zipfile.ZipFile) -> str:
    """The folder in the archive, with its `/`; OpenAI's have another name than their file."""
    pickles = [member for member in archive.namelist() if member.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise NotReadable(f"found {len(pickles)} members data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise NotReadable("found tensors in big-endian order")
    return root


def _check_memo(content: bytes) -> None:
    """Refuse a memo with holes: the unpickler makes it as long as the largest index says, whatever that is.

    Raises:
        NotReadable: an index that so many instructions cannot have come to.
        ValueError: no pickle, or a truncated one.
    """
    for number, (instruction, index, _) in enumerate(pickletools.genops(content)):
        if instruction.name in STORING and isinstance(index, int) and index > number:
            raise NotReadable(f"found memo index {index} in instruction {number} of the pickle")


def _read_text(archive: zipfile.ZipFile, member: str) -> bytes:
    size = archive.getinfo(member).file_size
    if size > MOST_BYTES:
        raise NotReadable(f"found {member} of {size} bytes")
    return archive.read(member)


def _declared(archive: zipfile.ZipFile, root: str) -> dict[str, set[str]]:
    """The names of parameters and buffers by class, such as `__torch__.model.LayerNorm`."""
    declared: dict[str, set[str]] = {}
    for member in archive.namelist():
        if not (member.startswith(f"{root}code/") and member.endswith(".py")):
            continue
        module = member.removeprefix(f"{root}code/").removesuffix(".py").replace("/", ".")
        for name, parameters, buffers in DECLARATION.findall(_read_text(archive, member).decode("utf-8")):
            declared[f"{module}.{name}"] = set(re.findall(r'"([^"]+)"', f"{parameters} {buffers}"))
    return declared


def _tensors(root: Any, declared: Mapping[str, set[str]]) -> dict[str, TensorNote]:
    """The tensors of a module and of those in it by name; of a class that is not declared, every one."""
    notes: dict[str, TensorNote] = {}
    open_parts, visited = [("", root)], 0
    while open_parts:
        prefix, part = open_parts.pop()
        visited += 1
        if visited > MOST_MODULES:  # or they contain each other
            raise NotReadable(f"found more than {MOST_MODULES} modules")
        state = declared.get(part.kind)
        for name, value in part.attributes.items() if isinstance(part.attributes, dict) else ():
            if isinstance(value, Part):
                open_parts.append((f"{prefix}{name}.", value))
            elif isinstance(value, TensorNote) and (state is None or name in state):
                notes[f"{prefix}{name}"] = value
    return notes
