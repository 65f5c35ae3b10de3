"""Learning rate and EMA decay with the numbers METHOD 1.5, 2.1 and 6.2 name."""

from collections.abc import Callable
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.adaptation.schedules import ema_decay, learning_rate
from crossmost.config import TrainConfig

FEW = settings(max_examples=25, deadline=None)

Published = Callable[..., TrainConfig]
CARD_RATE = 1.0  # never used where the run names a rate


@pytest.mark.parametrize(("batch_size", "peak", "floor"), [(128, 4e-5, 2e-6), (64, 2e-5, 1e-6)])
def test_peak_and_floor_of_four_times_the_batch(
    published: Published, batch_size: int, peak: float, floor: float
) -> None:
    config = published(batch_size=batch_size, accumulate=4, epochs=200)
    rates = [learning_rate(step, 10, config, CARD_RATE) for step in range(2001)]
    assert max(rates) == pytest.approx(peak, rel=1e-9)
    assert rates[10] == pytest.approx(peak, rel=1e-9)  # one epoch of warm-up
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(floor, rel=1e-9)
    assert min(rates[10:]) == pytest.approx(floor, rel=1e-9)


@given(step=st.integers(0, 1000), per_epoch=st.integers(1, 100), epochs=st.integers(2, 200))
@FEW
def test_learning_rate_step_by_step(
    reference: ModuleType, published: Published, step: int, per_epoch: int, epochs: int
) -> None:
    config = published(batch_size=128, accumulate=4, epochs=epochs)
    step = min(step, per_epoch * epochs)
    expected = reference.learning_rate(step, per_epoch, epochs, 512)
    assert learning_rate(step, per_epoch, config, CARD_RATE) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_the_global_batch_counts_however_it_is_made(published: Published) -> None:
    one, many = published(batch_size=512, accumulate=1), published(batch_size=64, accumulate=8)
    assert learning_rate(77, 10, one, CARD_RATE) == pytest.approx(learning_rate(77, 10, many, CARD_RATE))


def test_a_run_without_a_rate_takes_the_cards(published: Published) -> None:
    config = published(learning_rate=None, batch_size=256, accumulate=1)
    assert learning_rate(10, 10, config, 1e-3) == pytest.approx(1e-3)


@pytest.mark.parametrize(("epochs", "per_epoch"), [(1, 1), (1, 8), (2, 1)])
def test_the_last_step_of_a_short_run_is_at_the_peak(
    published: Published, epochs: int, per_epoch: int
) -> None:
    config = published(warmup_epochs=5.0, batch_size=256, accumulate=1, epochs=epochs)
    assert learning_rate(epochs * per_epoch - 1, per_epoch, config, CARD_RATE) == pytest.approx(2e-5)


def test_no_warmup_starts_at_the_peak_and_the_end_never_rises_again(published: Published) -> None:
    config = published(warmup_epochs=0.0, batch_size=256, accumulate=1, epochs=2)
    assert learning_rate(0, 10, config, CARD_RATE) == pytest.approx(2e-5)
    assert learning_rate(40, 10, config, CARD_RATE) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("step", "decay"), [(0, 0.99), (200, 0.9949), (400, 0.9998), (401, 0.9998), (10**6, 0.9998)]
)
@pytest.mark.parametrize("steps_per_epoch", [1, 4, 1000])
def test_ema_decay_as_published_whatever_the_epoch(
    published: Published, reference: ModuleType, step: int, decay: float, steps_per_epoch: int
) -> None:
    found = ema_decay(step, steps_per_epoch, published())
    assert found == pytest.approx(decay, abs=1e-12)
    assert found == pytest.approx(reference.ema_decay(step), abs=1e-12)


@pytest.mark.parametrize(("steps", "left"), [(100, 0.41), (200, 0.22), (400, 0.13), (800, 0.12)])
def test_how_much_of_the_initial_teacher_is_left(
    published: Published, reference: ModuleType, steps: int, left: float
) -> None:
    share = 1.0
    for step in range(steps):
        share *= ema_decay(step, 4, published())
    assert share == pytest.approx(left, abs=0.006)
    assert share == pytest.approx(reference.initial_teacher_left(steps), rel=1e-9)


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 8, 100, 2000])
def test_the_ramp_in_epochs_is_the_same_share_of_any_run(published: Published, steps_per_epoch: int) -> None:
    config = published(ema_ramp="epochs", ema_ramp_epochs=2.0, ema_memory_epochs=2.0)
    decays = [ema_decay(step, steps_per_epoch, config) for step in range(4 * steps_per_epoch + 1)]
    assert decays == sorted(decays)
    assert all(0 < decay < 1 for decay in decays)
    end = min(0.9998, 1 - 1 / max(2.0, 2.0 * steps_per_epoch))
    assert decays[2 * steps_per_epoch :] == pytest.approx([end] * (2 * steps_per_epoch + 1))


def test_a_small_set_forgets_its_first_teacher_sooner_in_epochs(published: Published) -> None:
    steps, in_epochs = 8 * 10, published(ema_ramp="epochs", ema_ramp_epochs=2.0, ema_memory_epochs=2.0)
    left = {"steps": 1.0, "epochs": 1.0}
    for step in range(steps):
        left["steps"] *= ema_decay(step, 8, published())
        left["epochs"] *= ema_decay(step, 8, in_epochs)
    assert left["epochs"] < 0.05 < left["steps"]
