"""Fixtures every test package shares."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from crossmost.checkpoints.base import Architecture
    from crossmost.config import TrainConfig
    from crossmost.data.dataset import CloudDataset
    from crossmost.runtime.vocabulary import Vocabulary

SHAPE_CLASSES = ("bottle", "chair", "monitor", "table")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clouds; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("CROSSMOST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "modelnet10_vox30_1024.npz").is_file():
        pytest.skip("real clouds are not here: set CROSSMOST_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def shared_layouts() -> Path:
    """The folder of key lists of published checkpoints; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("CROSSMOST_LAYOUTS", Path(__file__).parents[2] / "shared" / "layouts"))
    if not (folder / "ulip_pointbert.json").is_file():
        pytest.skip("layouts are not here: set CROSSMOST_LAYOUTS to their folder")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@contextlib.contextmanager
def _full_disk(room: int) -> Iterator[None]:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="session")
def full_disk() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Make every write beyond so many bytes of a file fail, as on a full disk, in the system itself."""
    return _full_disk


# What a whole run needs, in a size that trains in a second. torch is imported by the fixtures that need it: the
# tests of the runtime do without.


@pytest.fixture(scope="session")
def write_shapes() -> Callable[..., Path]:
    """Write procedural shapes of four classes, in turn, as an archive.

    The `bad` ones are all NaN. Arrays can be replaced or left out (None).
    """
    from crossmost.data.shapes import make_shape

    def write(path: Path, count: int = 24, *, seed: int = 0, bad: Sequence[int] = (), **arrays: Any) -> Path:
        rng = np.random.default_rng(seed)
        labels = np.arange(count) % len(SHAPE_CLASSES)
        made = {
            "points": np.stack([make_shape(SHAPE_CLASSES[label], rng, 96) for label in labels]),
            "labels": labels,
            "class_names": np.array(SHAPE_CLASSES),
            "ids": np.array([f"shape{index}" for index in range(count)]),
        }
        made["points"][list(bad)] = np.nan
        np.savez(path, **{name: array for name, array in (made | arrays).items() if array is not None})
        return path

    return write


@pytest.fixture(scope="session")
def tiny_architecture() -> Architecture:
    """Encoders of a few thousand parameters."""
    from crossmost.checkpoints.base import Architecture
    from crossmost.models.image_tower import ImageCard
    from crossmost.models.point_cards import PointBertCard

    point = PointBertCard(
        name="test", points=64, groups=8, neighbors=4, channels=3, token_widths=(8, 8, 8, 8), width=16, depth=1,
        heads=2, learning_rate=1e-2,
    )  # fmt: skip
    image = ImageCard(image_size=16, patch_size=8, width=16, layers=1, heads=2, output_dim=16)
    return Architecture(point, image, 16, "random directions")


@pytest.fixture(scope="session")
def tiny_vocabulary() -> Vocabulary:
    """The four classes with directions of their own."""
    from crossmost.runtime.vocabulary import Vocabulary

    rows = np.random.default_rng(1).standard_normal((len(SHAPE_CLASSES), 16))
    return Vocabulary.create(SHAPE_CLASSES, rows, logit_scale=100.0, tag="random directions")


@pytest.fixture(scope="session")
def open_shapes(tiny_architecture: Architecture) -> Callable[[Path], CloudDataset]:
    """Open a dataset as the tiny encoders want it."""
    from crossmost.data.dataset import open_dataset

    card = tiny_architecture.point
    return lambda path: open_dataset(path, points=card.points, least=card.least)


@pytest.fixture(scope="session")
def shapes_file(tmp_path_factory: pytest.TempPathFactory, write_shapes: Callable[..., Path]) -> Path:
    """An archive of 24 labelled shapes."""
    return write_shapes(tmp_path_factory.mktemp("shapes") / "shapes.npz")


@pytest.fixture
def shapes(open_shapes: Callable[[Path], CloudDataset], shapes_file: Path) -> CloudDataset:
    """The 24 shapes, with labels."""
    return open_shapes(shapes_file)


@pytest.fixture(scope="session")
def tiny_base(
    tmp_path_factory: pytest.TempPathFactory,
    write_shapes: Callable[..., Path],
    open_shapes: Callable[[Path], CloudDataset],
    tiny_architecture: Architecture,
    tiny_vocabulary: Vocabulary,
) -> Path:
    """The file of a base that knows the four classes, from other shapes, well but not perfectly."""
    from crossmost.adaptation.pretrain import PretrainConfig, pretrain
    from crossmost.checkpoints.base import save_base

    folder = tmp_path_factory.mktemp("base")
    clouds = open_shapes(write_shapes(folder / "source.npz", 32, seed=9))
    assert clouds.labels is not None
    point, image, _, _ = tiny_architecture
    config = PretrainConfig(epochs=40, batch_size=8, learning_rate=1e-2, device="cpu")
    model = pretrain(
        clouds.unlabelled(), clouds.labels, tiny_vocabulary.embeddings, point, image, config, lambda _: None
    )
    save_base(folder / "base.safetensors", model, tiny_architecture, {})
    return folder / "base.safetensors"


@pytest.fixture(scope="session")
def points_base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """The file of the same base as its point branch alone."""
    from crossmost.checkpoints.base import load_base, save_base
    from crossmost.models.student import DualEncoder

    model, architecture = load_base(tiny_base)
    points = DualEncoder(architecture.point, None, architecture.dim)
    points.load_state_dict({name: model.state_dict()[name] for name in points.state_dict()})
    path = tmp_path_factory.mktemp("points") / "points.safetensors"
    save_base(path, points, architecture._replace(image=None), {})
    return path


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., TrainConfig]:
    """Make the configuration of a short run on the CPU, some of its options changed."""
    from crossmost.config import make_config

    short = {"epochs": 2, "batch_size": 8, "views": 2, "warmup_epochs": 0.0, "device": "cpu"}
    return lambda **options: make_config({**short, **options})


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_base: Path,
    tiny_vocabulary: Vocabulary,
    tiny_config: Callable[..., TrainConfig],
    open_shapes: Callable[[Path], CloudDataset],
    shapes_file: Path,
) -> Path:
    """The folder of a run of two epochs on the 24 shapes; to be left as it is."""
    from crossmost.adaptation.run import train

    folder = tmp_path_factory.mktemp("finished") / "run"
    train(
        open_shapes(shapes_file), tiny_base, tiny_vocabulary, tiny_config(), folder,
        on_batch=lambda _: None, on_epoch=lambda _: None,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Callable[[str], Path]:
    """Export the finished run once in each precision asked for; bundles are to be left as they are."""
    from crossmost.export.source import load_exportable
    from crossmost.export.workflow import ExportOptions, export

    made: dict[str, Path] = {}

    def make(precision: str) -> Path:
        if precision not in made:
            out = tmp_path_factory.mktemp("bundles") / f"{precision}.bundle"
            options = ExportOptions(precision=precision, clouds=8)  # type: ignore[arg-type]
            export(load_exportable(finished_run, None), out, options, say=lambda _: None)
            made[precision] = out
        return made[precision]

    return make


# A tiny CLIP of open_clip's own making, registered by name, with its weights in a file.


@dataclass(frozen=True)
class TinyClip:
    name: str
    weights: Path
    model: Any  # open_clip's own CLIP with these weights


CLIP_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
CLIP_VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}


def make_clip(folder: Path, name: str, **settings: Any) -> TinyClip:
    import torch
    from safetensors.torch import save_file

    from crossmost.models.clip import import_open_clip

    open_clip = import_open_clip()
    config = {"embed_dim": 24, "vision_cfg": CLIP_VISION, "text_cfg": CLIP_TEXT, **settings}
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(7)
    model = open_clip.create_model(name).eval()
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    save_file(model.state_dict(), folder / f"{name}.safetensors")
    return TinyClip(name, folder / f"{name}.safetensors", model)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> TinyClip:
    return make_clip(tmp_path_factory.mktemp("clip"), "crossmost-test-tiny")


@pytest.fixture(scope="session")
def tiny_quickgelu_clip(tmp_path_factory: pytest.TempPathFactory) -> TinyClip:
    return make_clip(tmp_path_factory.mktemp("clip"), "crossmost-test-tiny-quickgelu", quick_gelu=True)
