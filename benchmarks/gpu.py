"""Kernels, backends and CUDA graphs proved on this machine's GPU, and their latency beside the GPU's limits.

    python benchmarks/gpu.py BUNDLE [BUNDLE...] [--data DATA] [--out FOLDER] [--soak CALLS] [--turns N] [--quick]
    python benchmarks/gpu.py --tables-only

The proof: sampling and grouping identical to NumPy, on the archives of DATA or else on procedural shapes, and on clouds
full of ties; every backend that opens within the gates beside ONNX Runtime on the CPU (a bundle in bf16 beside the fp32
bundle of the same weights, if that is given, too); CUDA graphs captured, equal to plain enqueue, and launched in a long
loop without a changed answer or growing memory; threads. Registers that the driver spills are reported. Then the times:
all bundles and backends by turns. An engine that fits this GPU is built where the bundle has none.

Exit 0: all is proved, the result is in the folder and the table in the README. Exit 1: something failed; it is named,
also in the result file, and the README stays. Exit 2: nothing was begun. `--quick` proves and measures less, and leaves
the README alone. Where there are several GPUs the first is taken: CUDA_VISIBLE_DEVICES chooses.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from gpu_bundle import open_backends, prove_bundle
from gpu_checks import Check, Proof
from gpu_clouds import FIXED_SIZES, Sizes, kernel_cases, make_clouds, read_clouds
from gpu_kernels import architectures, prove_kernels
from gpu_reference import References
from gpu_table import section, table
from gpu_timing import measure_backends, measure_kernels, measure_limits
from runtime_soak import resident
from tables import write_between

from crossmost.runtime import Classifier
from crossmost.runtime.cuda_calls import CudaError
from crossmost.runtime.cuda_device import CudaDevice
from crossmost.runtime.cuda_driver import CudaDriver, probe_cuda
from crossmost.runtime.doctor import installed
from crossmost.runtime.manifest import Manifest, check_files, load_manifest
from crossmost.runtime.whole_files import write_whole

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
WEIGHTS = "weights.bin"
BATCHES, POINTS = (1, 8, 32, 64), (1024, 2048, 8192)
CALLS = {"soak": (2000, 200), "turns": (200, 20), "clouds": (512, 64), "each": (96, 16)}
"""In full and with `--quick`: calls of the long loop and of each timing, clouds compared, clouds of an archive."""


class Refused(ValueError):
    """What makes it impossible to begin, in one line."""


Opened = dict[tuple[str, str], Classifier]
"""By bundle and backend."""


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with the sizes that `--quick` decides.

    Raises:
        SystemExit: something else is on it; with code 2.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="folder of crossmost export")
    parser.add_argument("--data", type=Path, help="folder of archives of real clouds")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu", help="folder of the results")
    parser.add_argument("--soak", type=int, help="calls of the long loop of each backend")
    parser.add_argument("--turns", type=int, help="measurements of each way")
    parser.add_argument("--quick", action="store_true", help="prove and measure less")
    common.add_tables_only(parser)
    arguments = parser.parse_args(words)
    if not arguments.bundles and not arguments.tables_only:
        parser.error("expected at least one BUNDLE, found none")
    for name in ("soak", "turns"):
        found = getattr(arguments, name)
        if found is not None and found < 10:
            parser.error(f"expected --{name} of at least 10 calls, found {found}")
    for name, (full, quick) in CALLS.items():
        if getattr(arguments, name, None) is None:
            setattr(arguments, name, quick if arguments.quick else full)
    return arguments


def require_gpu() -> tuple[CudaDriver, CudaDevice]:
    """The driver and the first GPU.

    Raises:
        Refused: there is none, or cuda-python is missing.
    """
    driver = probe_cuda()
    if not driver.gpus:
        raise Refused(f"expected an NVIDIA GPU: {driver.reason}")
    try:
        return driver, CudaDevice(0)
    except (ModuleNotFoundError, CudaError) as error:
        raise Refused(str(error)) from error


def read_manifests(bundles: Sequence[Path]) -> dict[str, tuple[Path, Manifest]]:
    """Folders and manifests of the bundles by name, their files compared with their digests.

    Raises:
        Refused: two of one name.
        ValueError: a damaged one.
    """
    found: dict[str, tuple[Path, Manifest]] = {}
    for bundle in bundles:
        if bundle.name in found:
            raise Refused(f"expected bundles of different names, found {bundle.name} twice: rename one")
        manifest = load_manifest(bundle)
        check_files(bundle, manifest)
        found[bundle.name] = bundle, manifest
    return found


def in_use(device: CudaDevice) -> Callable[[], int]:
    """Bytes of the GPU's memory that are in use, less those that are in use now."""

    def free() -> int:
        with device.current():
            return int(device.call("cuMemGetInfo"))

    first = free()
    return lambda: first - free()


def prove_and_measure(
    arguments: argparse.Namespace, driver: CudaDriver, device: CudaDevice
) -> dict[str, Any]:
    """The whole result; what fails is in it.

    Raises:
        ValueError: the bundles or the clouds cannot be used; nothing was begun.
    """
    bundles = read_manifests(arguments.bundles)
    rng = np.random.default_rng(0)
    clouds = (
        read_clouds(arguments.data, arguments.each) if arguments.data else make_clouds(arguments.clouds, rng)
    )
    clouds = [clouds[at] for at in rng.permutation(len(clouds))]  # or a batch would be of one archive alone
    result = facts(arguments, driver, bundles, len(clouds))
    proof, opened = Proof(print), Opened()
    memory = {"device": in_use(device), "host": resident}
    every = every_sizes([manifest for _, manifest in bundles.values()])
    newest, *older = architectures(driver.gpus[0].compute_capability)
    for architecture, sizes in itertools.product((newest, *older), every):
        cases = kernel_cases(sizes, clouds, quick=arguments.quick)
        checks = functools.partial(prove_kernels, device, sizes, architecture, cases)
        proof.collect(f"sampling_{architecture}.ptx, {sizes}", checks)
    references = References(bundles, clouds)
    with ExitStack() as stack:
        for name, (bundle, _) in bundles.items():
            of_bundle, result["refused"][name] = open_backends(bundle, proof, stack)
            reference = functools.partial(references.of, name)
            prove_bundle(bundle, of_bundle, reference, clouds, arguments.soak, memory, proof)
            opened |= {(name, backend): found for backend, found in of_bundle.items()}
        proof.collect("times", lambda: measure(result, device, newest, every, opened, arguments.turns))
    return result | {"proof": proof.to_dict()}


def every_sizes(manifests: Sequence[Manifest]) -> list[Sizes]:
    """Those of the bundles and the fixed ones, each once."""
    cards = [manifest.encoder for manifest in manifests]
    of_bundles = [Sizes(card.groups, card.neighbors, card.channels, card.radius) for card in cards]
    return list(dict.fromkeys([*of_bundles, *FIXED_SIZES]))


def measure(
    result: dict[str, Any],
    device: CudaDevice,
    architecture: int,
    every: list[Sizes],
    opened: Opened,
    turns: int,
) -> Iterator[Check]:
    """Add the times to the result, each as soon as it is known; what cannot be measured raises."""
    settings = list(itertools.product(BATCHES, POINTS))
    result["limits"] = measure_limits(device, turns)
    yield Check("the GPU's limits measured")
    result["kernels"].extend(measure_kernels(device, every, architecture, settings, turns))
    yield Check("the kernels timed")
    result["backends"].extend(measure_backends(opened, settings, turns))
    yield Check("the backends timed")


def facts(
    arguments: argparse.Namespace, driver: CudaDriver, bundles: dict[str, tuple[Path, Manifest]], clouds: int
) -> dict[str, Any]:
    """What ran where, with room for what comes out."""
    gpu = driver.gpus[0]
    return {
        "gpu": gpu.name,
        "capability": gpu.compute_capability,
        "date": time.strftime("%Y-%m-%d"),
        "quick": arguments.quick,
        "clouds": {"count": clouds, "real": arguments.data is not None},
        "software": {
            "CUDA driver": driver.version,
            "Python": platform.python_version(),
            **installed(),
        },
        "bundles": {
            name: {
                "precision": manifest.precision,
                "encoder": asdict(manifest.encoder),
                "weight_bytes": manifest.files[WEIGHTS].bytes,
            }
            for name, (_, manifest) in bundles.items()
        },
        "refused": {},
        "limits": {},
        "kernels": [],
        "backends": [],
    }


def write(result: dict[str, Any], out: Path, bundles: Sequence[Path]) -> Path:
    """Write the result; folders of this machine that errors name are left out."""
    text = json.dumps(result, indent=1) + "\n"
    for folder in sorted({str(path.resolve().parent) for path in bundles} | {str(Path.home())}, key=len)[
        ::-1
    ]:
        text = text.replace(f"{folder}/", "")
    name = re.sub(r"[^a-z0-9]+", "-", result["gpu"].lower()).strip("-")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}-{result['date']}{'-quick' if result['quick'] else ''}.json"
    write_whole(path, text.encode())
    return path


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    if arguments.tables_only:
        write_between(README, "gpu", table(arguments.out))
        return 0
    try:
        driver, device = require_gpu()
        with closing(device):
            result = prove_and_measure(arguments, driver, device)
    except ValueError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    path = write(result, arguments.out, arguments.bundles)
    print(f"\n{section(result)}\n\nresult: {path}")
    for failure in result["proof"]["failures"]:
        print(f"FAILED: {failure}", file=sys.stderr)
    if not result["proof"]["passed"]:
        return 1
    if not arguments.quick:
        write_between(README, "gpu", table(arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
