from __future__ import annotations

import numpy as np
import pytest

from crossmost.checkpoints.sample import SAMPLE, load_sample, save_sample, take_sample
from crossmost.errors import InputError


def test_clouds_of_different_sizes_come_back_as_they_were(tmp_path, shapes):
    sample = take_sample(shapes)
    ragged = sample._replace(points=tuple(cloud[: 20 + row] for row, cloud in enumerate(sample.points)))
    save_sample(tmp_path / SAMPLE, ragged)
    found = load_sample(tmp_path / SAMPLE)
    assert (found.name, found.ids) == (ragged.name, ragged.ids)
    assert all((a == b).all() for a, b in zip(found.points, ragged.points, strict=True))


def test_it_is_spread_over_the_data_and_leaves_out_what_cannot_be_read(tmp_path, write_shapes, open_shapes):
    clouds = open_shapes(write_shapes(tmp_path / "shapes.npz", 24, bad=[0]))
    sample = take_sample(clouds, 4)
    assert sample.ids == ("shape8", "shape15", "shape23")
    assert (sample.points[0] == clouds.load(8)).all()


def test_a_run_keeps_a_sample_without_labels(finished_run, shapes):
    with np.load(finished_run / SAMPLE) as stored:
        assert set(stored.files) == {"name", "ids", "points", "sizes"}
    assert load_sample(finished_run / SAMPLE).ids == shapes.ids


@pytest.mark.parametrize("damage", ["missing", "truncated", "other arrays", "sizes"])
def test_a_damaged_sample_is_one_line(tmp_path, shapes, damage):
    path = tmp_path / SAMPLE
    save_sample(path, take_sample(shapes))
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "other arrays":
        np.savez(path, a=np.zeros(3))
    else:
        with np.load(path) as stored:
            arrays = dict(stored)
        arrays["sizes"][0] += 1
        np.savez(path, **arrays)
    with pytest.raises(InputError, match=r"sample\.npz: expected clouds kept by `crossmost train`"):
        load_sample(path)
