from __future__ import annotations

import pytest

from crossmost.data.catalog import UNKNOWN
from crossmost.data.class_names import positions_known
from crossmost.errors import InputError


def test_known_names_are_found_however_they_are_written():
    found = positions_known(("night stand", "mug"), ("Mug", "night_stand", "table", "NightStand"))
    assert found.tolist() == [1, 0, UNKNOWN, 0]


def test_names_that_read_alike_are_refused():
    with pytest.raises(InputError, match="differ in more than case"):
        positions_known(("night stand", "night_stand"), ("mug",))
