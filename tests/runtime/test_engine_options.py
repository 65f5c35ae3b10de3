import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossmost.runtime.engine_errors import InvalidEngineRequest
from crossmost.runtime.engine_options import EngineOptions, Profile, parse_profile


@given(st.lists(st.integers(1, 999_999_999), min_size=3, max_size=3).map(sorted))
def test_sizes_in_order_are_read_as_written(sizes):
    found = parse_profile(":".join(map(str, sizes)))
    assert (found.min, found.opt, found.max) == found.sizes == tuple(sizes)


def test_one_number_is_the_only_size():
    assert parse_profile(" 1024 ") == Profile(1024, 1024, 1024)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "1:8",
        "1:8:64:9",
        "a:b:c",
        "1:8:",
        "-1:8:64",
        "1.5:8:64",
        "1: 8:64",
        "1e1",
        "٣",
        "9" * 10,
        "0x8",
    ],
)
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(InvalidEngineRequest, match="1:8:64") as caught:
        parse_profile(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["8:1:64", "1:65:64", "0:8:64", "0"])
def test_sizes_out_of_order_are_refused(text):
    with pytest.raises(InvalidEngineRequest, match="min <= opt <= max"):
        parse_profile(text)


@given(st.text())
def test_no_text_ends_otherwise(text):
    with contextlib.suppress(InvalidEngineRequest):
        parse_profile(text)


@pytest.mark.parametrize(
    "options", [{"optimization_level": 6}, {"optimization_level": -1}, {"workspace_bytes": 0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidEngineRequest, match="expected"):
        EngineOptions(**options)
