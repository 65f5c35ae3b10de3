"""A base on disk: what is refused before a network is built of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossmost.checkpoints.base import load_base, save_base
from crossmost.checkpoints.destination import check_destination
from crossmost.errors import InputError


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, tiny_base: Path, value: float) -> None:
    model, architecture = load_base(tiny_base)
    model.point_projection.data[0, 0] = value
    save_base(tmp_path / "base.safetensors", model, architecture, {})
    with pytest.raises(InputError, match=r"found NaN or infinity in 'point_projection' \(1 such\): make or"):
        load_base(tmp_path / "base.safetensors")


def test_a_path_that_is_no_utf_8_is_refused_before_the_work_and_named_where_a_file_lies_there(
    tmp_path: Path, tiny_base: Path
) -> None:
    folder = tmp_path / "l\udcfc"
    folder.mkdir()
    path = folder / "base.safetensors"
    with pytest.raises(InputError, match=r"expected a path in UTF-8, .*: rename it"):
        check_destination(path, ".safetensors", [], overwrite=False)
    path.write_bytes(tiny_base.read_bytes())
    with pytest.raises(InputError, match=r"expected a path in UTF-8, .*: rename it"):
        load_base(path)
