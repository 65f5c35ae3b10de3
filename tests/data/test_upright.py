"""The guess of the up axis: equivariant, right about many whole objects, unsure where it cannot know."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.data.upright import CANDIDATES, UNSURE, UpGuess, decide, up_probabilities
from crossmost.runtime.orientation import AXES, rotation

DRAWS = 300
GROUP = 32

# Test splits that are stored z-up are turned to y-up; the airplanes and bathtubs are y-up as they are.
REAL = {
    "modelnet10_vox30_1024": True,
    "cc0_lowpoly_1024": True,
    "modelnet40_airplane_bathtub_2048": False,
    "lidarnet4_real_512": True,
}


def y_up_clouds(shared_data: Path, name: str) -> np.ndarray:
    with np.load(shared_data / f"{name}.npz", allow_pickle=False) as data:
        points = data["points"][data["split"] == "test", :1024].astype(np.float32)
    return points @ rotation("y").astype(np.float32) if REAL[name] else points


def table(seed: int = 0) -> np.ndarray:
    """A table, z up, normalised."""
    rng = np.random.default_rng(seed)
    top = rng.uniform((-1, -0.6, 0.9), (1, 0.6, 1.0), (700, 3))
    corners = [(x, y, 0.0) for x in (-0.95, 0.95) for y in (-0.55, 0.55)]
    legs = np.concatenate([rng.uniform((-0.05, -0.05, 0), (0.05, 0.05, 0.9), (60, 3)) + at for at in corners])
    points = np.concatenate([top, legs])
    points -= points.mean(axis=0)
    return (points / np.linalg.norm(points, axis=1).max()).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(AXES), st.integers(0, 1000))
def test_turning_a_cloud_turns_the_guess_with_it(axis: str, seed: int) -> None:
    upright = table(seed)
    turned = upright @ rotation(axis).astype(np.float32)  # z-up to axis-up
    before, after = up_probabilities(upright), up_probabilities(turned)
    assert before.sum() == pytest.approx(1)
    assert after[CANDIDATES.index(axis)] == pytest.approx(before[CANDIDATES.index("z")], abs=0.05)
    assert CANDIDATES[int(after.argmax())] == axis


def guess(clouds: Iterable[np.ndarray]) -> UpGuess:
    return decide(np.array([up_probabilities(cloud) for cloud in clouds]))


def test_many_tables_agree_and_balls_do_not_tell() -> None:
    assert guess(table(seed) for seed in range(8)).axis == "z"
    rng = np.random.default_rng(0)
    balls = rng.normal(size=(8, 1000, 3)).astype(np.float32)
    balls /= np.linalg.norm(balls, axis=2, keepdims=True)
    assert guess(balls).axis == UNSURE


def test_one_cloud_must_be_surer_than_many() -> None:
    chance = np.array([[0.1, 0.1, 0.05, 0.05, 0.6, 0.1]])
    assert decide(chance).axis == UNSURE
    assert decide(np.repeat(chance, 8, axis=0)).axis == "z"
    close = np.array([[0.0, 0.0, 0.45, 0.0, 0.55, 0.0]] * 50)
    assert decide(close).axis == UNSURE, "two axes as likely as each other"
    assert decide(chance).share == dict(zip(CANDIDATES, chance[0], strict=True))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_degenerate_clouds_get_probabilities_too(count: int) -> None:
    for points in (np.zeros((count, 3)), np.eye(3)[:count]):
        chance = up_probabilities(points.astype(np.float32))
        assert np.isfinite(chance).all()
        assert chance.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", REAL)
def test_measured_on_real_clouds_turned_to_y_up(shared_data: Path, name: str) -> None:
    """Prints, with -s, the row of the table in `decide`."""
    chances = np.array([up_probabilities(cloud) for cloud in y_up_clouds(shared_data, name)])
    alone = [decide(one[None]).axis for one in chances]
    rng = np.random.default_rng(0)
    groups = [decide(chances[rng.choice(len(chances), GROUP, replace=False)]).axis for _ in range(DRAWS)]
    rates = []
    for answers in (alone, groups):
        sure = [answer for answer in answers if answer != UNSURE]
        rates += [len(sure) / len(answers), sure.count("y") / len(sure) if sure else np.nan]
    print(f"\n| {name} | " + " | ".join(f"{rate:.2f}" for rate in rates) + " |")
    if name == "lidarnet4_real_512":
        assert rates[2] < 0.02, "scans from one side do not tell, and it must say so"
        assert rates[0] < 0.05
    else:
        assert rates[2] > 0.5
        assert rates[3] > 0.99
