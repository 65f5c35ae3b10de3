"""One bundle in benchmarks/gpu.py: every backend that opens, and all that is proved about each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from gpu_backends import prove_graphs, prove_soak, prove_threads
from gpu_checks import Check, Proof
from gpu_clouds import Cloud
from gpu_parity import prove_parity
from gpu_reference import Compared

from crossmost.runtime import Classifier
from crossmost.runtime.backend import BackendUnavailable
from crossmost.runtime.class_bank import load_class_bank
from crossmost.runtime.selection import BACKENDS
from crossmost.runtime.tensorrt_backend import FirstPassFailed

ON_GPU = tuple(backend for backend in BACKENDS if backend != "onnxruntime-cpu")


def open_backends(
    bundle: Path, proof: Proof, stack: ExitStack
) -> tuple[dict[str, Classifier], dict[str, str]]:
    """Every backend on the GPU that opens, and why the others do not; one that breaks while it opens is a failure.

    TensorRT builds an engine where the bundle has none for this GPU.
    """
    opened, refused = {}, {}
    for backend in ON_GPU:
        try:
            opened[backend] = stack.enter_context(Classifier.load(bundle, backend, rebuild=True))
        except FirstPassFailed as error:
            proof.add(Check.of_error(f"{bundle.name}: {backend} embeds", error))
        except BackendUnavailable as error:
            refused[backend] = str(error)
        except Exception as error:  # a vendor's library may raise anything
            proof.add(Check.of_error(f"{bundle.name}: {backend} opens", error))
    reasons = "; ".join(f"{backend}: {reason}" for backend, reason in refused.items())
    failure = "" if opened else f"none opened: {reasons or 'all broke'}"
    proof.add(Check(f"{bundle.name}: a backend on the GPU opens", failure))
    return opened, refused


def prove_bundle(
    bundle: Path,
    opened: dict[str, Classifier],
    reference: Callable[[], list[Compared]],
    clouds: list[Cloud],
    soak: int,
    memory: dict[str, Callable[[], int]],
    proof: Proof,
) -> None:
    """Everything about the backends on the GPU.

    Args:
        bundle: the folder.
        opened: its backends.
        reference: gives what they are compared with.
        clouds: real or procedural ones.
        soak: calls of the long loop.
        memory: bytes in use, see `prove_soak`.
        proof: takes the checks.
    """
    bank = load_class_bank(bundle / "classes.npz")
    for backend, classifier in opened.items():
        # Graphs first: afterwards their shapes are no longer new.
        steps: dict[str, Callable[[], Iterable[Check]]] = {
            "graphs": functools.partial(prove_graphs, classifier),
            "gates": functools.partial(prove_parity, classifier, reference, bank),
            "long loop": functools.partial(prove_soak, classifier, clouds, soak, memory),
            "threads": functools.partial(prove_threads, classifier, clouds),
        }
        for step, checks in steps.items():
            proof.collect(f"{bundle.name}, {backend}: {step}", checks)
