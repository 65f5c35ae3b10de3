"""What these tests share: the float64 reference, the published recipe field by field, a small student, a run."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from crossmost.adaptation.trainer import Trainer
from crossmost.checkpoints.base import load_base
from crossmost.checkpoints.run import build_student
from crossmost.config import TrainConfig
from crossmost.data.dataset import CloudDataset
from crossmost.models.image_tower import ImageCard
from crossmost.models.point_cards import PointBertCard
from crossmost.models.student import Student
from crossmost.runtime.vocabulary import Vocabulary

PUBLISHED: dict[str, Any] = {
    "recipe": "reference",
    "mode": "joint",
    "epochs": 200,
    "batch_size": 128,
    "accumulate": 4,
    "learning_rate": 2e-5,
    "min_learning_rate_ratio": 0.05,
    "warmup_epochs": 1.0,
    "weight_decay": 0.05,
    "layer_decay": 0.65,
    "freeze_patch_encoder": True,
    "fairness_weight": 1.0,
    "mask_weight": 1.0,
    "global_local_weight": 0.2,
    "alignment_weight": 1.0,
    "point_weight": 1.0,
    "threshold_joint": 0.82,
    "threshold_image": 0.80,
    "threshold_point": 0.82,
    "point_confidence": 1.0,
    "ema_start": 0.99,
    "ema_end": 0.9998,
    "ema_ramp_steps": 400,
    "point_target": "mask-token",
    "image_divisor": "sequence",
    "alignment": "instance",
    "joint_label": "winner",
    "threshold": "fixed",
    "batch_norm": "live",
    "classifier": "decayed",
    "ema_ramp": "steps",
    "fairness": "batch",
    "class_prior": None,
}
"""METHOD 1 and 2 with ScanObjectNN's numbers, on 4 x 128 clouds."""


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """reference.py, loaded by path: with importlib's import mode a folder of tests is no package."""
    path = Path(__file__).with_name("reference.py")
    spec = importlib.util.spec_from_file_location("float64_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def published() -> Callable[..., TrainConfig]:
    """Make the published configuration, some of its fields changed."""
    return lambda **changes: TrainConfig(**{**PUBLISHED, **changes})


@pytest.fixture(scope="session")
def make_student() -> Callable[..., Student]:
    """Make a student of a few thousand parameters; its image grid is 14 x 14, as ViT-B/16's."""

    def make(
        *,
        layers: int = 2,
        renormalize: bool = False,
        embeddings: torch.Tensor | None = None,
        tau: float | None = None,
        seed: int = 0,
    ) -> Student:
        torch.manual_seed(seed)
        point = PointBertCard(
            name="test", points=64, groups=10, neighbors=6, channels=3, token_widths=(8, 12, 16, 12),
            width=16, depth=2, heads=2, drop_path=0.0, learning_rate=1e-3,
        )  # fmt: skip
        image = ImageCard(image_size=28, patch_size=2, width=16, layers=layers, heads=2, output_dim=8)
        if embeddings is None:
            embeddings = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
        student = Student(point, image, embeddings, renormalize_classifier=renormalize)
        if tau is not None:
            student.logit_scale.data.fill_(math.log(tau))
        return student

    return make


@pytest.fixture
def start(
    tiny_base: Path,
    tiny_vocabulary: Vocabulary,
    shapes: CloudDataset,
    tiny_config: Callable[..., TrainConfig],
) -> Callable[..., Trainer]:
    """Set up a run from the tiny base, on the 24 shapes or on other clouds."""

    def make(clouds: CloudDataset = shapes, **options: Any) -> Trainer:
        base, architecture = load_base(tiny_base)
        config = tiny_config(**options)
        student = build_student(base, architecture, tiny_vocabulary, config)
        return Trainer(student, clouds.unlabelled(), config)

    return make
