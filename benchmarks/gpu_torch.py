"""The runtime on a GPU beside the trainer's own module in PyTorch there, eager and compiled.

    python benchmarks/gpu_torch.py --work WORK [--cards crossmost-pointbert ulip-pointbert] [--turns 50] [--quick]

Encoders of `crossmost zoo` in full size with random weights, on which time does not depend, exported with
`crossmost export` in float32 and in float16. Every way is given the same raw clouds on the host and gives embeddings
back to the host; all ways take turns in one process. The runtime: ONNX Runtime behind the sampling kernels, a CUDA
graph a shape, and behind NumPy's sampling, as it works where the kernels cannot. Torch: the module as it is, under
autocast to float16, and with grouping and encoder compiled besides (CUDA graphs included); its sampling is a loop of
calls on the GPU. `--quick` measures one batch size in few turns and writes no result. Exit 2: no GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))
import arguments as common
from export_cards import joint_space, random_base
from gpu_clouds import make_raw
from gpu_timing import by_turns, summary
from tables import write_between

from crossmost.checkpoints.base import load_base
from crossmost.models.grouping import farthest_point_indices, gather_points, nearest_indices
from crossmost.models.point_cards import PointCard, load_point_card
from crossmost.runtime import onnx_backend
from crossmost.runtime.manifest import load_manifest
from crossmost.runtime.onnx_backend import OnnxBackend
from crossmost.runtime.onnx_passes import HostPasses
from crossmost.runtime.preprocess import prepare

HERE = Path(__file__).resolve().parent
RESULTS, README = HERE / "results" / "gpu_torch", HERE / "README.md"
CARDS = ("crossmost-pointbert", "ulip-pointbert")
BATCHES = (1, 32)
RUNTIME = {
    "runtime, float32": ("fp32", False),
    "runtime, float16": ("fp16", False),
    "runtime, float16, sampling by NumPy": ("fp16", True),
}
TORCH = {
    "torch, float32": (False, False),
    "torch, float16": (True, False),
    "torch, float16, compiled": (True, True),
}
"""Whether under autocast to float16, and whether compiled."""
LEAST_COSINE = 0.999
"""Between the embeddings of a way and those of torch in float32: they must have computed the same."""

Clouds = list[NDArray[np.float32]]
Embed = Callable[[Clouds], NDArray[np.float32]]


def prepared(clouds: Clouds, card: PointCard) -> Clouds:
    """As the runtime and the trainer normalise and thin them."""
    return [prepare(cloud, most=card.points, least=card.least, scattered=card.scattered) for cloud in clouds]


def export(card: str, precision: str, work: Path) -> Path:
    """A bundle of the encoder with random weights, once."""
    folder = work / card
    bundle = folder / f"{precision}.bundle"
    if not (bundle / "manifest.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        base, words = random_base(load_point_card(card), *joint_space(card), folder)
        command = [sys.executable, "-m", "crossmost", "export", base, "--vocabulary", words, "--out", bundle]
        command += ["--verify-clouds", "2", "--batch", "1:1:2", *(["--fp16"] if precision == "fp16" else [])]
        subprocess.run([str(part) for part in command], check=True)
    return bundle


def runtime_way(bundle: Path, card: PointCard, numpy_sampling: bool, stack: ExitStack) -> Embed:
    """The runtime's backend on the GPU.

    Raises:
        BackendUnavailable: there is none.
    """
    manifest = load_manifest(bundle)
    backend = OnnxBackend(bundle, manifest, provider="cuda")
    stack.enter_context(closing(backend))
    info = backend.info()
    if info["sampling"] != "CUDA kernels" or info["notes"]:
        raise SystemExit(
            f"expected the sampling kernels and graphs, found {info['sampling']}, {info['notes']}"
        )
    if numpy_sampling:
        session = onnx_backend.open_cuda(
            onnx_backend.import_onnxruntime(), bundle / onnx_backend.GRAPH, 0, None
        )
        passes = HostPasses(session, manifest.encoder, info["clouds_at_once"])
        return lambda clouds: passes.embed(prepared(clouds, card)).embedding
    return lambda clouds: backend.embed(prepared(clouds, card)).embedding


def torch_way(base: Path, half: bool, compiled: bool) -> Embed:
    """The trainer's module on the GPU."""
    network, _ = load_base(base)
    network = network.eval().cuda()
    encoder, head = network.point_encoder, network.point_head()
    card = encoder.card

    def cut(points: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
        patches = gather_points(points, nearest_indices(points, centers, card.neighbors)).clone()
        patches[..., :3] -= centers[:, :, None]
        return patches

    def encode(patches: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.float16, enabled=half):
            return head(encoder(patches, centers).feature).float()

    if compiled:
        cut = torch.compile(cut, dynamic=False)
        encode = torch.compile(encode, dynamic=False, mode="reduce-overhead")

    @torch.inference_mode()
    def embed(clouds: Clouds) -> NDArray[np.float32]:
        points = torch.from_numpy(np.stack(prepared(clouds, card))).pin_memory().cuda(non_blocking=True)
        centers = gather_points(points[..., :3], farthest_point_indices(points, card.groups))
        found: NDArray[np.float32] = encode(cut(points, centers), centers).cpu().numpy()
        return found

    return embed


def timed(embed: Embed, clouds: Clouds) -> Callable[[], dict[str, float]]:
    """The whole way by the host's clock."""

    def run() -> dict[str, float]:
        began = time.perf_counter()
        embed(clouds)
        return {"total": time.perf_counter() - began}

    return run


def measure(card: str, batches: tuple[int, ...], turns: int, work: Path) -> list[dict[str, Any]]:
    """A row for each way and batch."""
    bundles = {precision: export(card, precision, work) for precision in ("fp32", "fp16")}
    base, found = work / card / "base.safetensors", []
    sizes = load_point_card(card)
    with ExitStack() as stack:
        ways = {name: torch_way(base, *how) for name, how in TORCH.items()}
        ways |= {
            name: runtime_way(bundles[precision], sizes, by_numpy, stack)
            for name, (precision, by_numpy) in RUNTIME.items()
        }
        for batch in batches:
            clouds = make_raw(batch, sizes.points)
            expected = ways["torch, float32"](clouds)
            cosines = {
                name: float((embed(clouds) * expected).sum(axis=1).min()) for name, embed in ways.items()
            }
            if min(cosines.values()) < LEAST_COSINE:
                raise SystemExit(
                    f"{card}, {batch} clouds: expected the same embeddings, found cosines {cosines}"
                )
            seconds = by_turns({name: timed(embed, clouds) for name, embed in ways.items()}, turns)
            found += [
                {"card": card, "points": sizes.points, "batch": batch, "way": name, "cosine": cosines[name],
                 "seconds": summary(seconds[name]["total"])}
                for name in ways
            ]  # fmt: skip
            print(
                *(f"{row['way']}: {1e3 * row['seconds']['p50']:.2f} ms" for row in found[-len(ways) :]),
                sep="\n",
            )
    return found


def table(results: Path) -> str:
    """Every result in a folder, as Markdown."""
    return "\n\n".join(section(json.loads(path.read_text())) for path in sorted(results.glob("*.json")))


def section(result: dict[str, Any]) -> str:
    """One GPU: medians in milliseconds, and how many times as long as the runtime in float16."""
    batches = sorted({row["batch"] for row in result["rows"]})
    lines = [
        f"**{result['gpu']}**; {result['software']}; {result['date']}; median ms of a batch of raw clouds; in "
        "brackets, times the runtime's in float16\n",
        f"| encoder | way | {' | '.join(f'batch {batch}' for batch in batches)} | clouds/s at {batches[-1]} |",
        f"|---|---|{'---|' * len(batches)}---|",
    ]
    middles = {(row["card"], row["way"], row["batch"]): row["seconds"]["p50"] for row in result["rows"]}
    for card, way in dict.fromkeys((row["card"], row["way"]) for row in result["rows"]):
        of = [middles[card, way, batch] for batch in batches]
        than = [middles[card, "runtime, float16", batch] for batch in batches]
        cells = [f"{1e3 * one:.2f} ({one / other:.2f}x)" for one, other in zip(of, than, strict=True)]
        lines.append(f"| {card} | {way} | {' | '.join(cells)} | {batches[-1] / of[-1]:,.0f} |")
    return "\n".join(lines)


def software() -> str:
    """What the figures depend on."""
    runtime = onnx_backend.import_onnxruntime()
    return (
        f"ONNX Runtime {runtime.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/gpu-torch"), help="folder for bases and bundles"
    )
    parser.add_argument("--cards", nargs="+", default=list(CARDS))
    parser.add_argument("--turns", type=int, default=50, help="measurements of each way")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="the larger batch in five turns; write nothing")
    common.add_tables_only(parser)
    arguments = parser.parse_args()
    if arguments.tables_only:
        write_between(README, "gpu-torch", table(arguments.out))
        return 0
    if not torch.cuda.is_available():
        print("expected a GPU that this torch can use, found none", file=sys.stderr)
        return 2
    batches, turns = (BATCHES[1:], 5) if arguments.quick else (BATCHES, arguments.turns)
    rows = [
        row for card in arguments.cards for row in measure(card, batches, turns, arguments.work.resolve())
    ]
    gpu = torch.cuda.get_device_name()
    result = {"gpu": gpu, "software": software(), "date": time.strftime("%Y-%m-%d"), "rows": rows}
    print(section(result))
    if not arguments.quick:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"{gpu.lower().replace(' ', '-')}.json").write_text(
            json.dumps(result, indent=1) + "\n"
        )
        write_between(README, "gpu-torch", table(arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
