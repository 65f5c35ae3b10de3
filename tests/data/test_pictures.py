"""The user's own pictures: which files they are, and how any of them becomes 8-bit RGB."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossmost.data.pictures import Pictures, picture_paths, to_rgb


def test_pictures_are_found_by_suffix_in_any_case_and_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "2.PNG", "1.jpg", "3.JPEG", "²3.png", "4.txt", "views.json"):
        (tmp_path / name).touch()
    assert [path.name for path in picture_paths(tmp_path)] == ["1.jpg", "2.PNG", "3.JPEG", "10.png", "²3.png"]
    assert picture_paths(tmp_path / "nowhere") == []


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4", "<f4"])
def test_a_deep_picture_is_stretched_to_eight_bits(tmp_path: Path, kind: str) -> None:
    depth = np.linspace(500, 3000, 64)[None].repeat(8, 0).astype(kind)
    picture = Image.fromarray(depth)
    if kind.endswith("u2"):  # wider ones have no place in a .png
        picture.save(tmp_path / "a.png")
        picture = Image.open(tmp_path / "a.png")
    shown = np.asarray(to_rgb(picture))
    assert shown.shape == (8, 64, 3)
    assert (shown[:, 0] == 0).all()
    assert (shown[:, -1] == 255).all()
    assert (np.diff(shown[0, :, 0].astype(int)) > 0).all(), "none is cut off"


def test_what_is_no_number_is_black_and_a_picture_of_one_value_too() -> None:
    values = np.array([[1.0, 2.0, np.nan, np.inf]], dtype=np.float32)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 255, 0, 0]
    assert not np.asarray(to_rgb(Image.fromarray(np.full((2, 2), 40000, np.uint16)))).any()
    assert not np.asarray(to_rgb(Image.fromarray(np.full((2, 2), np.nan, np.float32)))).any()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK"])
def test_other_pictures_are_converted_as_they_always_were(mode: str) -> None:
    picture = Image.new("RGB", (4, 4), (200, 100, 50)).convert(mode)
    np.testing.assert_array_equal(np.asarray(to_rgb(picture)), np.asarray(picture.convert("RGB")))


def test_a_picture_stands_as_the_camera_was_held(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 0, 4, 4))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera lay on its side
    picture.save(tmp_path / "a.png", exif=turned)
    shown = np.asarray(Pictures([tmp_path / "a.png"], lambda *_: None)[0])
    assert shown.shape == (8, 4, 3)
    assert shown[0, 0].tolist() == [0, 0, 255]
    assert shown[-1, 0].tolist() == [255, 0, 0]


def test_a_picture_that_is_too_large_to_open_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    Image.new("1", (10, 10)).save(tmp_path / "a.png")
    noted: dict[str, str] = {}
    assert Pictures([tmp_path / "a.png"], lambda path, why: noted.update({path.name: why}))[0] is None
    assert "100 pixels" in noted["a.png"]


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_picture_whose_exif_is_damaged_is_noted(tmp_path: Path, name: str) -> None:
    width_as_text = struct.pack("<HHI4s", 0x0100, 2, 4, b"abc")
    lay_on_its_side = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    entries = struct.pack("<H", 2) + width_as_text + lay_on_its_side + struct.pack("<I", 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + entries
    Image.new("RGB", (8, 4)).save(tmp_path / name, exif=exif)
    noted: dict[str, str] = {}
    assert Pictures([tmp_path / name], lambda path, why: noted.update({path.name: why}))[0] is None
    assert noted[name]


def test_an_error_of_pillow_without_words_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise AttributeError

    monkeypatch.setattr(Image, "open", fail)
    noted: dict[str, str] = {}
    assert Pictures([tmp_path / "a.png"], lambda path, why: noted.update({path.name: why}))[0] is None
    assert noted == {"a.png": "AttributeError"}
