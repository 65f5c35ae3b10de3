"""Backends on a GPU for benchmarks/gpu.py: within the gates, graphs really used, nothing grows, threads agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from gpu_checks import Check
from gpu_clouds import Cloud, hard_clouds, make_raw
from numpy.typing import NDArray

from crossmost.runtime import Classifier
from crossmost.runtime.class_bank import ClassBank

Embedding = NDArray[np.float32]

STAGE_A, STAGE_B = "DEPLOY 6, stage A", "DEPLOY 6, stage B"
TASK = (0.995, "DEPLOY 6, stage D")
GATES = {
    "fp32": {"finite": (1.0, "DEPLOY 6"), "cosine_min": (0.99999, STAGE_A), "top1_agreement": TASK},
    "fp16": {
        "finite": (1.0, "DEPLOY 6"), "cosine_min": (0.999, STAGE_B), "cosine_mean": (0.9999, STAGE_B),
        "top1_agreement": TASK,
    },
}  # fmt: skip
"""What a backend must reach beside ONNX Runtime on the CPU, and who says so: the gates of crossmost.export.parity,
which imports torch. bf16 has none, because ONNX Runtime computes no bf16 on the CPU."""

AT_ONCE = 32
BATCHES, LIMITS = (1, 2, 3, 5, 8, 13, 32), (256, 512, 1024, 4096)
"""Clouds of a batch and points of its largest cloud in the long loop: more shapes than a worker keeps."""
THREADS, ROUNDS = 8, 20
MARKS = 10
MOST_GROWTH = {"device": 16 * 2**20, "host": 32 * 2**20}
"""Bytes that may come and go over the long loop, for the allocators of others."""


def metrics(reference: Embedding, found: Embedding, bank: ClassBank) -> dict[str, float]:
    """How far embeddings (B, D) are from those of the reference."""
    exact, other = reference.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(other, axis=1)
        cosines = (exact * other).sum(axis=1) / lengths
    same = bank.logits(reference).argmax(axis=1) == bank.logits(found).argmax(axis=1)
    return {
        "finite": float(np.isfinite(found).all(axis=1).mean()),
        "cosine_min": float(cosines.min()),
        "cosine_mean": float(cosines.mean()),
        "max_abs_difference": float(np.abs(exact - other).max()),
        "top1_agreement": float(same.mean()),
    }


def beyond_gates(found: dict[str, float], precision: str, without: tuple[str, ...] = ()) -> str:
    """The metrics that miss their gates, in one line; "" where all are met. NaN never meets one."""
    return "; ".join(
        f"expected {metric} of at least {limit} ({source}), found {found[metric]:.7g}"
        for metric, (limit, source) in GATES[precision].items()
        if metric not in without and not found[metric] >= limit
    )


def embed_all(classifier: Classifier, clouds: Sequence[Cloud]) -> Embedding:
    """Embeddings (B, D) of any number of clouds."""
    parts = [classifier.embed(list(clouds[at : at + AT_ONCE])) for at in range(0, len(clouds), AT_ONCE)]
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Compared:
    """Clouds that every backend embeds.

    Attributes:
        name: what they are.
        clouds: (n_i, 3).
        reference: their embeddings by ONNX Runtime on the CPU.
        ungated: metrics that are reported only.
    """

    name: str
    clouds: list[Cloud]
    reference: Embedding
    ungated: tuple[str, ...] = ()


def compared(cpu: Classifier, clouds: list[Cloud]) -> list[Compared]:
    """The clouds, and those full of ties, of which no class is right and too few for a share."""
    hard = list(hard_clouds(2000, np.random.default_rng(0)).values())
    return [
        Compared("the clouds", clouds, embed_all(cpu, clouds)),
        Compared("hard clouds", hard, embed_all(cpu, hard), ("top1_agreement",)),
    ]


def prove_parity(
    classifier: Classifier, reference: Callable[[], list[Compared]] | None, bank: ClassBank
) -> Iterator[Check]:
    """A backend against ONNX Runtime on the CPU, on the same clouds."""
    info = classifier.info()
    precision, name = info["bundle"]["precision"], f"{info['backend']}: within the gates"
    if reference is None or precision not in GATES:
        why = (
            f"there is nothing to compare {precision} with: ONNX Runtime on the CPU does not run this bundle"
        )
        yield Check(name, why)
        return
    for part in reference():
        found = metrics(part.reference, embed_all(classifier, part.clouds), bank)
        values = {key: value if np.isfinite(value) else str(value) for key, value in found.items()}
        failure = beyond_gates(found, precision, part.ungated)
        yield Check(f"{name}, {part.name}", failure, {**values, "clouds": len(part.clouds)})


def prove_graphs(classifier: Classifier) -> Iterator[Check]:
    """A shape's first batch is enqueued and the next ones are a graph's: the answers must be equal to the last bit.

    To be called first, while no shape was seen yet. Backends without graphs are left alone.
    """
    info = classifier.info()
    if "shapes" not in info["device"]:
        return
    most = min(AT_ONCE, info["device"]["batch"][-1])
    # Of one size, and the largest batch first: where memory has to move, graphs are forgotten.
    clouds = make_raw(2 * most, info["bundle"]["encoder"]["points"])
    for batch in sorted({1, 2, max(1, most // 2), most}, reverse=True):
        failure = prove_graph(classifier, clouds[:batch], clouds[-batch:])
        yield Check(f"{info['backend']}: CUDA graph of {batch} clouds", failure)


def prove_graph(classifier: Classifier, clouds: list[Cloud], others: list[Cloud]) -> str:
    """What is wrong with the graph of one shape; "" for nothing."""
    seen = shapes(classifier)
    plain = classifier.embed(clouds)
    new = [shape for shape in shapes(classifier) if shape not in seen]
    if len(new) != 1:
        return f"expected a new shape, so that the first batch is enqueued, found {len(new)}"
    if not shapes(classifier)[new[0]]:
        notes = "; ".join(classifier.info()["device"].get("notes", []))
        return f"no graph was captured: {notes or 'no reason is known'}"
    classifier.embed(others)  # or the last answer, still in memory, would pass for this one's
    failure = changed(plain, classifier.embed(clouds))
    return failure and f"the graph's answers are not the enqueued ones: {failure}"


def shapes(classifier: Classifier) -> dict[tuple[int, int], bool]:
    """Batch and points of every shape that is ready, and whether as a graph."""
    found = classifier.info()["device"]["shapes"]
    return {(shape["batch"], shape["points"]): shape["cuda_graph"] for shape in found}


def changed(expected: Embedding, found: Embedding) -> str:
    """By how much answers differ that should be equal to the last bit; "" where they are."""
    if np.array_equal(expected, found):
        return ""
    if expected.shape != found.shape:
        return f"{found.shape} instead of {expected.shape}"
    return f"they differ by up to {np.abs(expected - found).max():.2g}"


def uneven_batches(clouds: list[Cloud]) -> list[list[Cloud]]:
    """Batches of changing size, of clouds of changing size; the first one of each has the limit's points."""
    rng = np.random.default_rng(7)
    batches = []
    for limit, count in rng.permutation([(limit, count) for limit in LIMITS for count in BATCHES]):
        first, *rest = (clouds[at] for at in rng.integers(0, len(clouds), count))
        batches.append([first[np.arange(limit) % len(first)], *(cloud[:limit] for cloud in rest)])
    return batches


def prove_soak(
    classifier: Classifier, clouds: list[Cloud], calls: int, memory: dict[str, Callable[[], int]]
) -> Iterator[Check]:
    """A long loop: no answer changes, and neither the GPU's memory nor the host's grows.

    Args:
        classifier: that is asked.
        clouds: what about.
        calls: of the loop, after every batch was seen once.
        memory: bytes in use, by the names of `MOST_GROWTH`.
    """
    batches = uneven_batches(clouds)
    expected = [classifier.embed(batch) for batch in batches]
    failure, name = "", classifier.info()["backend"]
    used: dict[str, list[int]] = {where: [] for where in memory}
    marks = {round(part * calls) for part in np.linspace(0.1, 1.0, MARKS)}  # a tenth for allocators to settle
    for turn in range(1, calls + 1):
        at = turn % len(batches)
        difference = changed(expected[at], classifier.embed(batches[at]))
        failure = failure or (difference and f"call {turn}, of {len(batches[at])} clouds: {difference}")
        if turn in marks:
            for where, now in memory.items():
                used[where].append(now())
    yield Check(f"{name}: the same answers over {calls} calls", failure)
    for where, found in used.items():
        growth = grown(found)
        most = MOST_GROWTH[where]
        failure = f"{growth / 2**20:.1f} MiB more at the end, expected at most {most / 2**20:.0f}"
        failure = failure if growth > most else ""
        yield Check(f"{name}: {where} memory over {calls} calls", failure, {"bytes": found, "growth": growth})


def grown(used: list[int]) -> int:
    """From the first marks to the last ones; medians, because others use the memory too."""
    return round(float(np.median(used[-3:]) - np.median(used[:3])))


def prove_threads(classifier: Classifier, clouds: list[Cloud]) -> Iterator[Check]:
    """Several threads at once get the answers that one gets, each for its own batch, again and again."""
    batches = uneven_batches(clouds)[:THREADS]
    expected = [classifier.embed(batch) for batch in batches]

    def ask(at: int) -> str:
        found = (changed(expected[at], classifier.embed(batches[at])) for _ in range(ROUNDS))
        return next(filter(None, found), "")

    with ThreadPoolExecutor(THREADS) as pool:
        failures = [failure for failure in pool.map(ask, range(len(batches))) if failure]
    yield Check(f"{classifier.info()['backend']}: {THREADS} threads at once", "; ".join(failures[:1]))
