"""The one place where ONNX Runtime sessions are made and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossmost.runtime.errors import RuntimeFailure

if TYPE_CHECKING:
    import onnxruntime

CPU = ("CPUExecutionProvider",)
LONGEST_REASON = 300
"""ONNX Runtime's message can be a page; its first words say what is missing."""


class PassFailed(RuntimeFailure):
    """ONNX Runtime could not finish a pass, such as for want of memory."""


def create_session(
    path: Path | str, *, providers: Sequence[str] = CPU, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """Open a graph for inference.

    Args:
        path: the .onnx file, its external data beside it.
        providers: ONNX Runtime's execution providers, the preferred one first.
        threads: of one inference; None for one a core.

    Raises:
        ModuleNotFoundError: neither onnxruntime nor onnxruntime-gpu is installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Errors come as exceptions; the warnings are about nodes placed on the CPU and initializers without a reader.
    options.log_severity_level = 3
    # Allocations remembered for every batch size would only cost memory.
    options.enable_mem_pattern = False
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    # Threads that spin between calls keep all cores busy for nothing, and those of other sessions waiting.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # This pass crashes the process on half-precision transformers (microsoft/onnxruntime issue 28392).
    options.add_session_config_entry("optimization.disable_specified_optimizers", "NchwcTransformer")
    return onnxruntime.InferenceSession(str(path), options, providers=list(providers))


def run_session(session: Any, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The first output of a session.

    Raises:
        PassFailed: ONNX Runtime could not; says why.
    """
    try:
        answer: NDArray[np.float32] = session.run(None, dict(feeds))[0]
    except Exception as error:  # ONNX Runtime has classes of its own, which depend on the version
        raise PassFailed(f"ONNX Runtime's pass failed: {reason(error)}") from error
    return answer


def reason(error: object) -> str:
    """A message as one line of bounded length."""
    return " ".join(str(error).split())[:LONGEST_REASON]
