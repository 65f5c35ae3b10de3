"""A process of benchmarks/public_encoders.py that classifies clouds one by one, and prints what each took as JSON.

python benchmarks/public_encoders_worker.py BUNDLE CLOUDS THREADS RUNS LEAST SECONDS
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from crossmost.runtime import Classifier


def main() -> None:
    bundle, clouds = sys.argv[1:3]
    threads, runs, least = map(int, sys.argv[3:6])
    longest = float(sys.argv[6])
    found = []
    with Classifier.load(bundle, backend="onnxruntime-cpu", threads=threads) as classifier:
        cloud_of = np.load(clouds)
        classifier(cloud_of[0])  # the first one allocates
        began = time.perf_counter()
        while len(found) < runs and (len(found) < least or time.perf_counter() - began < longest):
            cloud = cloud_of[len(found) % len(cloud_of)]
            start = time.perf_counter()
            timings = classifier(cloud)[0].timings
            found.append({**timings, "total": time.perf_counter() - start})
    print(json.dumps({"seconds": found}))


if __name__ == "__main__":
    main()
