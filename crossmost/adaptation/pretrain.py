"""Make a base: align a point encoder, and an image tower that has no weights yet, with CLIP text embeddings.

The objective is ULIP's (METHOD 4.2): each cloud is drawn to the embedding of its caption and to its own view.
Objects with the same caption, as class names are, are positives of each other, not negatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from crossmost.adaptation.devices import autocast, choose_device, keep_freed_memory
from crossmost.config import explain_options
from crossmost.data.augment import PointAugment, augment_points, geometric_image
from crossmost.data.samples import Clouds, EpochOrder, Key, PointBatch, load, pad
from crossmost.data.views import render_views
from crossmost.errors import InputError, WorkFailed
from crossmost.models.clip import has_scheme
from crossmost.models.grouping import cut
from crossmost.models.image_tower import ImageCard
from crossmost.models.point_cards import PointCard
from crossmost.models.student import DualEncoder
from crossmost.runtime.preprocess import fill

AUGMENT = PointAugment(
    scale=(0.8, 1.25),
    rotation=(0.0, 2 * np.pi),
    tilt_sigma=0.06,
    tilt_clip=0.18,
    translation=0.05,
    jitter_sigma=0.005,
    jitter_clip=0.02,
    dropout=0.5,
    drop_mode="remove",
)
"""ULIP's, milder where a cloud has a few hundred points and not 8192."""


LOWER_RATE = "lower --learning-rate; no base was written"


class PretrainConfig(BaseModel):
    """A pre-training run."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    seed: int = Field(0, ge=0, lt=2**32)
    epochs: int = Field(40, ge=1)
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup_epochs: float = Field(1.0, ge=0)
    temperature: float = Field(0.07, gt=0, description="at the start; learned, never below 0.01")
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    workers: int | None = Field(None, ge=0)


def make_pretrain_config(options: Mapping[str, Any]) -> PretrainConfig:
    """Build the options of a pre-training run.

    Raises:
        InputError: a value that is not allowed.
    """
    try:
        return PretrainConfig(**options)
    except ValidationError as error:
        raise InputError(explain_options(error)) from error


class CaptionedBatch(NamedTuple):
    """Clouds, one view of each, and which caption is theirs."""

    points: PointBatch
    images: Tensor  # (B, 3, H, W)
    caption: Tensor  # (B,) int64

    def to(self, device: torch.device) -> CaptionedBatch:
        """The same on another device."""
        images, caption = (part.to(device, non_blocking=True) for part in (self.images, self.caption))
        return CaptionedBatch(self.points.to(device), images, caption)


class CaptionedSamples(Dataset[tuple[NDArray[np.float32], Tensor, int] | None]):
    """Augmented clouds, each with a view rendered from a direction of its own."""

    def __init__(
        self, clouds: Clouds, captions: NDArray[np.int64], *, seed: int, image_size: int, least: int
    ):
        self.clouds = clouds
        self.captions = captions
        self.seed = seed
        self.image_size = image_size
        self.least = least

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, key: Key) -> tuple[NDArray[np.float32], Tensor, int] | None:
        """Make the sample of (epoch, index), or say that the file is bad."""
        epoch, index = key
        cloud = self.clouds.try_load(index)
        if cloud is None:
            return None
        rng = np.random.default_rng([self.seed, epoch, index])
        seen = augment_points(cloud, AUGMENT, rng)[:, :3]
        view = render_views(seen, count=1, size=self.image_size, azimuth=rng.uniform(0, 2 * math.pi))[0]
        image = geometric_image(view, self.image_size, int(rng.integers(2**31)))
        points = fill(augment_points(cloud, AUGMENT, rng), self.least)
        return points, image, int(self.captions[index])


def collate(samples: Sequence[tuple[NDArray[np.float32], Tensor, int]]) -> CaptionedBatch:
    """Stack samples, at least one."""
    clouds, images, captions = zip(*samples, strict=True)
    return CaptionedBatch(pad(clouds), torch.stack(images), torch.tensor(captions))


def aligned(first: Tensor, second: Tensor, scale: Tensor, caption: Tensor) -> Tensor:
    """Symmetric contrastive loss; pairs with the same caption share the target equally.

    Args:
        first: (B, D) unit rows.
        second: (B, D) unit rows.
        scale: tau.
        caption: (B,) int64; all different gives ULIP's loss.
    """
    logits = scale * first @ second.T
    same = (caption[:, None] == caption[None, :]).float()
    target = same / same.sum(dim=1, keepdim=True)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def objective(
    model: DualEncoder, batch: CaptionedBatch, texts: Tensor, *, train_image: bool, precision: str = "float32"
) -> dict[str, Tensor]:
    """The terms of the loss: cloud to text, cloud to image, and image to text where the tower is trained.

    Logits are float32 whatever the precision of the networks: at a scale of 100 steps of bfloat16 are half a logit.

    Args:
        model: in training mode.
        batch: on the model's device.
        texts: (M, D) unit rows, the embeddings of all captions.
        train_image: whether the image tower learns.
        precision: of the networks.
    """
    card = model.point_encoder.card
    points, sizes = batch.points
    groups = cut(points, card, sizes)
    with autocast(texts.device, precision):
        point = model.embed_point(model.point_features(groups)).float()
        with torch.set_grad_enabled(train_image):
            image = model.embed_image(model.image_features(batch.images)).float()
    scale = model.logit_scale.exp()
    terms = {
        "text": functional.cross_entropy(scale * point @ texts.T, batch.caption),
        "image": aligned(point, image, scale, batch.caption),
    }
    if train_image:
        terms["image_text"] = functional.cross_entropy(scale * image @ texts.T, batch.caption)
    return terms


def pretrain(
    clouds: Clouds,
    captions: NDArray[np.int64],
    texts: NDArray[np.float32],
    point_card: PointCard,
    image_card: ImageCard,
    config: PretrainConfig,
    report: Callable[[dict[str, Any]], None],
) -> DualEncoder:
    """Align both branches with the text embeddings of the captions.

    Args:
        clouds: the source data.
        captions: (len(clouds),) row of `texts` for each cloud.
        texts: (M, D) unit rows.
        point_card: the point encoder to train.
        image_card: the image tower; one with weights stays frozen, one without is trained too.
        config: the options.
        report: called with a record after each epoch.

    Returns:
        The base, on the CPU, in evaluation mode.

    Raises:
        WorkFailed: loss or weights are no longer numbers.
    """
    torch.manual_seed(config.seed)
    device = choose_device(config.device)
    keep_freed_memory()
    model = DualEncoder(point_card, image_card, texts.shape[1]).to(device).train()
    train_image = image_card.weights is None and not has_scheme(image_card.clip or "")
    model.images().requires_grad_(train_image)
    with torch.no_grad():
        model.logit_scale.fill_(-math.log(config.temperature))
    table = torch.from_numpy(texts).to(device)
    samples = CaptionedSamples(
        clouds, captions, seed=config.seed, image_size=model.images().size, least=point_card.least
    )
    optimizer = _optimizer(model, config)
    steps_per_epoch = max(1, len(clouds) // config.batch_size)
    for epoch in range(config.epochs):
        totals: dict[str, float] = {}
        for step, batch in enumerate(_batches(samples, config, epoch, device)):
            done = epoch * steps_per_epoch + step
            for parameters in optimizer.param_groups:
                parameters["lr"] = config.learning_rate * _schedule(done, steps_per_epoch, config)
            torch.manual_seed(config.seed * 1_000_003 + done)  # stochastic depth
            terms = objective(
                model, batch.to(device), table, train_image=train_image, precision=config.precision
            )
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                raise WorkFailed(f"the loss is {loss.item()} in epoch {epoch + 1}: {LOWER_RATE}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(100))
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + value.item() / steps_per_epoch
        report({"epoch": epoch, "epochs": config.epochs, **totals, "scale": model.logit_scale.exp().item()})
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise WorkFailed(f"not all weights are numbers after the last step: {LOWER_RATE}")
    return model.cpu().eval().requires_grad_(True)


def _batches(
    samples: CaptionedSamples, config: PretrainConfig, epoch: int, device: torch.device
) -> Iterator[CaptionedBatch]:
    order = EpochOrder(len(samples), config.batch_size, seed=config.seed, epoch=epoch)
    loaded = load(samples, collate, config.workers, device, batch_sampler=order)
    return (batch for batch in loaded if batch is not None)


def _schedule(step: int, steps_per_epoch: int, config: PretrainConfig) -> float:
    """Share of the peak learning rate: linear warm-up, cosine to a hundredth."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1.0, config.epochs * steps_per_epoch - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _optimizer(model: DualEncoder, config: PretrainConfig) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
