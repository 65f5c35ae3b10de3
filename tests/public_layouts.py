"""The published checkpoints in small, with their own keys, and what they make of a cloud, in float64 and one by one."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossmost.checkpoints.layout import Layout
from crossmost.checkpoints.layouts import LAYOUTS
from crossmost.models.image_tower import ImageCard
from crossmost.models.point_cards import PointCard
from crossmost.runtime.preprocess import scatter

Array = NDArray[Any]
State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
DIM, WIDTH = 16, 24
IMAGE = ImageCard(image_size=16, patch_size=8, width=16, layers=2, heads=2, output_dim=DIM, quick_gelu=True)


def beside(path: str) -> ModuleType:
    """A module of another folder of tests: with importlib's import mode none of them is a package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(__file__).parent / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


published = beside("checkpoints/published.py")
openshape_reference = beside("models/openshape_reference.py")
uni3d_reference = beside("models/uni3d_reference.py")
point_bert_reference = beside("models/test_point_bert.py")


def layout_of(name: str, layouts: Sequence[Layout]) -> Layout:
    return next(layout for layout in layouts if layout.card.name == name)


def reduced(layout: Layout, number: int) -> Layout:
    """A layout in small; balls overflow, and no two are alike."""
    smaller: dict[str, Any] = {"width": WIDTH, "depth": 2, "heads": 2, "groups": 12, "neighbors": 6}
    smaller["token_widths"] = tuple(8 + 2 * index for index in range(len(layout.card.token_widths)))
    if "mlp_width" in type(layout.card).model_fields:
        smaller["mlp_width"] = 20 + number
    without_projection = layout.card.name == "openshape-pointbert-vitb32"
    image = layout.image and replace(
        layout.image,
        card=IMAGE if layout.image.card.pre_norm else replace(IMAGE, pre_norm=False, norm_eps=1e-6),
    )
    card = layout.card.model_copy(update=smaller)
    return replace(layout, card=card, dim=WIDTH if without_projection else DIM, image=image)


SMALL = tuple(reduced(layout, number) for number, layout in enumerate(LAYOUTS))


def draw(shapes: Mapping[str, tuple[int, ...]], seed: int = 0, half: bool = False) -> State:
    """Weights that leave nothing neutral and let every part of a cloud through to the embedding."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for key, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
            continue
        if key.endswith("running_var"):
            drawn = drawn.abs() + 0.5
        elif len(shape) > 1 and "_token" not in key:
            inputs = shape[0] if "projection" in key else math.prod(shape[1:])
            drawn = drawn * inputs**-0.5
        else:
            drawn = 0.2 * drawn + (key.endswith("weight") and len(shape) == 1)
        state[key] = drawn.half() if half else drawn
    return state


def towers(kind: str) -> Shapes:
    """What stands beside the point branch."""
    text = published.text_tower(DIM)
    if kind == "slip":
        return {**published.slip_visual(16, 8, 16, 2), **text, "image_projection": (16, DIM)}
    visual = {**published.clip_visual(16, 8, 16, 2), **published.masked_visual(8, 16)}
    return {**visual, "image_projection": (16, DIM), **(text if kind == "clip and text" else {})}


def point_shapes(layout: Layout) -> Shapes:
    card, dim = layout.card, layout.dim
    if card.name.startswith("openshape"):
        if card.name.endswith("vitb32"):
            return published.openshape(card, None, "")
        scale = {"logit_scale": ()} if card.name.endswith("vitl14") else {}
        return {**scale, **published.openshape(card, dim)}
    if card.name.startswith("uni3d"):
        return published.uni3d(card, dim, head=0 if card.name == "uni3d-ti" else 5)
    return (published.cross_most if card.name.startswith("crossmost") else published.point_bert)(card, dim)


# The published way: the file's own tensors, in float64, from a z-up cloud to its embedding.


def plain(state: State) -> State:
    """The point branch without prefixes, 1x1 convolutions as linear layers."""
    found = {}
    for key, value in state.items():
        while value.ndim > 2 and value.shape[-1] == 1:
            value = value[..., 0]
        found[key.removeprefix("point_encoder.").removeprefix("ppat.")] = value
    return found


def as_published(cloud: Array, card: PointCard) -> NDArray[np.float32]:
    """A z-up cloud centred and scaled, its points in an order like random for balls, and turned by hand."""
    xyz = cloud[:, :3].astype(np.float64)
    xyz = xyz - xyz.mean(axis=0)
    xyz /= np.linalg.norm(xyz, axis=1).max()
    scaled = np.concatenate([xyz, cloud[:, 3 : card.channels]], axis=1).astype(np.float32)
    if card.radius is not None:
        scaled = scatter(scaled)
    if card.name == "openshape-pointbert-vitg14":  # trained on lying clouds whose y and z were swapped
        return lying(scaled)[:, [0, 2, 1, *range(3, card.channels)]]
    return lying(scaled) if card.up_axis == "y" else scaled


def lying(cloud: Array) -> Array:
    """From z up to y up."""
    turned = cloud.copy()
    turned[:, 1], turned[:, 2] = cloud[:, 2], -cloud[:, 1]
    return turned


def published_embedding(state: State, card: PointCard, stored_cloud: Array) -> Array:
    """Of a z-up cloud as it is stored: (D,) unit length."""
    cloud, tensors = as_published(stored_cloud, card), plain(state)
    encoder = SimpleNamespace(card=card, state_dict=lambda: tensors)
    if card.name.startswith("openshape"):
        ours = {name: value.numpy() for name, value in tensors.items()}
        projection = np.eye(card.width + 1, card.width)
        if "proj.weight" in tensors:
            projection = np.vstack([ours["proj.weight"].T, ours["proj.bias"]]).astype(np.float64)
        return openshape_reference.Exact(card, ours)(cloud, projection)["embedding"]
    if card.name.startswith("uni3d"):
        exact = uni3d_reference.Exact(encoder)
        weight, bias = (tensors[f"trans2embed.{part}"].double().numpy() for part in ("weight", "bias"))
        return exact.stages(cloud.astype(np.float64), np.vstack([weight.T, bias]))["embedding"]
    points = cloud.astype(np.float64)
    centers = points[openshape_reference.Exact(card, {}).sample(cloud[:, :3]), :3]
    distances = np.linalg.norm(points[None, :, :3] - centers[:, None], axis=2)
    patches = points[distances.argsort(axis=1, kind="stable")[:, : card.neighbors]]
    patches[:, :, :3] -= centers[:, None]
    feature = point_bert_reference.Exact(encoder)(patches[None], centers[None])[0]
    embedding = feature @ tensors["pc_projection"].double().numpy()
    return embedding / np.linalg.norm(embedding)
