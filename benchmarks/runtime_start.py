"""A new process of benchmarks/runtime.py: seconds to import, to load a bundle, and to the first prediction; its memory.

python benchmarks/runtime_start.py BUNDLE CLOUDS THREADS
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    bundle, clouds, threads = sys.argv[1:]
    began = time.perf_counter()
    from crossmost.runtime import Classifier

    imported = time.perf_counter()
    classifier = Classifier.load(bundle, backend="onnxruntime-cpu", threads=int(threads))
    loaded = time.perf_counter()

    import resource  # all below is not part of what is measured

    import numpy as np

    cloud = np.load(clouds)[0]
    called = time.perf_counter()
    classifier(cloud)
    answered = time.perf_counter()
    found = {
        "import": imported - began,
        "load": loaded - imported,
        "first": answered - called,
        "load_and_first": loaded - imported + answered - called,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "torch": "torch" in sys.modules,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
