"""A new process of benchmarks/runtime.py: seconds to import, to load a bundle, and to the first prediction; its memory.

python benchmarks/runtime_start.py BUNDLE CLOUDS THREADS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def peak() -> int:
    """The most bytes this process has had in memory (Linux); `getrusage` would count the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def main() -> None:
    bundle, clouds, threads = sys.argv[1:]
    began = time.perf_counter()
    from crossmost.runtime import Classifier

    imported = time.perf_counter()
    classifier = Classifier.load(bundle, backend="onnxruntime-cpu", threads=int(threads))
    loaded = time.perf_counter()

    import numpy as np  # all from here to the call is not part of what is measured

    cloud = np.load(clouds)[0]
    called = time.perf_counter()
    classifier(cloud)
    answered = time.perf_counter()
    found = {
        "import": imported - began,
        "load": loaded - imported,
        "first": answered - called,
        "load_and_first": loaded - imported + answered - called,
        "peak_bytes": peak(),
        "torch": "torch" in sys.modules,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
