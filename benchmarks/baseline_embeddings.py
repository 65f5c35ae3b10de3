"""Baselines on the embeddings of a frozen base: caches of the test stream, class means, a linear probe.

Written from the descriptions in the papers that each names. What they are set to was fixed before any target label
was looked at: as published where the paper says, else at the value that stands beside the constant.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from baseline_features import Frozen
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from crossmost.adaptation.pseudo_labels import class_thresholds, most_likely
from crossmost.evaluation.metrics import softmax
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.test_time_cache import TestTimeCache

Rows = NDArray[np.float32]
Posterior = NDArray[np.float64]  # (n, C)

KEPT_SHARE = 0.5
"""Of each class's pseudo-labels, the surest half makes its mean."""
ROUNDS = 10
PUBLISHED_CAPACITY, PUBLISHED_ALPHA, PUBLISHED_BETA = 3, 2.0, 3.0
"""Point-Cache's positive cache on ModelNet-C: clouds of a class, weight in logits, sharpness."""
PROBE_C = 1.0
HALF = 0.5
"""What DN subtracts of the mean. The whole mean is no published setting: it came from looking at results."""


def stream_order(count: int, seed: int) -> NDArray[np.int64]:
    """The order in which a stream of `count` clouds arrives: archives are sorted by class, streams are not."""
    return np.random.default_rng([seed, count]).permutation(count)


def zero_shot(frozen: Frozen, branch: str, seed: int) -> Posterior:
    """The base as it is."""
    return softmax(frozen.logits(getattr(frozen.test, branch)))


def runtime_cache(frozen: Frozen, branch: str, seed: int) -> Posterior:
    """`crossmost.runtime.TestTimeCache` as it is set by default, on the test stream alone."""
    return _through_cache(TestTimeCache(), frozen, branch, seed)


def filled_cache(frozen: Frozen, branch: str, seed: int) -> Posterior:
    """The same cache, which has met the training split, unlabelled, before the test stream begins."""
    cache = TestTimeCache()
    rows = frozen.train.unit(branch)
    cache.scores(ClassBank.plain(frozen.vocabulary), rows[stream_order(len(rows), seed)])
    return _through_cache(cache, frozen, branch, seed)


def _through_cache(cache: TestTimeCache, frozen: Frozen, branch: str, seed: int) -> Posterior:
    rows = frozen.test.unit(branch)
    order = stream_order(len(rows), seed)
    found = np.empty((len(rows), frozen.classes))
    found[order] = cache.scores(ClassBank.plain(frozen.vocabulary), rows[order])
    return found


def published_cache(frozen: Frozen, branch: str, seed: int) -> Posterior:
    """The positive, global cache of Point-Cache (Sun et al., CVPR 2025) as TDA (Karmanov et al., CVPR 2024) has it.

    Each class holds the three clouds of least entropy that were predicted to be it. A cloud is entered before it is
    answered. Its affinities exp(-beta (1 - cosine)) to what each class holds are summed and added to its logits.
    Left out: the cache of local parts and the negative cache.
    """
    rows = frozen.test.unit(branch)
    logits = frozen.logits(rows)
    posterior = softmax(logits)
    entropy = -(posterior * np.log(np.maximum(posterior, 1e-12))).sum(axis=1)
    held: list[list[int]] = [[] for _ in range(frozen.classes)]
    for cloud in stream_order(len(rows), seed).tolist():
        members = held[int(posterior[cloud].argmax())]
        members.append(cloud)
        members.sort(key=entropy.__getitem__)
        del members[PUBLISHED_CAPACITY:]
        for index, group in enumerate(held):
            affinity = np.exp(-PUBLISHED_BETA * (1 - rows[group] @ rows[cloud]))
            logits[cloud, index] += PUBLISHED_ALPHA * float(affinity.sum())
    return softmax(logits)


def normalized(frozen: Frozen, branch: str, seed: int) -> Posterior:
    """Distribution normalisation, DN (Zhou et al., NeurIPS 2023): half the target's mean embedding is subtracted.

    Written out, half of what a class's logit is on the average over the unlabelled training split goes from it; the
    mean text embedding, which DN subtracts too, shifts all classes alike.
    """
    return _less_the_mean(frozen, branch, HALF)


def centered(frozen: Frozen, branch: str, seed: int) -> Posterior:
    """The same with the whole mean: a class is judged by how far its logit is above its own average."""
    return _less_the_mean(frozen, branch, 1.0)


def _less_the_mean(frozen: Frozen, branch: str, share: float) -> Posterior:
    average = frozen.logits(getattr(frozen.train, branch)).mean(axis=0)
    return softmax(frozen.logits(getattr(frozen.test, branch)) - share * average)


def centered_stream(frozen: Frozen, branch: str, seed: int) -> Posterior:
    """The same online: the average is that of the test stream up to and with the cloud that is answered."""
    rows = getattr(frozen.test, branch)
    order = stream_order(len(rows), seed)
    logits = frozen.logits(rows)[order]
    so_far = logits.cumsum(axis=0) / np.arange(1, len(rows) + 1)[:, None]
    found = np.empty_like(logits)
    found[order] = softmax(logits - so_far)
    return found


class Means(NamedTuple):
    """Class vectors that were fitted to pseudo-labels, and the labels of each round."""

    vectors: Rows  # (C, D) unit rows
    labels: list[NDArray[np.int64]]  # of each round, (n,)
    kept: list[NDArray[np.bool_]]  # of each round, (n,)


def fit_means(rows: Rows, text: Rows, scale: float, *, with_text: bool) -> Means:
    """Nearest class mean on confident pseudo-labels, iterated until no label changes.

    Round by round: classify by the class vectors (the text embeddings at first), keep the surest of each class's
    predictions, take the mean of their embeddings as the class's vector. A class without predictions keeps its
    vector. Iterated centroids are those of SHOT (Liang et al., ICML 2020), from hard labels that are kept by
    confidence as in T3A (Iwasawa and Matsuo, NeurIPS 2021), whose support set begins with the classifier's own
    vectors: `with_text` is that.

    Args:
        rows: (n, D) unit rows, unlabelled.
        text: (C, D) unit rows.
        scale: of the logits.
        with_text: a class vector is the mean of the text embedding and the unit mean of the clouds.
    """
    vectors, labels, kept = text.copy(), [], []
    for _ in range(ROUNDS):
        sure = most_likely(torch.from_numpy(softmax(scale * rows @ vectors.T)).float())
        level = class_thresholds(sure, len(text), KEPT_SHARE)[sure.label]
        label, keep = sure.label.numpy(), (sure.confidence > level).numpy()
        labels.append(label)
        kept.append(keep)
        if len(labels) > 1 and (labels[-1] == labels[-2]).all():
            break
        for index in np.unique(label[keep]):
            mean = _unit(rows[keep & (label == index)].mean(axis=0))
            vectors[index] = _unit(mean + text[index]) if with_text else mean
    return Means(vectors, labels, kept)


def class_means(frozen: Frozen, branch: str, seed: int) -> Posterior:
    """`fit_means` on the unlabelled training split; the test split is classified by the nearest mean."""
    return _by_means(frozen, branch, with_text=False)


def class_means_with_text(frozen: Frozen, branch: str, seed: int) -> Posterior:
    """The same with half of each class vector from its name."""
    return _by_means(frozen, branch, with_text=True)


def _by_means(frozen: Frozen, branch: str, *, with_text: bool) -> Posterior:
    words = frozen.vocabulary
    means = fit_means(frozen.train.unit(branch), words.embeddings, words.logit_scale, with_text=with_text)
    return softmax(words.logit_scale * frozen.test.unit(branch) @ means.vectors.T)


def linear_probe(frozen: Frozen, branch: str, seed: int) -> Posterior:
    """Supervised: logistic regression on the frozen embeddings and labels of the training split."""
    center, spread = (getattr(frozen.train.unit(branch), name)(axis=0) for name in ("mean", "std"))
    probe = LogisticRegression(C=PROBE_C, max_iter=1000)
    train, test = ((part.unit(branch) - center) / (spread + 1e-6) for part in (frozen.train, frozen.test))
    probe.fit(train, frozen.train.labels)
    found = np.zeros((len(test), frozen.classes))
    found[:, probe.classes_] = probe.predict_proba(test)
    return found


def _unit(row: Rows) -> Rows:
    return np.asarray(row / np.linalg.norm(row), np.float32)


def kept_accuracy(labels: NDArray[np.int64], posterior: Posterior, share: float) -> float:
    """For reports: how many of the surest `share` of each class's predictions (n, C) are right."""
    sure = most_likely(torch.from_numpy(posterior).float())
    keep = (sure.confidence > class_thresholds(sure, posterior.shape[1], share)[sure.label]).numpy()
    return float((sure.label.numpy() == labels)[keep].mean())
