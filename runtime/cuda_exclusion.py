"""What is done by one thread of the process at a time, because a stream that is captured forbids it to all others.

While a stream is captured into a graph, nobody may wait for its whole context: the wait fails, and the capture is
spoiled. Freeing memory waits, too, and so may TensorRT while it makes or drops an execution context.
"""

from __future__ import annotations

import threading

EXCLUSIVE = threading.RLock()
"""Held while a stream is captured, and for whatever touches the whole context."""

CAPTURING = frozenset(
    {
        "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
    }
)
"""`CudaError.status` of a call that another library's capture was in the way of."""
