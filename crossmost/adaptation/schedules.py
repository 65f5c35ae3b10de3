"""Learning rate and EMA decay as functions of the step (METHOD 1.5, 2.1)."""

from __future__ import annotations

import math

from crossmost.config import TrainConfig

CLOUDS_PER_LEARNING_RATE = 256


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig, card_rate: float) -> float:
    """Linear from 0 to the peak over the warm-up, then a cosine down to the floor; the last step is after the warm-up.

    Args:
        step: optimiser steps taken so far.
        steps_per_epoch: optimiser steps in an epoch.
        config: the run's options.
        card_rate: the rate per 256 clouds that suits the architecture, where the run names none.
    """
    clouds = config.batch_size * config.accumulate
    peak = (config.learning_rate or card_rate) * clouds / CLOUDS_PER_LEARNING_RATE
    floor = peak * config.min_learning_rate_ratio
    steps = config.epochs * steps_per_epoch
    warmup = min(config.warmup_epochs * steps_per_epoch, steps - 1)
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / (steps - warmup)
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * min(1.0, progress)))


def ema_decay(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """The teacher's share of its own past, rising linearly.

    As published the ramp takes 400 steps and ends at 0.9998, which is many epochs of a small set. In epochs,
    the ramp ends where the teacher remembers `ema_memory_epochs`, if that is sooner.

    Args:
        step: optimiser steps taken so far.
        steps_per_epoch: optimiser steps in an epoch.
        config: the run's options.
    """
    start, end, ramp = config.ema_start, config.ema_end, float(config.ema_ramp_steps)
    if config.ema_ramp == "epochs":
        ramp = config.ema_ramp_epochs * steps_per_epoch
        end = min(end, 1 - 1 / max(2.0, config.ema_memory_epochs * steps_per_epoch))
        start = min(start, end)
    return start + (end - start) * min(1.0, step / ramp)
