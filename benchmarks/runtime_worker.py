"""A process of benchmarks/runtime.py that runs one way of embedding clouds, once for each line it reads.

    python benchmarks/runtime_worker.py WAY SOURCE CLOUDS BATCH THREADS

Ways: `plain` (SOURCE is a run: the published form of the network in eager PyTorch), `eager` (a run: the trainer's
own module), `fp32` and `int8` (SOURCE is a bundle), `torch` and `numpy` (a run: the encoder's matrix products alone).
Each answer is a line of JSON: seconds by stage, and the top-1 classes. A way has a process of its own so that its
threads, which spin for a while after their work, are asleep while another way is measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from crossmost.export.source import Exportable

    Steps = tuple[
        Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]
    ]

Clouds = list[NDArray[np.float32]]
Way = Callable[[Clouds], dict[str, Any]]
GRAPHS = {"fp32": "encoder.onnx", "int8": "encoder.int8.onnx"}


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def stage(self, name: str) -> None:
        """What was done since the last call was `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def runtime_way(precision: str, bundle: Path, threads: int) -> Way:
    """The path of crossmost.runtime: NumPy, then the graph in ONNX Runtime."""
    from crossmost.runtime.class_bank import load_class_bank
    from crossmost.runtime.manifest import load_manifest
    from crossmost.runtime.onnx_session import create_session
    from crossmost.runtime.preprocess import prepare
    from crossmost.runtime.sampling import farthest_point_indices, smallest_indices

    card = load_manifest(bundle).encoder
    bank = load_class_bank(bundle / "classes.npz")
    session = create_session(bundle / GRAPHS[precision], threads=threads)

    def embed(clouds: Clouds) -> dict[str, Any]:
        clock = Clock()
        patches, centers = [], []
        for cloud in clouds:
            points = prepare(cloud, most=card.points, least=max(card.groups, card.neighbors))
            clock.stage("normalize")
            # `crossmost.runtime.sampling.group`, step by step.
            squared = np.empty((card.groups, len(points)), np.float32)
            chosen = points[farthest_point_indices(points, card.groups, squared), :3]
            clock.stage("FPS")
            patch = points[smallest_indices(squared, card.neighbors)]
            patch[:, :, :3] -= chosen[:, None, :]
            patches.append(patch)
            centers.append(chosen)
            clock.stage("grouping")
        (embedding,) = session.run(None, {"patches": np.stack(patches), "centers": np.stack(centers)})
        clock.stage("encode")
        return {"seconds": clock.seconds, "top1": bank.logits(embedding).argmax(axis=1).tolist()}

    return embed


def eager_way(run: Path, threads: int) -> Way:
    """The same weights in torch, in the trainer's own module, with FPS as a loop."""
    from crossmost.models.grouping import farthest_point_indices, gather_points, nearest_indices

    def steps(source: Exportable) -> Steps:
        encoder, card = source.encoder, source.encoder.card

        # `crossmost.models.grouping.group`, step by step, but for the layout of its columns.
        def sample(points: Tensor) -> Tensor:
            return gather_points(points[..., :3], farthest_point_indices(points, card.groups))

        def cut(points: Tensor, centers: Tensor) -> Tensor:
            return (
                gather_points(points, nearest_indices(points, centers, card.neighbors)) - centers[:, :, None]
            )

        def encode(patches: Tensor, centers: Tensor) -> Tensor:
            return source.head(encoder(patches, centers).feature)

        return sample, cut, encode

    return torch_way(run, threads, steps)


def plain_way(run: Path, threads: int) -> Way:
    """The same weights in the form the field publishes; see plain_point_bert.py."""
    from plain_point_bert import plain_path

    return torch_way(run, threads, lambda source: plain_path(source.encoder, source.head))


def torch_way(run: Path, threads: int, steps: Callable[[Exportable], Steps]) -> Way:
    """Sampling, grouping and encoding in torch, behind the runtime's normalisation."""
    import torch

    from crossmost.export.source import load_exportable
    from crossmost.runtime.preprocess import prepare

    torch.set_num_threads(threads)
    source = load_exportable(run, None)
    card = source.encoder.eval().card
    sample, cut, encode = steps(source)

    @torch.inference_mode()
    def embed(clouds: Clouds) -> dict[str, Any]:
        clock = Clock()
        points = torch.stack(
            [torch.from_numpy(prepare(cloud, most=card.points, least=card.least)) for cloud in clouds]
        )
        clock.stage("normalize")
        centers = sample(points)
        clock.stage("FPS")
        patches = cut(points, centers)
        clock.stage("grouping")
        embedding = encode(patches, centers).numpy()
        clock.stage("encode")
        return {"seconds": clock.seconds, "top1": source.bank.logits(embedding).argmax(axis=1).tolist()}

    return embed


def product_way(library: str, run: Path, batch: int, threads: int) -> Way:
    """The encoder's matrix products and nothing else, each with memory that is there already."""
    import torch

    from crossmost.export.source import load_exportable

    torch.set_num_threads(threads)
    operands = []
    for left, right in products(load_exportable(run, None).encoder.card, batch):
        a, b = torch.randn(left), torch.randn(right)
        operands.append((a, b, a @ b))
    arrays = [tuple(each.numpy() for each in triple) for triple in operands]
    work = 2 * sum(c.numel() * a.shape[-1] for a, _, c in operands)

    @torch.inference_mode()
    def multiply(_clouds: Clouds) -> dict[str, Any]:
        clock = Clock()
        if library == "torch":
            for a, b, c in operands:
                torch.matmul(a, b, out=c)
        else:
            for a, b, c in arrays:
                np.matmul(a, b, out=c)
        clock.stage("encode")
        return {"seconds": clock.seconds, "operations": work}

    return multiply


def products(card: Any, batch: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of both factors of each product of a PointBert's encoder, those under a percent of the work left out."""
    first, local, mixed, out = card.token_widths
    patches, tokens, width = batch * card.groups, batch * (card.groups + 1), card.width
    points, hidden, head = patches * card.neighbors, int(width * card.mlp_ratio), width // card.heads
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((points, first), (first, local)), ((points, local), (local, mixed)), ((patches, local), (local, mixed)),
        ((points, mixed), (mixed, out)), ((patches, out), (out, width)),
    ]  # fmt: skip
    heads = (batch, card.heads)
    block: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((tokens, width), (width, 3 * width)),
        ((*heads, card.groups + 1, head), (*heads, head, card.groups + 1)),
        ((*heads, card.groups + 1, card.groups + 1), (*heads, card.groups + 1, head)),
        ((tokens, width), (width, width)), ((tokens, width), (width, hidden)), ((tokens, hidden), (hidden, width)),
    ]  # fmt: skip
    return found + card.depth * block


def waited() -> float:
    """Seconds that threads of this process were ready to run and did not, for other processes; 0 where unknown."""
    total = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[1])
        except (OSError, IndexError):  # a thread that ended meanwhile
            continue
    return total / 1e9


def serve(way: Way, clouds: NDArray[np.float32], batch: int) -> None:
    """Warm up, say so, and answer."""
    chosen = [clouds[(start + np.arange(batch)) % len(clouds)] for start in range(len(clouds))]
    for _ in range(2):
        way(list(chosen[0]))
    print("ready", flush=True)
    for turn, _line in enumerate(sys.stdin):
        before, began = waited(), time.perf_counter()
        answer = way(list(chosen[turn % len(chosen)]))
        answer["seconds"]["total"] = time.perf_counter() - began
        print(json.dumps(answer | {"waited": waited() - before}), flush=True)


EAGER = {"plain": plain_way, "eager": eager_way}


def main() -> None:
    name, source, clouds, batch, threads = sys.argv[1:]
    if name in GRAPHS:
        way = runtime_way(name, Path(source), int(threads))
    elif name in EAGER:
        way = EAGER[name](Path(source), int(threads))
    else:
        way = product_way(name, Path(source), int(batch), int(threads))
    serve(way, np.load(clouds), int(batch))


if __name__ == "__main__":
    main()
