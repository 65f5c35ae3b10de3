"""Backends on a GPU beside ONNX Runtime on the CPU for benchmarks/gpu.py: metrics, and the gates they must meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from gpu_checks import Check
from gpu_clouds import Cloud
from gpu_reference import AT_ONCE, Compared, Embedding
from numpy.typing import NDArray

from crossmost.runtime import Classifier
from crossmost.runtime.class_bank import ClassBank

EXPORT = "the export's own gate (export/parity.py)"
TENFOLD = "ten times fp16's distance from 1, as the export's"
TASK = (0.995, EXPORT)
GATES = {
    "fp32": {"finite": (1.0, EXPORT), "cosine_min": (0.99999, EXPORT), "top1_agreement": TASK},
    "fp16": {
        "finite": (1.0, EXPORT), "cosine_min": (0.999, EXPORT), "cosine_mean": (0.9999, EXPORT),
        "top1_agreement": TASK,
    },
    "bf16": {
        "finite": (1.0, EXPORT), "cosine_min": (0.99, TENFOLD), "cosine_mean": (0.999, TENFOLD),
        "top1_agreement": TASK,
    },
}  # fmt: skip
"""What a backend must reach beside ONNX Runtime on the CPU, and who says so: the gates of crossmost.export.parity,
which imports torch. bf16, which that does not compute, is compared with fp32."""


def metrics(reference: Embedding, found: Embedding, bank: ClassBank) -> dict[str, float]:
    """How far embeddings (B, D) are from those of the reference."""
    close = cosines(reference, found)
    same = bank.logits(reference).argmax(axis=1) == bank.logits(found).argmax(axis=1)
    return {
        "finite": finite_share(found),
        "cosine_min": float(close.min()),
        "cosine_mean": float(close.mean()),
        "max_abs_difference": float(np.abs(reference - found).max()),
        "top1_agreement": float(same.mean()),
    }


def cosines(reference: Embedding, found: Embedding) -> NDArray[np.float64]:
    """Cosine (B,) of each row and its counterpart; NaN where one of them has none."""
    exact, other = reference.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(other, axis=1)
        close: NDArray[np.float64] = (exact * other).sum(axis=1) / lengths
    return close


def finite_share(found: Embedding) -> float:
    """The part of the rows (B, D) without NaN and infinity."""
    return float(np.isfinite(found).all(axis=1).mean())


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


def prove_parity(
    classifier: Classifier, reference: Callable[[], list[Compared]], bank: ClassBank
) -> Iterator[Check]:
    """A backend against ONNX Runtime on the CPU, on the same clouds."""
    info = classifier.info()
    precision, backend = info["bundle"]["precision"], info["backend"]
    for part in reference():
        embedding = embed_all(classifier, part.clouds)
        if part.reference is None:
            yield without_reference(f"{backend}: finite, {part.name}", embedding, precision)
            continue
        found = metrics(part.reference, embedding, bank)
        values = {key: value if np.isfinite(value) else str(value) for key, value in found.items()}
        failure = beyond_gates(found, precision, part.ungated)
        name = f"{backend}: within the gates, {part.name}"
        yield Check(name, failure, {**values, "clouds": len(part.clouds)})


def without_reference(name: str, found: Embedding, precision: str) -> Check:
    """All that embeddings (B, D) alone can prove."""
    share = finite_share(found)
    failure = "" if share == 1 else f"expected all embeddings to be finite, found {share:.7g} of them"
    note = f"compared with nothing: ONNX Runtime has no {precision} on the CPU; give the fp32 bundle, too"
    return Check(name, failure, {"finite": share, "clouds": len(found)}, note)
