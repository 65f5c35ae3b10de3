"""Bundles and clouds that the tests of the runtime share.

torch is imported where a bundle is made: the runtime does without.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossmost.models.student import Projection

if TYPE_CHECKING:
    from crossmost.checkpoints.base import Architecture
    from crossmost.models.point_cards import PointCard
    from crossmost.runtime.vocabulary import Vocabulary

CLIP = "crossmost-test-speaking"
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}


@pytest.fixture(scope="session")
def exported(bundle: Callable[[str], Path]) -> Path:
    """The bundle, in float32, of a run on four kinds of shapes; to be left as it is."""
    return bundle("fp32")


@pytest.fixture(scope="session")
def half(bundle: Callable[[str], Path]) -> Path:
    """The same in fp16."""
    return bundle("fp16")


@pytest.fixture(scope="session")
def speaking(
    tmp_path_factory: pytest.TempPathFactory, tiny_architecture: Architecture, tiny_vocabulary: Vocabulary
) -> Path:
    """A bundle with a text encoder, of an encoder of colored clouds with random weights."""
    import torch

    from crossmost.export.text_tower import export_text_encoder
    from crossmost.export.tokenizer import write_tokenizer
    from crossmost.models.clip import import_open_clip
    from crossmost.models.text_tower import text_model

    config = tmp_path_factory.mktemp("clip") / f"{CLIP}.json"
    config.write_text(json.dumps({"embed_dim": tiny_vocabulary.dim, "vision_cfg": VISION, "text_cfg": TEXT}))
    import_open_clip().add_model_config(config)

    def add(folder: Path) -> None:
        torch.manual_seed(1)
        export_text_encoder(text_model(CLIP, None, allow_random=True), folder, precision="fp32")
        write_tokenizer(CLIP, folder / "tokenizer.json")

    out = tmp_path_factory.mktemp("speaking") / "speaking.bundle"
    colored = tiny_architecture.point.model_copy(update={"channels": 6})
    write_untrained(out, "fp32", colored, tiny_vocabulary, add)
    return out


def write_untrained(
    out: Path, precision: Any, point: PointCard, vocabulary: Vocabulary, extra: Callable[[Path], None]
) -> None:
    """Write a bundle that nobody verified; `extra` adds files to its folder."""
    import torch

    from crossmost.export.bundle import write_bundle
    from crossmost.export.graph import EncoderGraph
    from crossmost.export.graph_files import write_graphs
    from crossmost.models.point_bert import PointBert
    from crossmost.runtime.class_bank import ClassBank
    from crossmost.runtime.manifest import Encoder, Manifest

    torch.manual_seed(3)
    names = ("name", "points", "groups", "neighbors", "channels", "up_axis", "color_filler")
    facts = Encoder(**{name: getattr(point, name) for name in names}, dim=vocabulary.dim)
    projection = torch.randn(2 * point.width, vocabulary.dim)

    def build(folder: Path) -> Manifest:
        graph = EncoderGraph(PointBert(point).eval(), Projection(projection), precision)
        write_graphs(graph, facts, precision, folder)
        ClassBank.plain(replace(vocabulary, prompts=("a {}.",))).save(folder / "classes.npz")
        extra(folder)
        return Manifest(1, "0.1.0", facts, precision, 18, 10)

    write_bundle(out, build)


@pytest.fixture
def altered(exported: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy the bundle of the run and change entries of its manifest, or of the manifest's encoder."""

    def alter(**entries: Any) -> Path:
        bundle = tmp_path / "altered.bundle"
        shutil.copytree(exported, bundle)
        manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
        for key, value in entries.items():
            (manifest if key in manifest else manifest["encoder"])[key] = value
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        return bundle

    return alter


@pytest.fixture(scope="session")
def shapes_of() -> Callable[..., list[NDArray[np.float32]]]:
    """Make clouds of the four kinds of shapes, in turn, of different sizes."""
    from crossmost.data.shapes import make_shape

    def make(count: int, *, seed: int = 5) -> list[NDArray[np.float32]]:
        rng = np.random.default_rng(seed)
        names = ("bottle", "chair", "monitor", "table")
        return [make_shape(names[index % 4], rng, int(rng.integers(40, 200))) for index in range(count)]

    return make
