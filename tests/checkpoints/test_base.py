"""A base on disk: what is refused before a network is built of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossmost.checkpoints.base import FORMAT, describe, load_base, save_base
from crossmost.checkpoints.destination import check_destination
from crossmost.checkpoints.store import save_weights
from crossmost.errors import InputError


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, tiny_base: Path, value: float) -> None:
    model, architecture = load_base(tiny_base)
    model.point_projection.data[0, 0] = value
    save_base(tmp_path / "base.safetensors", model, architecture, {})
    with pytest.raises(InputError, match=r"found NaN or infinity in 'point_projection' \(1 such\): make or"):
        load_base(tmp_path / "base.safetensors")


@pytest.mark.parametrize(
    ("noted", "said"),
    [
        ({"dim": "-1"}, "expected a dim of at least 1, found -1"),
        ({"point_card": "[]"}, "list"),
        ({"point_card": '{"groups": 0}'}, "groups Input should be greater than or equal to 1"),
        ({"point_card": '{"up_axis": "w"}'}, "expected an up_axis of x, y, z, .* found 'w'"),
        ({"image_card": '{"image_size": 16}'}, "an image card without an open_clip name needs"),
    ],
)
def test_a_description_of_no_network_is_one_line(
    tmp_path: Path, tiny_base: Path, noted: dict[str, str], said: str
) -> None:
    model, architecture = load_base(tiny_base)
    described = describe(architecture)
    card = noted.get("point_card", "")
    if card.startswith("{"):
        noted = {"point_card": json.dumps(json.loads(described["point_card"]) | json.loads(card))}
    path = tmp_path / "base.safetensors"
    save_weights(path, model.state_dict(), {"format": FORMAT, **described, **noted})
    with pytest.raises(InputError, match=said) as error:
        load_base(path)
    assert str(error.value).startswith(f"{path}: its description of the architecture cannot be read: ")
    assert "\n" not in str(error.value)


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
