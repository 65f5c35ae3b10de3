from pathlib import Path

import pytest

from crossmost.runtime.cuda_driver import Gpu
from crossmost.runtime.engine_errors import EngineBuildFailed
from crossmost.runtime.engine_packages import TensorRt
from crossmost.runtime.engine_timing import TimingCache, timing_key


class FakeCache:
    """Timings as a set of words."""

    def __init__(self, content: bytes):
        self.words = set(content.split())

    def combine(self, other: "FakeCache", ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.words |= other.words
        return True

    def serialize(self) -> bytes:
        return b" ".join(sorted(self.words))


class FakeConfig:
    """The part of a builder's configuration that holds a timing cache; refuses timings of another TensorRT."""

    def create_timing_cache(self, content: bytes) -> FakeCache | None:
        return None if content == b"damaged" else FakeCache(content)

    def set_timing_cache(self, cache: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if b"other-version" in cache.words:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> FakeCache:
        return self.cache


def build(cache: TimingCache, *timings: bytes) -> FakeConfig:
    config = FakeConfig()
    cache.attach(config)
    config.cache.words |= set(timings)
    return config


def tensorrt(**changes: str) -> TensorRt:
    values = {
        "version": "10.13.3.9",
        "name": "NVIDIA H100 80GB HBM3",
        "capability": "9.0",
        "driver": "13.0",
        **changes,
    }
    gpu = Gpu(values["name"], values["capability"])
    return TensorRt("tensorrt", None, values["version"], gpu, values["driver"])


@pytest.fixture
def cache(tmp_path) -> TimingCache:
    return TimingCache(tmp_path / "timings", timing_key(tensorrt()))


def content(cache: TimingCache) -> bytes:
    return (cache.folder / f"{cache.key}.cache").read_bytes()


def test_the_key_tells_gpu_capability_version_and_driver_apart():
    changes = [{}, {"version": "10.14"}, {"name": "NVIDIA H200"}, {"capability": "8.9"}, {"driver": "12.8"}]
    keys = [timing_key(tensorrt(**change)) for change in changes]
    assert len(set(keys)) == len(keys)
    assert keys[0] == "tensorrt-10.13.3.9-nvidia-h100-80gb-hbm3-9.0-cuda13.0"


def test_the_key_is_a_plain_file_name_whatever_the_gpu_is_called():
    key = timing_key(tensorrt(name="../GeForce RTX™ 4090 / Ti"))
    assert Path(key).name == key
    assert key.isascii()
    assert " " not in key


def test_a_later_build_knows_the_timings_of_an_earlier_one(cache):
    assert cache.store(build(cache, b"a")) == ()
    assert build(cache).cache.words == {b"a"}


def test_builds_side_by_side_keep_each_others_timings(cache):
    left, right = build(cache, b"left"), build(cache, b"right")
    assert cache.store(left) == ()
    assert cache.store(right) == ()
    assert content(cache) == b"left right"


@pytest.mark.parametrize("found", [b"damaged", b"other-version"])
def test_timings_that_cannot_be_used_count_as_none(cache, found):
    cache.store(build(cache, b"a"))
    (cache.folder / f"{cache.key}.cache").write_bytes(found)
    assert build(cache).cache.words == set()


def test_a_folder_that_cannot_be_used_is_said_before_the_build(tmp_path):
    (tmp_path / "timings").write_text("a file")
    with pytest.raises(EngineBuildFailed, match="leave out --timing-cache"):
        build(TimingCache(tmp_path / "timings", "key"))


def test_timings_that_cannot_be_written_are_a_note_and_the_old_ones_stay(cache, full_disk):
    cache.store(build(cache, b"a"))
    config = build(cache, b"b" * 4096)
    with full_disk(1000):
        notes = cache.store(config)
    assert len(notes) == 1
    assert "the timing cache was not updated" in notes[0]
    assert "\n" not in notes[0]
    assert content(cache) == b"a"
