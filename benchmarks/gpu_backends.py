"""Backends on a GPU for benchmarks/gpu.py: graphs really used, nothing grows, threads agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from gpu_checks import Check
from gpu_clouds import Cloud, make_raw
from gpu_parity import cosines
from gpu_reference import Embedding

from crossmost.runtime import Classifier

MOST = 32
"""Clouds of the largest batch whose graph is proved."""
OFTEN = (1, 2, 5, 13), (512, 1024)
"""Clouds of a batch and points of its largest cloud in the long loop: so few shapes that a worker keeps all."""
BATCHES, LIMITS = (1, 2, 3, 5, 8, 13, 32), (256, 512, 1024, 4096)
"""The same in the loop of changing shapes: more of them than a worker keeps."""
CHURN = 4
"""Calls of the long loop for each one of changing shapes."""
THREADS, ROUNDS = 8, 20
MARKS = 10
MOST_GROWTH = {"device": 16 * 2**20, "host": 32 * 2**20}
"""Bytes that may come and go over a loop, for the allocators of others."""
EXACT = ("tensorrt", "tensorrt-rtx")
"""Backends that give the same bits again."""
SAME = 1 - 1e-6
"""The least cosine of two answers of another one: ONNX Runtime promises no bits (microsoft/onnxruntime#9704)."""


def prove_graphs(classifier: Classifier) -> Iterator[Check]:
    """A shape's first batch is enqueued and the next ones are a graph's: the answers must be equal to the last bit.

    To be called first, while no shape was seen yet. Backends without graphs are left alone.
    """
    info = classifier.info()
    if "shapes" not in info["device"]:
        return
    most = min(MOST, info["device"]["batch"][-1])
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


def changed(expected: Embedding, found: Embedding, *, exact: bool = True) -> str:
    """By how much answers differ that should be equal, to the last bit or nearly; "" where they are."""
    if expected.shape != found.shape:
        return f"{found.shape} instead of {expected.shape}"
    if np.array_equal(expected, found):
        return ""
    if exact:
        return f"they differ by up to {np.abs(expected - found).max():.2g}"
    close = float(cosines(expected, found).min())
    return "" if close >= SAME else f"expected a cosine of at least {SAME}, found {close:.9g}"


def uneven_batches(
    clouds: list[Cloud], counts: tuple[int, ...] = BATCHES, limits: tuple[int, ...] = LIMITS
) -> list[list[Cloud]]:
    """Batches of changing size, of clouds of changing size; the first one of each has the limit's points."""
    rng = np.random.default_rng(7)
    batches = []
    for limit, count in rng.permutation([(limit, count) for limit in limits for count in counts]):
        first, *rest = (clouds[at] for at in rng.integers(0, len(clouds), count))
        batches.append([first[np.arange(limit) % len(first)], *(cloud[:limit] for cloud in rest)])
    return batches


def prove_soak(
    classifier: Classifier, clouds: list[Cloud], calls: int, memory: dict[str, Callable[[], int]]
) -> Iterator[Check]:
    """A long loop over few shapes, whose graphs are launched, and a shorter one over more than a worker keeps.

    Args:
        classifier: that is asked.
        clouds: what about.
        calls: of the long loop.
        memory: bytes in use, by the names of `MOST_GROWTH`.
    """
    few, many = uneven_batches(clouds, *OFTEN), uneven_batches(clouds)
    for batch in few:  # from the second time on they are graphs
        classifier.embed(batch)
    before = graph_launches(classifier)
    yield from prove_loop(classifier, few, calls, f"{calls} calls", memory)
    yield from check_launches(classifier, before, calls)
    fewer = max(calls // CHURN, MARKS)
    yield from prove_loop(classifier, many, fewer, f"{fewer} calls of changing shapes", memory)


def prove_loop(
    classifier: Classifier,
    batches: list[list[Cloud]],
    calls: int,
    what: str,
    memory: dict[str, Callable[[], int]],
) -> Iterator[Check]:
    """Batches by turns, after each was seen once: no answer changes, neither the GPU's memory nor the host's grows."""
    failure, name = "", classifier.info()["backend"]
    expected = [classifier.embed(batch) for batch in batches]
    used: dict[str, list[int]] = {where: [] for where in memory}
    marks = {round(part * calls) for part in np.linspace(0.1, 1.0, MARKS)}  # a tenth for allocators to settle
    for turn in range(1, calls + 1):
        at = turn % len(batches)
        difference = changed(expected[at], classifier.embed(batches[at]), exact=name in EXACT)
        failure = failure or (difference and f"call {turn}, of {len(batches[at])} clouds: {difference}")
        if turn in marks:
            for where, now in memory.items():
                used[where].append(now())
    yield Check(f"{name}: the same answers over {what}", failure)
    for where, found in used.items():
        growth = grown(found)
        most = MOST_GROWTH[where]
        failure = f"{growth / 2**20:.1f} MiB more at the end, expected at most {most / 2**20:.0f}"
        failure = failure if growth > most else ""
        yield Check(f"{name}: {where} memory over {what}", failure, {"bytes": found, "growth": growth})


def graph_launches(classifier: Classifier) -> int | None:
    """Batches so far that were one launch of a graph; None of a backend without graphs."""
    found: int | None = classifier.info()["device"].get("graph_launches")
    return found


def check_launches(classifier: Classifier, before: int | None, calls: int) -> Iterator[Check]:
    """That graphs were launched since; backends without graphs are left alone."""
    now = graph_launches(classifier)
    if before is None or now is None:
        return
    launches = now - before
    failure = "" if launches >= calls else f"expected a CUDA graph for every call, found {launches}"
    name = f"{classifier.info()['backend']}: CUDA graphs over {calls} calls"
    yield Check(name, failure, {"launches": launches}, f"{launches} launches")


def grown(used: list[int]) -> int:
    """From the first marks to the last ones; medians, because others use the memory too."""
    return round(float(np.median(used[-3:]) - np.median(used[:3])))


def prove_threads(classifier: Classifier, clouds: list[Cloud]) -> Iterator[Check]:
    """Several threads at once get the answers that one gets, each for its own batch, again and again."""
    name = classifier.info()["backend"]
    batches = uneven_batches(clouds)[:THREADS]
    expected = [classifier.embed(batch) for batch in batches]

    def ask(at: int) -> str:
        answers = (classifier.embed(batches[at]) for _ in range(ROUNDS))
        differences = (changed(expected[at], found, exact=name in EXACT) for found in answers)
        return next(filter(None, differences), "")

    with ThreadPoolExecutor(THREADS) as pool:
        failures = [failure for failure in pool.map(ask, range(len(batches))) if failure]
    yield Check(f"{name}: {THREADS} threads at once", "; ".join(failures[:1]))
