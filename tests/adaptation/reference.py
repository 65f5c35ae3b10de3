"""METHOD sections 1 and 2 once more, slowly: plain loops in float64, written without looking at the package.

Nothing here is fast, batched or clever, so that each function can be read beside the paragraph it follows.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def f64(x: Any) -> Array:
    """Whatever it is (tensor, array, list) in float64."""
    return np.asarray(x.detach().numpy() if hasattr(x, "detach") else x, dtype=np.float64)


def softmax(row: Array) -> Array:
    weights = [math.exp(value - max(row)) for value in row]
    return np.array([weight / math.fsum(weights) for weight in weights])


def log_softmax(row: Array) -> Array:
    top = max(row)
    total = math.fsum(math.exp(value - top) for value in row)
    return np.array([value - top - math.log(total) for value in row])


def unit(vector: Array) -> Array:
    return vector / math.sqrt(math.fsum(value * value for value in vector))


# 1.5 Teacher and 2.1 schedule


def ema_decay(step: int, start: float = 0.99, end: float = 0.9998, ramp: int = 400) -> float:
    return start + (end - start) * min(1.0, step / ramp)


def initial_teacher_left(steps: int) -> float:
    """The weight that the zero-shot teacher still has after that many optimiser steps."""
    left = 1.0
    for step in range(steps):
        left *= ema_decay(step)
    return left


def learning_rate(step: int, per_epoch: int, epochs: int, global_batch: int, base: float = 2e-5) -> float:
    """Linear from 0 to the peak over one epoch, then a cosine to a floor of a twentieth of the peak."""
    peak, floor = base * global_batch / 256, base / 20 * global_batch / 256
    if step < per_epoch:
        return peak * step / per_epoch
    share = (step - per_epoch) / (per_epoch * (epochs - 1))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * share))


def layer_multipliers(depth: int = 12, decay: float = 0.65) -> list[float]:
    """By id: 0 embeddings, k + 1 block k, depth + 1 all the rest."""
    return [decay ** (depth + 1 - index) for index in range(depth + 2)]


# 1.6 Joint pseudo-labels


def winner(point: Array, image: Array, beta: float) -> list[tuple[int, float, bool]]:
    """(label, confidence, tie) of each sample; on a tie the published label is undefined."""
    answers = []
    for p, i in zip(point, image, strict=True):
        s_point, s_image = beta * max(p), max(i)
        label = int(np.argmax(p)) if s_point > s_image else int(np.argmax(i))
        answers.append((label, max(s_point, s_image), s_point == s_image))
    return answers


def agreement(point: Array, image: Array) -> list[tuple[int, bool]]:
    """(the point branch's label, kept) of each sample."""
    answers = []
    for p, i in zip(point, image, strict=True):
        same = int(np.argmax(p)) == int(np.argmax(i))
        answers.append((int(np.argmax(p)), same and min(max(p), max(i)) > 0.2))
    return answers


# 1.7 Classification and fairness


def self_training(logits: Array, labels: Sequence[int], kept: Sequence[bool]) -> float:
    losses = [-log_softmax(row)[label] for row, label, keep in zip(logits, labels, kept, strict=True) if keep]
    return math.fsum(losses) / len(losses) if losses else 0.0


def fairness(logits: Array) -> float:
    classes = logits.shape[1]
    mean = [math.fsum(softmax(row)[c] for row in logits) / len(logits) for c in range(classes)]
    return -math.fsum(math.log(share) for share in mean) / classes


def cross_entropy(shares: Array, mean: Array) -> float:
    return -math.fsum(share * math.log(value) for share, value in zip(shares, mean, strict=True))


# 1.8 Masked modelling


def image_reconstruction(predicted: Array, target: Array, mask: NDArray[np.bool_], divisor: int) -> float:
    batch, channels, height, width = predicted.shape
    cell = height // mask.shape[1]
    error, masked = 0.0, 0
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                if mask[b, y // cell, x // cell]:
                    masked += 1
                    error += sum(abs(predicted[b, c, y, x] - target[b, c, y, x]) for c in range(channels))
    return error / masked / divisor if masked else 0.0


def mask_token_regression(predicted: Array, mask_token: Array, mask: NDArray[np.bool_]) -> float:
    """Divided by the masked tokens of the batch and once more by B, not by the channels."""
    error = sum(abs(predicted[b, g] - mask_token).sum() for b, g in np.argwhere(mask))
    return float(error) / mask.sum() / len(predicted) if mask.any() else 0.0


def token_regression(predicted: Array, tokens: Array, mask: NDArray[np.bool_]) -> float:
    errors = [abs(predicted[b, g] - tokens[b, g]).mean() for b, g in np.argwhere(mask)]
    return math.fsum(errors) / len(errors) if errors else 0.0


def chamfer(first: Array, second: Array) -> float:
    there = [min(((a - b) ** 2).sum() for b in second) for a in first]
    back = [min(((a - b) ** 2).sum() for a in first) for b in second]
    return math.fsum(there) / len(there) + math.fsum(back) / len(back)


def patch_reconstruction(predicted: Array, patches: Array, mask: NDArray[np.bool_]) -> float:
    """Chamfer in units of each patch's radius: the distance of its farthest point to the centre."""
    errors = []
    for b, g in np.argwhere(mask):
        xyz = patches[b, g, :, :3]
        radius = math.sqrt(max((point**2).sum() for point in xyz))
        errors.append(chamfer(predicted[b, g].reshape(-1, 3), xyz / radius))
    return math.fsum(errors) / len(errors) if errors else 0.0


def hidden_image_cells(mask: NDArray[np.bool_], cell: int) -> int:
    """How many whole cells of `cell` x `cell` patches are hidden; -1 where one is hidden in part."""
    hidden = 0
    for y in range(0, mask.shape[0], cell):
        for x in range(0, mask.shape[1], cell):
            block = mask[y : y + cell, x : x + cell]
            if block.any() != block.all():
                return -1
            hidden += bool(block.all())
    return hidden


def is_block(centers: Array, mask: NDArray[np.bool_]) -> bool:
    """Whether some centre exists of which the hidden ones are the nearest, itself included."""
    for start in np.flatnonzero(mask):
        distances = ((centers - centers[start]) ** 2).sum(axis=1)
        if mask.all() or distances[mask].max() <= distances[~mask].min():
            return True
    return False


# 1.9 Global-local alignment


def global_local(local: Array, whole: Array, mask: NDArray[np.bool_]) -> float:
    distances = [((unit(local[b, j]) - unit(whole[b])) ** 2).sum() for b, j in np.argwhere(mask)]
    return math.fsum(distances) / len(distances) if distances else 0.0


# 1.10 Cross-modal alignment


def cross_modal(point: Array, image: Array, temperature: float = 1.0, dropped: Any = None) -> float:
    """Both directions summed; `dropped[i, j]` takes the pair out of the negatives."""
    count = len(point)
    total = 0.0
    for rows, columns, out in (
        (point, image, dropped),
        (image, point, None if dropped is None else dropped.T),
    ):
        for i in range(count):
            there = [j for j in range(count) if j == i or out is None or not out[i, j]]
            scores = [float(rows[i] @ columns[j]) / temperature for j in there]
            total -= log_softmax(np.array(scores))[there.index(i)] / count
    return total


# 1.11 Total


def total(
    terms: dict[str, dict[str, float]], cross: float, point_weight: float, cross_weight: float
) -> float:
    """`terms["point"]` and `terms["image"]` hold st, fair, mim and gl."""
    image, point = (t["st"] + t["fair"] + t["mim"] + 0.2 * t["gl"] for t in (terms["image"], terms["point"]))
    return image + point_weight * point + cross_weight * cross


# The gradient of any of the above


def gradient(function: Any, x: Array, step: float = 1e-6) -> Array:
    """Central differences."""
    slope = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        slope[index] = (function(up) - function(down)) / (2 * step)
    return slope
