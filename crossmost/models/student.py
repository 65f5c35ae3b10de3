"""The two branches in one joint space: what pre-training makes, the teacher copies and the student learns."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crossmost.errors import InputError
from crossmost.models.architectures import build_point_encoder
from crossmost.models.grouping import Groups, cut
from crossmost.models.image_tower import ImageCard, ImageFeatures, ImageTower, build_image_tower
from crossmost.models.point_cards import PointCard
from crossmost.models.point_encoder import PointEncoder, PointFeatures

LOGIT_SCALE = 4.6052
"""ln 100, CLIP's temperature (METHOD 4.1)."""
POINTS_AT_ONCE = 1 << 14
"""Points of all patches of a pass of `embed_points`, which bounds its memory."""


def unit(x: Tensor) -> Tensor:
    """Scale the last axis to unit length, in float32."""
    return nn.functional.normalize(x.float(), dim=-1)


class Projection(nn.Module):
    """From an encoder's feature into the joint space: unit(z W - c).

    The center c takes out what all clouds of a target have in common (`Student`); a base has none.
    """

    def __init__(self, matrix: Tensor, center: Tensor | None = None):
        """Hold copies.

        Args:
            matrix: W, (F, D).
            center: c, (D,); None: nothing is subtracted.
        """
        super().__init__()
        self.matrix = nn.Parameter(matrix.detach().float().clone(), requires_grad=False)
        self.center = None
        if center is not None:
            self.center = nn.Parameter(center.detach().float().clone(), requires_grad=False)

    def forward(self, feature: Tensor) -> Tensor:
        """Z, (B, F) to (B, D) float32 unit rows."""
        rows = feature.float() @ self.matrix
        return unit(rows if self.center is None else rows - self.center)


class DualEncoder(nn.Module):
    """A point encoder and an image tower projected into the space of the text embeddings.

    This is a *base*: it has no class names. `Student` adds them. Most published encoders come without the image
    tower they were aligned with: such a base has the point branch only, and `image_tower` is None.
    """

    def __init__(
        self,
        point_card: PointCard,
        image_card: ImageCard | None,
        dim: int,
        *,
        load_image_weights: bool = True,
    ):
        """Build the branches there are.

        Args:
            point_card: the point encoder's numbers.
            image_card: the image tower's name or numbers; None for a base without an image branch.
            dim: D, the width of the text embeddings.
            load_image_weights: False where a checkpoint is about to fill them in.

        Raises:
            InputError: the image tower's width is not D, or it cannot be had.
        """
        super().__init__()
        self.dim = dim
        self.point_encoder = build_point_encoder(point_card)
        self.point_projection = nn.Parameter(
            torch.randn(point_card.feature_width, dim) * point_card.feature_width**-0.5
        )
        self.image_tower: ImageTower | None = None
        if image_card is not None:
            self.image_tower = build_image_tower(image_card, load_weights=load_image_weights)
        if self.image_tower is not None and self.image_tower.dim != dim:
            raise InputError(
                f"text embeddings of {dim} numbers do not fit an image tower of {self.image_tower.dim}: "
                "use the text tower that belongs to it"
            )
        self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE))

    @property
    def image_size(self) -> int | None:
        """Pixels a side of the views it looks at; None without an image branch, which looks at none."""
        return None if self.image_tower is None else self.image_tower.size

    def images(self) -> ImageTower:
        """The image tower, for what cannot be done without one.

        Raises:
            InputError: there is no image branch.
        """
        if self.image_tower is None:
            raise InputError("expected an image branch, found a base of points alone")
        return self.image_tower

    def point_features(self, groups: Groups, mask: Tensor | None = None) -> PointFeatures:
        """Encode patches, some of them hidden: mask (B, G) bool."""
        return self.point_encoder(groups.patches, groups.centers, mask)

    def image_features(self, images: Tensor, mask: Tensor | None = None) -> ImageFeatures:
        """Encode images (B, 3, H, W), some patches hidden: mask (B, grid, grid) bool."""
        found: ImageFeatures = self.images()(images, mask)
        return found

    def project_point(self, features: PointFeatures) -> Tensor:
        """Z_P W_P, (B, D), of any length."""
        return features.feature @ self.point_projection

    def project_image(self, features: ImageFeatures) -> Tensor:
        """Z_I W_I, (B, D), of any length."""
        return self.images().project(features.cls)

    def embed_point(self, features: PointFeatures) -> Tensor:
        """f_P, (B, D) unit rows."""
        return unit(self.project_point(features))

    def embed_image(self, features: ImageFeatures) -> Tensor:
        """f_I, (B, D) unit rows."""
        return unit(self.project_image(features))

    def point_head(self) -> Projection:
        """What turns the point encoder's features into f_P, for use without the rest."""
        return Projection(self.point_projection)


class Student(DualEncoder):
    """The two branches with the shared classifier Theta and temperature tau (METHOD 1.4).

    Each branch may subtract a center before it scales its embedding to unit length. A change of sensor or data set
    moves all clouds the same way in the joint space, and the class embeddings do not move along: without the common
    part no class gains from it. The centers are zero, which changes nothing, until training finds them.
    """

    def __init__(
        self,
        point_card: PointCard,
        image_card: ImageCard | None,
        class_embeddings: Tensor,
        *,
        renormalize_classifier: bool,
    ):
        """Start Theta as the class names' text embeddings.

        Args:
            point_card: the point encoder's numbers.
            image_card: the image tower's numbers; None for a base without an image branch.
            class_embeddings: (C, D) unit rows.
            renormalize_classifier: use Theta's columns at unit length, whatever training did to them.
        """
        super().__init__(point_card, image_card, class_embeddings.shape[1], load_image_weights=False)
        self.renormalize_classifier = renormalize_classifier
        self.classifier = nn.Parameter(class_embeddings.float().T.clone())  # Theta, (D, C)
        # Q of METHOD 1.9: the point branch's own projection for global-local alignment.
        self.point_local_projection = nn.Parameter(torch.randn(point_card.width, self.dim))
        self.point_center: Tensor
        self.image_center: Tensor
        for branch in ("point", "image"):
            self.register_buffer(f"{branch}_center", torch.zeros(self.dim))

    def embed_point(self, features: PointFeatures) -> Tensor:
        """f_P, (B, D) unit rows about the branch's center."""
        return self.place_point(self.project_point(features))

    def embed_image(self, features: ImageFeatures) -> Tensor:
        """f_I, (B, D) unit rows about the branch's center."""
        return self.place_image(self.project_image(features))

    def place_point(self, rows: Tensor) -> Tensor:
        """Z_P W_P, (B, D), to unit rows about the branch's center."""
        return unit(rows - self.point_center)

    def place_image(self, rows: Tensor) -> Tensor:
        """Z_I W_I, (B, D), to unit rows about the branch's center."""
        return unit(rows - self.image_center)

    def point_head(self) -> Projection:
        """What turns the point encoder's features into f_P, for use without the rest."""
        return Projection(self.point_projection, self.point_center if self.point_center.any() else None)

    def class_weights(self) -> Tensor:
        """Theta as the logits use it, (D, C)."""
        if self.renormalize_classifier:
            return nn.functional.normalize(self.classifier, dim=0)
        return self.classifier

    def classify(self, embedding: Tensor) -> Tensor:
        """Give tau f Theta: (B, D) unit rows to (B, C), in float32 whatever the networks' precision."""
        with torch.autocast(embedding.device.type, enabled=False):
            return self.logit_scale.exp() * embedding.float() @ self.class_weights()


@torch.inference_mode()
def embed_points(
    encoder: PointEncoder, head: Projection, clouds: Iterable[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Embed prepared clouds, each (n, C), some at a time: (N, D) float32 unit rows."""
    card = encoder.card
    at_once = max(1, POINTS_AT_ONCE // (card.groups * card.neighbors))
    stream, found = iter(clouds), []
    # Clouds of different sizes become one batch of patches without padding.
    while part := [cut(torch.from_numpy(cloud)[None], card) for cloud in islice(stream, at_once)]:
        patches, centers = (torch.cat(each) for each in zip(*part, strict=True))
        found.append(head(encoder(patches, centers).feature))
    return torch.cat(found).numpy()
