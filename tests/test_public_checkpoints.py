"""Each published layout all the way: convert, train, export, run; at each hand-over the embeddings agree."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from numpy.typing import NDArray
from torch import Tensor
from typer.testing import CliRunner

from crossmost.adaptation.run import train
from crossmost.checkpoints.base import load_base
from crossmost.checkpoints.convert import convert_checkpoint
from crossmost.checkpoints.layout import Layout
from crossmost.checkpoints.layouts import LAYOUTS
from crossmost.checkpoints.run import load_run
from crossmost.cli import app
from crossmost.config import make_config
from crossmost.data.reading import Reading
from crossmost.data.shapes import make_shape
from crossmost.export.parity import COSINE_MIN, GATES
from crossmost.export.source import load_exportable
from crossmost.export.workflow import EngineRequest, ExportOptions, export
from crossmost.models.point_cards import PointCard
from crossmost.runtime import Classifier
from crossmost.runtime.engine_options import Profile
from crossmost.runtime.onnx_session import create_session
from crossmost.runtime.sampling import group
from crossmost.runtime.vocabulary import Vocabulary, load_vocabulary
from crossmost.workflows import embed_clouds

Array = NDArray[Any]
State = dict[str, Tensor]
NAMES = ("mug", "bowl", "lamp")
TOLERANCE = 5e-5
COLUMNS = "xyzrgb"
ONE_STEP = {"epochs": 1, "batch_size": 3, "warmup_epochs": 0.0, "views": 2, "device": "cpu", "center": "none"}
BUILDER = importlib.util.find_spec("tensorrt_rtx")
NO_LEARNING = 1e-30
"""A rate at which no weight moves: what leaves the training is what came in."""


def load_public_layouts() -> ModuleType:
    """public_layouts.py, beside this file."""
    spec = importlib.util.spec_from_file_location(
        "public_layouts", Path(__file__).with_name("public_layouts.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


public = load_public_layouts()


@dataclass(frozen=True)
class Case:
    """A published file: its card, how its makers wrap it, the towers beside the point branch, its class vectors."""

    card: str
    wrap: Callable[[State], Any]
    towers: str = ""
    classifier: bool = False
    named: bool = False
    half: bool = True  # whether it is exported in half precision too

    def state(self, layout: Layout) -> State:
        shapes = {**public.point_shapes(layout), **(public.towers(self.towers) if self.towers else {})}
        if self.classifier:
            shapes["classifier"] = (layout.dim, len(NAMES))
        return public.draw(shapes, half=self.card.startswith("uni3d"))


def self_trained(state: State) -> Any:
    return public.published.self_training(state, {key: value + 1 for key, value in state.items()})


CASES = {
    "ulip": Case("ulip-pointbert", public.published.ddp, "slip"),
    "ulip-2": Case("ulip2-pointbert", public.published.ddp),
    "cross-most": Case("crossmost-pointbert", self_trained, "clip", classifier=True, named=True),
    "cross-most without names": Case("crossmost-pointbert", self_trained, "clip", classifier=True, half=False),
    "cross-most, where it started": Case("crossmost-pointbert", public.published.ddp, "clip and text", half=False),
    "openshape g14": Case(
        "openshape-pointbert-vitg14", lambda state: public.published.openshape_train(state, torch.tensor(2.6))
    ),
    "openshape l14": Case("openshape-pointbert-vitl14", lambda state: public.published.prefixed(state, "pc_encoder.")),
    "openshape b32": Case("openshape-pointbert-vitb32", lambda state: public.published.prefixed(state, "pc_encoder.")),
    "uni3d ti": Case("uni3d-ti", public.published.deepspeed),
    "uni3d b": Case("uni3d-b", lambda state: public.published.deepspeed(state, "module.")),
}  # fmt: skip


def apart(found: Array, expected: Array) -> float:
    """max|d| / rms, of a batch the worst."""
    exact = np.asarray(expected, np.float64)
    return float((np.abs(found - exact).max(axis=-1) / np.sqrt((exact**2).mean(axis=-1))).max())


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder of three coloured clouds, z up: real ones where there are some, and no distances alike."""
    rng = np.random.default_rng(0)
    try:
        source = request.getfixturevalue("shared_data") / "modelnet40_airplane_bathtub_2048.npz"
        with np.load(source) as archive:
            bodies = [archive["points"][row, :600].astype(np.float64) for row in (0, 500, 800)]
    except pytest.skip.Exception:
        bodies = [make_shape(name, rng, 600).astype(np.float64) for name in ("chair", "bottle", "table")]
    folder = tmp_path_factory.mktemp("clouds")
    for number, body in enumerate(bodies):
        moved = 3.0 * (body + rng.normal(scale=1e-3, size=body.shape)) + rng.normal(size=3)
        colored = np.concatenate([moved, rng.random(body.shape)], axis=1)
        np.save(folder / f"{number}.npy", colored.astype(np.float32))
    return folder


def stored(clouds: Path) -> list[Array]:
    return [np.load(path) for path in sorted(clouds.glob("*.npy"))]


def words_for(layout: Layout) -> Vocabulary:
    rows = np.random.default_rng(1).normal(size=(len(NAMES), layout.dim))
    return Vocabulary.create(NAMES, rows, logit_scale=20.0, tag=layout.text)


def run_graph(path: Path, card: PointCard, prepared: list[Array]) -> Array:
    """`encoder.onnx` in ONNX Runtime, or `model.onnx`, one cloud at a time."""
    session = create_session(path, threads=1)
    rows = []
    for cloud in prepared:
        patches, centers = group(cloud, card.groups, card.neighbors, card.radius)
        patched = {"patches": patches[None], "centers": centers[None]}
        inputs = patched if path.name == "encoder.onnx" else {"points": cloud[None]}
        rows.append(session.run(None, inputs)[0])
    return np.concatenate(rows)


@dataclass(frozen=True)
class Passage:
    """What a checkpoint became at each hand-over, and its embeddings there, (n, D)."""

    case: Case
    base: Path
    run: Path
    published: Array


@pytest.fixture(scope="module", params=CASES)
def passage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, clouds: Path
) -> Passage:
    """A checkpoint converted, and trained for a step that learns nothing."""
    case, folder = CASES[request.param], tmp_path_factory.mktemp("passage")
    layout = public.layout_of(case.card, public.SMALL)
    state = case.state(layout)
    torch.save(case.wrap(state), folder / "checkpoint.pt")
    base, run = folder / "base.safetensors", folder / "run"
    made = convert_checkpoint(
        folder / "checkpoint.pt", base, layouts=public.SMALL, classes=NAMES if case.named else None
    )
    assert made.architecture.point == layout.card
    assert (made.architecture.image is not None) == bool(case.towers)
    words = words_for(layout)
    if made.classes:
        words = load_vocabulary(made.classes)
        trained = torch.nn.functional.normalize(state["classifier"], dim=0).T
        np.testing.assert_allclose(words.embeddings, trained, atol=1e-6)
    config = make_config({**ONE_STEP, "learning_rate": NO_LEARNING})
    opened = Reading(columns=COLUMNS).open(clouds, layout.card)
    train(opened, base, words, config, run, on_batch=lambda _: None, on_epoch=lambda _: None)
    expected = [public.published_embedding(state, layout.card, cloud) for cloud in stored(clouds)]
    return Passage(case, base, run, np.stack(expected))


def test_the_base_embeds_as_published(passage: Passage, clouds: Path) -> None:
    found = embed_clouds(passage.base, [clouds], Reading(columns=COLUMNS)).rows
    assert apart(found, passage.published) <= TOLERANCE
    # Neither another cloud nor another side of it would do.
    assert apart(found, np.roll(passage.published, 1, axis=0)) > 100 * TOLERANCE
    tilted = embed_clouds(passage.base, [clouds], Reading("y", COLUMNS)).rows
    assert apart(tilted, passage.published) > 100 * TOLERANCE


def test_the_run_embeds_as_its_base(passage: Passage, clouds: Path) -> None:
    run = load_run(passage.run)
    assert run.config.mode == ("joint" if passage.case.towers else "point-only")
    found = embed_clouds(passage.run, [clouds], Reading(columns=COLUMNS)).rows
    assert apart(found, passage.published) <= TOLERANCE
    base, _ = load_base(passage.base)
    if base.image_tower is not None:
        pictures = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = base.embed_image(base.image_features(pictures))
            found = run.adapted.embed_image(run.adapted.image_features(pictures))
        assert apart(found.numpy(), expected.numpy()) <= TOLERANCE


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_bundle_embeds_as_the_run(passage: Passage, clouds: Path, tmp_path: Path, precision: Any) -> None:
    if precision == "fp16" and not passage.case.half:
        pytest.skip("the point encoder of another case")
    engine = EngineRequest("tensorrt-rtx") if precision == "fp16" and BUILDER else None
    options = ExportOptions(precision, batch=Profile(1, 2, 3), clouds=3, engine=engine, threads=1)
    source = load_exportable(passage.run, None)
    manifest = export(source, tmp_path / "bundle", options, say=lambda _: None)
    assert bool(manifest.engines) == (engine is not None), manifest.notes
    card = source.architecture.point
    prepared = [public.as_published(cloud, card) for cloud in stored(clouds)]
    graphs = ("encoder.onnx", "model.onnx")
    found = {graph: run_graph(tmp_path / "bundle" / graph, card, prepared) for graph in graphs}
    with Classifier.load(tmp_path / "bundle", "onnxruntime-cpu", threads=1, up_axis="z") as classifier:
        assert classifier.classes == NAMES
        found["z up"] = classifier.embed(stored(clouds))
        found["y up"] = classifier.embed([public.lying(cloud) for cloud in stored(clouds)], up_axis="y")
    for where, rows in found.items():
        if precision == "fp32":
            assert apart(rows, passage.published) <= TOLERANCE, where
        else:
            assert (rows * passage.published).sum(axis=1).min() >= GATES["fp16"][COSINE_MIN].limit, where


def test_a_step_that_learns_reaches_the_bundle(clouds: Path, tmp_path: Path) -> None:
    case, layout = (
        CASES["cross-most, where it started"],
        public.layout_of("crossmost-pointbert", public.SMALL),
    )
    torch.save(case.wrap(case.state(layout)), tmp_path / "checkpoint.pt")
    convert_checkpoint(tmp_path / "checkpoint.pt", tmp_path / "base.safetensors", layouts=public.SMALL)
    learning = {"learning_rate": 1.0, "exported": "student", "selection": "last", "center": "target"}
    config = make_config({**ONE_STEP, **learning})
    opened = Reading(columns=COLUMNS).open(clouds, layout.card)
    train(
        opened, tmp_path / "base.safetensors", words_for(layout), config, tmp_path / "run",
        on_batch=lambda _: None, on_epoch=lambda _: None,
    )  # fmt: skip
    base, run = (
        embed_clouds(tmp_path / name, [clouds], Reading(columns=COLUMNS)).rows
        for name in ("base.safetensors", "run")
    )
    assert apart(run, base) > 100 * TOLERANCE
    options = ExportOptions(batch=Profile(1, 2, 3), clouds=3, threads=1)
    export(load_exportable(tmp_path / "run", None), tmp_path / "bundle", options, say=lambda _: None)
    with Classifier.load(tmp_path / "bundle", "onnxruntime-cpu", threads=1, up_axis="z") as classifier:
        assert apart(classifier.embed(stored(clouds)), run) <= TOLERANCE


def crossmost(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.stderr
    return done


def test_the_commands_take_a_full_size_checkpoint_all_the_way(clouds: Path, tmp_path: Path) -> None:
    layout = public.layout_of("crossmost-pointbert", LAYOUTS)
    state = public.draw(public.point_shapes(layout))
    torch.save(public.published.ddp(state), tmp_path / "checkpoint.pt")
    words_for(layout).save(tmp_path / "classes.npz")
    (tmp_path / "lying").mkdir()
    many = make_shape("chair", np.random.default_rng(2), layout.card.points + 1000)
    bodies = [*stored(clouds)[:2], np.concatenate([many, np.zeros_like(many)], axis=1)]
    for number, body in enumerate(bodies):
        np.save(tmp_path / "lying" / f"{number}.npy", public.lying(body))
    read = ("--up-axis", "y", "--columns", COLUMNS)
    made = crossmost(
        "convert", tmp_path / "checkpoint.pt", "--to", tmp_path / "b.safetensors", "--as", layout.card.name
    )
    assert "crossmost-pointbert: 64 patches of 32 points, 3 numbers a point, up axis y" in made.stdout
    short = [item for name, value in ONE_STEP.items() for item in ("--set", f"{name}={value}")]
    crossmost(
        "train", tmp_path / "lying", "--base", tmp_path / "b.safetensors", "--vocabulary", tmp_path / "classes.npz",
        "--out", tmp_path / "run", *read, *short, "--set", f"learning_rate={NO_LEARNING}",
    )  # fmt: skip
    crossmost(
        "export", tmp_path / "run", "--out", tmp_path / "bundle", "--verify-clouds", 2, "--batch", "1:2:2"
    )
    crossmost("embed", tmp_path / "bundle", tmp_path / "lying", "--out", tmp_path / "bundle.npy", *read)
    crossmost("embed", tmp_path / "run", tmp_path / "lying", "--out", tmp_path / "run.npy", *read)
    bundle, run = np.load(tmp_path / "bundle.npy"), np.load(tmp_path / "run.npy")
    expected = np.stack([public.published_embedding(state, layout.card, body) for body in bodies[:2]])
    assert apart(run[:2], expected) <= TOLERANCE
    assert apart(bundle[:2], expected) <= TOLERANCE
    assert apart(bundle[2], run[2]) <= TOLERANCE  # both keep the same points of the large one
    said = crossmost("predict", tmp_path / "bundle", tmp_path / "lying", "--json", *read).stdout.splitlines()
    with Classifier.load(tmp_path / "bundle", up_axis="z") as classifier:
        for line, prediction in zip(said, classifier(bodies), strict=True):
            assert dict(json.loads(line)["top_k"]) == pytest.approx(dict(prediction.top_k), abs=1e-4)
