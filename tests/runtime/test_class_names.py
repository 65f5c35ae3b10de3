"""Class names as a user gives them."""

from __future__ import annotations

import pytest

from crossmost.runtime.class_names import read_class_names
from crossmost.runtime.vocabulary import InvalidVocabulary


def test_names_from_a_file(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeff# household\nmug\n\n  night stand  # beside the bed\nC#\r\ntable_lamp\n".encode())
    assert read_class_names(path) == ("mug", "night stand", "C#", "table_lamp")
    assert read_class_names(str(path)) == ("mug", "night stand", "C#", "table_lamp")


def test_names_from_a_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_class_names("mug, bowl,night stand,") == ("mug", "bowl", "night stand")
    assert read_class_names("mug,") == ("mug",)
    assert read_class_names("TV/monitor,bin") == ("TV/monitor", "bin")


def test_a_list_may_be_longer_than_the_name_of_a_file():
    names = tuple(f"class {number}" for number in range(1000))
    assert read_class_names(",".join(names)) == names


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("clases.txt", r"found 'clases\.txt', no such file"),
        ("lists/classes", "found 'lists/classes', no such file"),
        ("mug", "found 'mug', no such file: correct the name, or put a comma after a single class"),
        ("mug bowl " * 1000, r"mug\.\.\.', no such file"),
        ("mug\0", "no such file"),
        (",", "found none in ','"),
        ("mug,bowl,mug", "'mug' more than once"),
        ("Mug,mug", "CLIP ignores case"),
        ("night_stand,night stand", "reads an underscore as a space here"),
    ],
)
def test_what_names_no_classes(source, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidVocabulary, match=what) as caught:
        read_class_names(source)
    assert len(str(caught.value)) < 400


def test_files_that_name_no_classes(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing yet\n\n")
    with pytest.raises(InvalidVocabulary, match="found none"):
        read_class_names(empty)
    (tmp_path / "classes.npz").write_bytes(b"PK")
    with pytest.raises(InvalidVocabulary, match=r"found the vocabulary .*classes\.npz: give its names"):
        read_class_names(tmp_path / "classes.npz")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00mug")
    with pytest.raises(InvalidVocabulary, match="UTF-8"):
        read_class_names(tmp_path / "binary.txt")
    with pytest.raises(InvalidVocabulary, match=r"expected a text file .*, a folder"):
        read_class_names(tmp_path)
