"""The class names with their text embeddings: the `classes.npz` of runs and bundles."""

from __future__ import annotations

import difflib
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.errors import InvalidInput
from crossmost.runtime.whole_files import replacing, sync

REQUIRED = ("names", "embeddings", "logit_scale")

MOST_BYTES = 2**30
"""Size of all arrays from which on they are not read: a small file can claim, and unpack to, a huge one."""


class InvalidVocabulary(InvalidInput):
    """A vocabulary that cannot be used; the message says what was expected and what was found."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Class names and the text embeddings that classify a cloud; `create` makes one from any real rows.

    Attributes:
        names: C different names, as the user wrote them.
        embeddings: (C, D) float32, unit rows.
        logit_scale: what cosines are multiplied by before the softmax: 100 for OpenAI's CLIP, not ln 100.
        prompts: the templates that were averaged, with `{}` for the name; empty where unknown.
        tag: the text model's name and weights; empty where unknown.
    """

    names: tuple[str, ...]
    embeddings: NDArray[np.float32]
    logit_scale: float
    prompts: tuple[str, ...] = ()
    tag: str = ""

    def __post_init__(self) -> None:
        check_names(self.names)
        rows = self.embeddings
        if rows.ndim != 2 or len(rows) != len(self.names) or rows.dtype != np.float32:
            expected = f"({len(self.names)}, D) float32"
            raise InvalidVocabulary(f"expected embeddings {expected}, found {rows.shape} {rows.dtype}")
        if not np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-3):
            raise InvalidVocabulary("expected embeddings of unit length: use Vocabulary.create")
        if not (np.isfinite(self.logit_scale) and self.logit_scale > 0):
            raise InvalidVocabulary(f"expected a positive logit_scale, found {self.logit_scale}")

    def __len__(self) -> int:
        """C, the number of classes."""
        return len(self.names)

    @property
    def dim(self) -> int:
        """D, the width of the joint space."""
        return int(self.embeddings.shape[1])

    @classmethod
    def create(
        cls,
        names: Iterable[str],
        embeddings: Any,
        *,
        logit_scale: float,
        prompts: Iterable[str] = (),
        tag: str = "",
    ) -> Vocabulary:
        """Check names and embeddings and scale the rows to unit length.

        Args:
            names: C different names.
            embeddings: (C, D) real numbers of any dtype, finite, no row of zeros.
            logit_scale: positive.
            prompts: the templates behind the embeddings.
            tag: the text model behind the embeddings.

        Raises:
            InvalidVocabulary: see the arguments.
        """
        chosen = tuple(names)
        check_names(chosen)
        rows = unit_rows(chosen, np.asarray(embeddings))
        return cls(chosen, rows, float(logit_scale), tuple(prompts), tag)

    def select(self, names: Iterable[str]) -> Vocabulary:
        """Keep some of the classes, in the order asked for.

        Raises:
            InvalidVocabulary: a name that is not there (the nearest one is named), or one asked for twice.
        """
        chosen = tuple(names)
        row = {name: index for index, name in enumerate(self.names)}
        for name in chosen:
            if name not in row:
                near = difflib.get_close_matches(name, self.names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f", which starts with {self.names[0]!r}"
                raise InvalidVocabulary(f"no class {name!r} in the vocabulary of {len(self)}{hint}")
        check_names(chosen)
        rows = self.embeddings[[row[name] for name in chosen]]
        return Vocabulary(chosen, rows, self.logit_scale, self.prompts, self.tag)

    def save(self, path: Path | str, **further: Any) -> None:
        """Write `classes.npz`; an existing file is replaced only once the new one is complete.

        Args:
            path: where to.
            further: arrays to store beside the vocabulary's own, which `load_vocabulary` passes over.
        """
        with replacing(Path(path)) as partial, partial.open("wb") as file:
            np.savez(
                file,
                names=np.array(self.names),
                embeddings=self.embeddings,
                logit_scale=np.float64(self.logit_scale),
                prompts=np.array(self.prompts, dtype=np.str_),
                tag=np.array(self.tag),
                **further,
            )
            sync(file)


def load_vocabulary(path: Path | str) -> Vocabulary:
    """Read a `classes.npz`: `names`, `embeddings`, `logit_scale`, optionally `prompts` and `tag`.

    Nothing pickled is loaded.

    Raises:
        InvalidVocabulary: names the file and says what is wrong with it.
    """
    return parse_vocabulary(read_arrays(Path(path)), Path(path))


def parse_vocabulary(arrays: Mapping[str, NDArray[Any]], path: Path) -> Vocabulary:
    """Make a vocabulary of the arrays of a `classes.npz`; others among them are passed over.

    Raises:
        InvalidVocabulary: names the file and says what is wrong with it.
    """
    if any(key not in arrays for key in REQUIRED):
        found = ", ".join(arrays) or "nothing"
        scale = (
            ""
            if "logit_scale" in arrays
            else ": logit_scale is what cosines are multiplied by, CLIP's is 100"
        )
        raise InvalidVocabulary(f"{path}: expected {', '.join(REQUIRED)} in it, found {found}{scale}")
    try:
        return Vocabulary.create(
            texts(arrays["names"], "names"),
            arrays["embeddings"],
            logit_scale=single(arrays["logit_scale"], "logit_scale"),
            prompts=texts(arrays.get("prompts", np.array([], dtype=np.str_)), "prompts"),
            tag=single_text(arrays.get("tag", np.array("")), "tag"),
        )
    except InvalidVocabulary as error:
        raise InvalidVocabulary(f"{path}: {error}") from None


def check_names(names: tuple[str, ...]) -> None:
    """Refuse names that cannot tell classes apart.

    Raises:
        InvalidVocabulary: no name, an empty one, or one twice.
    """
    if not names:
        raise InvalidVocabulary("expected at least one class name, found none")
    if any(not isinstance(name, str) or not name.strip() for name in names):
        raise InvalidVocabulary(f"expected class names, found an empty one, or no text, among {len(names)}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InvalidVocabulary(f"expected every class name once, found {twice[0]!r} more than once")


def unit_rows(names: tuple[str, ...], embeddings: NDArray[Any]) -> NDArray[np.float32]:
    """Scale rows (C, D) to unit length, in float64; rows that are unit already keep their bits.

    Raises:
        InvalidVocabulary: wrong shape, no real numbers, NaN or infinity, or a row of zeros.
    """
    if embeddings.ndim != 2 or len(embeddings) != len(names) or embeddings.shape[1] == 0:
        raise InvalidVocabulary(
            f"expected embeddings of shape ({len(names)}, D) for {len(names)} names, found {embeddings.shape}"
        )
    if embeddings.dtype.kind not in "fiu":
        raise InvalidVocabulary(f"expected embeddings of real numbers, found dtype {embeddings.dtype}")
    rows = embeddings.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise InvalidVocabulary(f"expected finite embeddings, found NaN or infinity for {names[bad[0]]!r}")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    zero = np.flatnonzero(lengths[:, 0] == 0)
    if len(zero):
        raise InvalidVocabulary(
            f"expected embeddings other than zero, found only zeros for {names[zero[0]]!r}"
        )
    # float32 rounding moves a unit row by less than 1e-6: dividing again would change a saved vocabulary.
    lengths[np.abs(lengths - 1.0) < 1e-6] = 1.0
    return (rows / lengths).astype(np.float32)


def read_arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    """All arrays of a `classes.npz`; nothing pickled is loaded.

    Raises:
        InvalidVocabulary: no such file, damaged, of another kind, or too large.
    """
    if not path.is_file():
        raise InvalidVocabulary(f"{path}: expected a classes.npz, found no such file")
    if not zipfile.is_zipfile(path):
        raise InvalidVocabulary(f"{path}: expected a classes.npz, found a truncated or another kind of file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            size = sum(member.file_size for member in archive.zip.infolist())
            if size > MOST_BYTES:
                raise ValueError(f"{size} bytes of them, more than {MOST_BYTES}")
            arrays = {key: archive[key] for key in archive.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("something else beside arrays")
        return arrays
    except Exception as error:  # a damaged file makes zipfile and numpy raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidVocabulary(f"{path}: expected arrays without pickled objects, found {reason}") from error


def texts(array: NDArray[Any], key: str) -> tuple[str, ...]:
    """The entries of a row of text.

    Raises:
        InvalidVocabulary: no row, no text, or characters that do not exist.
    """
    if array.ndim != 1 or array.dtype.kind != "U" or (array.itemsize == 0 and array.size > 1):
        raise InvalidVocabulary(
            f"expected {key} as a row of text, found {array.dtype} of shape {array.shape}"
        )
    try:
        entries = tuple(str(entry) for entry in array)
        "".join(entries).encode()
    except (SystemError, ValueError) as error:
        raise InvalidVocabulary(f"expected {key} as text, found characters that do not exist") from error
    return entries


def single_text(array: NDArray[Any], key: str) -> str:
    """The only text in an array.

    Raises:
        InvalidVocabulary: several, or no text.
    """
    if array.size != 1:
        raise InvalidVocabulary(f"expected one {key}, found {array.size}")
    return texts(array.reshape(-1), key)[0]


def single(array: NDArray[Any], key: str) -> float:
    """The only number in an array.

    Raises:
        InvalidVocabulary: several, or no real number.
    """
    if array.size != 1 or array.dtype.kind not in "fiu":
        raise InvalidVocabulary(f"expected one {key}, found {array.dtype} of shape {array.shape}")
    return float(array.reshape(()))
