"""A long loop for benchmarks/runtime.py: does memory grow, does any result change?

python benchmarks/runtime_soak.py BUNDLE CLOUDS THREADS PREDICTIONS
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from crossmost.runtime import Classifier


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    bundle, path, threads, count = sys.argv[1:]
    clouds = np.load(path)
    classifier = Classifier.load(bundle, backend="onnxruntime-cpu", threads=int(threads))
    first = [classifier(cloud)[0] for cloud in clouds]
    changed, memory, began = 0, [], time.perf_counter()
    # A tenth of the loop is for allocators to settle.
    marks = {round(part * int(count)) for part in np.linspace(0.1, 1.0, 10)}
    for turn in range(1, int(count) + 1):
        at = turn % len(clouds)
        found = classifier(clouds[at])[0]
        same = found.top_k == first[at].top_k and np.array_equal(found.embedding, first[at].embedding)
        changed += not same
        if turn in marks:
            memory.append(resident())
    row = {
        "predictions": int(count), "changed": changed, "bytes": memory, "growth_bytes": memory[-1] - memory[0],
        "seconds": time.perf_counter() - began,
    }  # fmt: skip
    print(json.dumps(row))


if __name__ == "__main__":
    main()
