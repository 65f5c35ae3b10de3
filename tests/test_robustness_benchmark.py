"""The corruptions of benchmarks/robustness.py are those of ModelNet-C, and its tables say what was measured."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

corruptions, changes, robustness, robustness_table, summaries = (
    import_module(name) for name in ("corruptions", "changes", "robustness", "robustness_table", "summaries")
)
SEVERITIES = st.integers(1, 5)
SEEDS = st.integers(0, 2**32 - 1)


def ball(count: int = 1024, seed: int = 0) -> np.ndarray:
    """Points of the unit sphere around their mean."""
    points = np.random.default_rng(seed).normal(size=(count, 3))
    points -= points.mean(axis=0)
    return points / np.linalg.norm(points, axis=1).max()


def rows(points: np.ndarray) -> set[tuple[float, ...]]:
    return set(map(tuple, points.tolist()))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("scale", [1024] * 5),
        ("jitter", [1024] * 5),
        ("rotate", [1024] * 5),
        ("drop-global", [768, 640, 512, 384, 256]),
        ("drop-local", [924, 824, 724, 624, 524]),
        ("add-global", [1034, 1044, 1054, 1064, 1074]),
        ("add-local", [1124, 1224, 1324, 1424, 1524]),
    ],
)
def test_a_severity_leaves_the_published_number_of_points(name, sizes):
    found = [
        len(corruptions.CORRUPTIONS[name](ball(), severity, np.random.default_rng(severity)))
        for severity in corruptions.SEVERITIES
    ]
    assert found == sizes


@given(SEVERITIES, SEEDS)
@settings(max_examples=25, deadline=None)
def test_scaling_stretches_each_axis_within_its_range_and_normalizes(severity, seed):
    points = ball(64)
    scaled = corruptions.scale(points, severity, np.random.default_rng(seed))
    assert np.linalg.norm(scaled, axis=1).max() == pytest.approx(1)
    assert scaled.mean(axis=0) == pytest.approx(0, abs=1e-12)
    stretch = np.ptp(scaled, axis=0) / np.ptp(points, axis=0)
    # The common factor of the normalisation cancels out.
    assert stretch.max() / stretch.min() <= corruptions.SCALES[severity - 1] ** 2 + 1e-9


@given(SEVERITIES, SEEDS)
@settings(max_examples=25, deadline=None)
def test_rotating_is_rigid_and_within_the_angles(severity, seed):
    points = ball(64)
    turned = corruptions.rotate(points, severity, np.random.default_rng(seed))
    matrix = np.linalg.lstsq(points, turned, rcond=None)[0]
    assert matrix @ matrix.T == pytest.approx(np.eye(3), abs=1e-9)
    assert np.linalg.det(matrix) == pytest.approx(1)
    angle = np.arccos(np.clip((np.trace(matrix) - 1) / 2, -1, 1))
    assert angle <= 3 * np.pi / 6 * severity / 5 + 1e-9


@pytest.mark.parametrize("severity", [1, 5])
def test_jitter_has_the_published_deviation(severity):
    noise = corruptions.jitter(ball(), severity, np.random.default_rng(0)) - ball()
    assert noise.std() == pytest.approx(0.01 * severity, rel=0.05)


@pytest.mark.parametrize("name", ["drop-global", "drop-local"])
def test_dropping_only_drops(name):
    dropped = corruptions.CORRUPTIONS[name](ball(), 5, np.random.default_rng(1))
    assert rows(dropped) < rows(ball())


def test_dropping_locally_removes_what_is_nearest_to_a_point(monkeypatch):
    monkeypatch.setattr(corruptions, "CLUSTERS", (1, 1))
    points = ball()
    kept = corruptions.drop_local(points, 2, np.random.default_rng(3))
    gone = np.array(sorted(rows(points) - rows(kept)))
    assert len(gone) == 200
    reach = np.linalg.norm(gone[:, None] - gone[None], axis=2).max(axis=1)
    free = np.linalg.norm(kept[None] - gone[:, None], axis=2).min(axis=1)
    assert (reach <= free).any()


def test_dropping_more_than_there_is_says_so():
    with pytest.raises(ValueError, match="more than 500 points, found 400"):
        corruptions.drop_local(ball(400), 5, np.random.default_rng(0))


@given(st.sampled_from(["add-global", "add-local"]), SEVERITIES, SEEDS)
@settings(max_examples=25, deadline=None)
def test_adding_keeps_the_cloud_and_stays_in_the_unit_ball(name, severity, seed):
    points = ball(64)
    found = corruptions.CORRUPTIONS[name](points, severity, np.random.default_rng(seed))
    assert np.array_equal(found[:64], points)
    assert np.linalg.norm(found, axis=1).max() <= 1 + 1e-12


def test_strays_fill_the_ball_evenly():
    added = corruptions.add_global(np.empty((0, 3)), 2000, np.random.default_rng(0))
    inside = (np.linalg.norm(added, axis=1) < 0.5).mean()
    assert inside == pytest.approx(1 / 8, abs=0.01)


def test_a_cloud_is_corrupted_the_same_whatever_else_is_there():
    clouds = np.stack([ball(600, seed) for seed in range(3)])
    for name in corruptions.CORRUPTIONS:
        together = corruptions.corrupt(name, clouds, ["a", "b", "c"], 3, 0)
        alone = corruptions.corrupt(name, clouds[1:2], ["b"], 3, 0)
        assert np.array_equal(together[1], alone[0])
        assert not np.array_equal(alone[0], corruptions.corrupt(name, clouds[1:2], ["b"], 3, 1)[0])


def clouds_of(points: np.ndarray):
    count = len(points)
    return changes.Clouds(points, np.array(["bed"] * count), np.array(["test"] * count),
                          np.array([f"bed_{index}" for index in range(count)]), {})  # fmt: skip


def test_a_turn_about_the_up_axis_leaves_heights_alone():
    clouds = clouds_of(ball(32)[None])
    half = changes.turned_about_up(clouds, "180")[0]
    assert half == pytest.approx(clouds.points[0] * [-1, -1, 1], abs=1e-12)
    (any_angle,) = changes.turned_about_up(clouds, changes.ANY)
    assert np.array_equal(any_angle[:, 2], clouds.points[0, :, 2])
    assert not np.allclose(any_angle[:, :2], clouds.points[0, :, :2])


def test_a_wrong_axis_is_what_the_right_one_would_undo():
    clouds = clouds_of(ball(32)[None])
    for axis in changes.WRONG_AXES:
        (toppled,) = changes.with_wrong_axis(clouds, axis)
        assert not np.allclose(toppled, clouds.points[0])
        assert np.array_equal(changes.turn(toppled, axis), clouds.points[0])


def test_classes_outside_the_vocabulary_are_marked():
    assert changes.scene([], ["bed", "sword", "sofa"], ("bed", "sofa")).labels.tolist() == [0, -1, 1]


def test_a_network_is_described_by_what_it_gets_right():
    labels = np.array([0, 1, 1, -1])
    before = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    after = np.array([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.4, 0.6]])
    found = robustness.describe(after, labels, before, before)
    assert found["top1"] == pytest.approx(2 / 3)
    assert (found["won"], found["lost"]) == (1, 0)
    assert found["same"] == pytest.approx(1 / 2)
    assert found["confidence"] == pytest.approx((0.9 + 0.8 + 0.9) / 3)


def write_results(folder: Path, change: str, levels: tuple[str, ...], top1: float) -> None:
    for seed in range(3):
        networks = {
            name: {"top1": top1 + 0.01 * seed + 0.1 * index, "ece": 0.05, "confidence": 0.5, "won": 0, "lost": 0}
            for index, name in enumerate(robustness_table.NAMES)
        }  # fmt: skip
        entries = [{"level": level, "n": 9, "labelled": 9, "networks": networks} for level in levels]
        row = {"change": change, "seed": seed, "machine": "somewhere", "levels": entries}
        (folder / f"{change}_{seed}.json").write_text(json.dumps(row))


def test_tables_and_figures_are_made_from_the_results_there_are(tmp_path):
    write_results(tmp_path, "clean", ("0",), 0.8)
    write_results(tmp_path, "jitter", ("1", "2", "3", "4", "5"), 0.5)
    results = robustness_table.read(tmp_path)
    text = robustness_table.tables(results)
    assert "| none | 81.0 ± 1.0 | 91.0 ± 1.0 | 101.0 ± 1.0 | +10.0 ± 0.0 |" in text
    assert "| jitter | 51.0 ± 1.0 | 61.0 ± 1.0 | 71.0 ± 1.0 | +10.0 ± 0.0 | 51.0 ± 1.0 | 61.0 ± 1.0 |" in text
    assert "mean of the seven" not in text
    assert all(path.stat().st_size > 1000 for path in robustness_table.draw(results, tmp_path))


def test_a_cell_holds_mean_and_spread():
    assert summaries.cell([0.1, 0.2, 0.3]) == "20.0 ± 10.0"
    assert summaries.cell([0.1], signed=True) == "+10.0 ± 0.0"
    assert summaries.cell([1.25, 1.35], percent=False) == "1.300 ± 0.071"
    assert summaries.cell([]) == ""
