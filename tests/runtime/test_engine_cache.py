"""Where engines are kept; which of them are found is in test_tensorrt_backend.py."""

from pathlib import Path

import pytest

from crossmost.runtime.engine_cache import cache_folder
from crossmost.runtime.whole_files import write_whole


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CROSSMOST_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c/engines"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/crossmost/engines"),
        ({"XDG_CACHE_HOME": "not/absolute"}, "/h/.cache/crossmost/engines"),
        ({}, "/h/.cache/crossmost/engines"),
    ],
)
def test_the_folder_follows_the_environment(monkeypatch, variables, expected):
    for name in ("CROSSMOST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/h", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_a_user_without_a_home_has_none(monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CROSSMOST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() is None


def test_a_file_is_whole_or_as_it_was(tmp_path, full_disk):
    path = tmp_path / "file"
    write_whole(path, b"old")
    with full_disk(1000), pytest.raises(OSError, match="large"):
        write_whole(path, b"x" * 2000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
