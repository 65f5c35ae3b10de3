"""A process of benchmarks/latency.py that embeds clouds in one way, in settings that it is told one after the other.

    python benchmarks/latency_worker.py WAY THREADS

A line of JSON, {"run", "bundle", "half", "clouds", "batch"}, chooses a setting and is answered with "ready"; an empty
line asks for one measurement, answered with seconds by stage as runtime_worker.py does. Besides that script's ways:
`compiled` (the trainer's module under torch.compile), `model` (model.onnx, sampling included, in ONNX Runtime), `fp16`
(the float16 bundle in the runtime), `integer` (the encoder's matrix products alone with 8-bit factors) and `copy` (a
copy of memory far larger than the caches).
"""

from __future__ import annotations

import json
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from runtime_worker import EAGER, GRAPHS, Clock, Clouds, Way, product_way, products, runtime_way, waited

COPIED = 1 << 28
"""Bytes."""


def compiled_way(run: Path, threads: int) -> Way:
    """The trainer's module with grouping and encoder compiled for their shapes.

    The sampling loop stays as it is: the compiler would unroll it, a step a center.
    """
    import torch

    from crossmost.export.source import load_exportable
    from crossmost.models.grouping import farthest_point_indices, gather_points, nearest_indices
    from crossmost.runtime.preprocess import prepare

    torch.set_num_threads(threads)
    torch._dynamo.reset()  # it keeps eight shapes of a function and runs further ones eagerly
    source = load_exportable(run, None)
    encoder, card = source.encoder.eval(), source.encoder.card

    def cut(points: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
        patches = gather_points(points, nearest_indices(points, centers, card.neighbors))
        return patches - centers[:, :, None]

    def encode(patches: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
        return source.head(encoder(patches, centers).feature)

    fast_cut, fast_encode = (torch.compile(step, dynamic=False) for step in (cut, encode))

    @torch.inference_mode()
    def embed(clouds: Clouds) -> dict[str, Any]:
        clock = Clock()
        points = torch.stack(
            [torch.from_numpy(prepare(cloud, most=card.points, least=card.least)) for cloud in clouds]
        )
        clock.stage("normalize")
        centers = gather_points(points, farthest_point_indices(points, card.groups))
        clock.stage("FPS")
        patches = fast_cut(points, centers)
        clock.stage("grouping")
        embedding = fast_encode(patches, centers).numpy()
        clock.stage("encode")
        return {"seconds": clock.seconds, "top1": source.bank.logits(embedding).argmax(axis=1).tolist()}

    return embed


def model_way(bundle: Path, threads: int) -> Way:
    """The whole path in one graph, but for the normalisation."""
    from crossmost.runtime.class_bank import load_class_bank
    from crossmost.runtime.manifest import load_manifest
    from crossmost.runtime.onnx_session import create_session
    from crossmost.runtime.preprocess import prepare

    card = load_manifest(bundle).encoder
    bank = load_class_bank(bundle / "classes.npz")
    session = create_session(bundle / "model.onnx", threads=threads)

    def embed(clouds: Clouds) -> dict[str, Any]:
        clock = Clock()
        points = [
            prepare(cloud, most=card.points, least=max(card.groups, card.neighbors)) for cloud in clouds
        ]
        clock.stage("normalize")
        (embedding,) = session.run(None, {"points": np.stack(points)})
        clock.stage("graph")
        return {"seconds": clock.seconds, "top1": bank.logits(embedding).argmax(axis=1).tolist()}

    return embed


def integer_way(run: Path, batch: int, threads: int) -> Way:
    """The products of `product_way` with 8-bit factors, but those within the attention, which stay float32."""
    import torch

    from crossmost.export.source import load_exportable

    torch.set_num_threads(threads)
    floats, integers = [], []
    for left, right in products(load_exportable(run, None).encoder.card, batch):
        if len(left) == 2:
            integers.append(
                tuple(torch.randint(-127, 128, shape, dtype=torch.int8) for shape in (left, right))
            )
        else:
            a, b = torch.randn(left), torch.randn(right)
            floats.append((a, b, a @ b))

    @torch.inference_mode()
    def multiply(_: Clouds) -> dict[str, Any]:
        clock = Clock()
        for a, b in integers:
            torch._int_mm(a, b)
        for a, b, c in floats:
            torch.matmul(a, b, out=c)
        clock.stage("encode")
        return {"seconds": clock.seconds}

    return multiply


def copy_way(threads: int) -> Way:
    """Bytes read and written, a second: what this machine's memory gives."""
    import torch

    torch.set_num_threads(threads)
    source, target = torch.ones(COPIED // 4), torch.zeros(COPIED // 4)

    def copy(_: Clouds) -> dict[str, Any]:
        clock = Clock()
        target.copy_(source)
        clock.stage("copy")
        return {"seconds": clock.seconds, "bytes": 2 * COPIED}

    return copy


@lru_cache(maxsize=2)
def find_way(name: str, run: str, bundle: str, half: str, batch: int, threads: int) -> Way:
    """The way of a setting; one that was used before is still there."""
    if name == "compiled":
        return compiled_way(Path(run), threads)
    if name == "model":
        return model_way(Path(bundle), threads)
    if name == "copy":
        return copy_way(threads)
    if name == "integer":
        return integer_way(Path(run), batch, threads)
    if name in GRAPHS or name == "fp16":
        of_half = name == "fp16"
        return runtime_way("fp32" if of_half else name, Path(half if of_half else bundle), threads)
    if name in EAGER:
        return EAGER[name](Path(run), threads)
    return product_way(name, Path(run), batch, threads)


def main() -> None:
    name, threads = sys.argv[1:]
    way: Way | None = None
    chosen: list[Clouds] = []
    turn = 0
    for line in sys.stdin:
        if line.strip():
            asked = json.loads(line)
            # The products alone depend on the batch before they are given one.
            of_batch = asked["batch"] if name in ("torch", "numpy", "integer") else 0
            way = find_way(name, asked["run"], asked["bundle"], asked["half"], of_batch, int(threads))
            clouds = np.load(asked["clouds"])
            rows = [(start + np.arange(asked["batch"])) % len(clouds) for start in range(len(clouds))]
            chosen, turn = [list(clouds[row]) for row in rows], 0
            for _ in range(2):
                way(chosen[0])
            print("ready", flush=True)
            continue
        assert way is not None
        before, began = waited(), time.perf_counter()
        answer = way(chosen[turn % len(chosen)])
        answer["seconds"]["total"] = time.perf_counter() - began
        turn += 1
        print(json.dumps(answer | {"waited": waited() - before}), flush=True)


if __name__ == "__main__":
    main()
