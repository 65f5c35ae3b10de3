"""The image branch: a CLIP vision transformer with a mask token, patch norm and pixel decoder around it.

Agrees with METHOD sections 1.2, 1.8 and 1.9. The transformer itself is open_clip's; without a mask the result
is that of open_clip bit for bit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crossmost.errors import InputError
from crossmost.models.clip import (
    has_scheme,
    import_open_clip,
    model_config,
    pretrained_clip,
    random_vision,
)

SIZES = ("image_size", "patch_size", "width", "layers", "heads", "output_dim")
WORKING = "a square vision transformer with a class token, such as ViT-B-32, ViT-B-16 or ViT-L-14"


@dataclass(frozen=True)
class ImageCard:
    """What an image tower is made of: an open_clip name, or explicit sizes.

    Attributes:
        clip: an open_clip model name. OpenAI's weights need its `-quickgelu` variant.
        weights: a tag of open_clip's or a file; None starts from random weights.
        image_size: pixels a side, a multiple of `patch_size`.
        patch_size: pixels a side.
        width: of the tokens.
        layers: blocks.
        heads: a divisor of `width`.
        output_dim: D of the joint space.
        mlp_ratio: hidden width over `width`, explicit sizes only.
        quick_gelu: x * sigmoid(1.702 x) as OpenAI's CLIP, explicit sizes only.
        pre_norm: a norm before the first block, as CLIP has and timm's transformers have not; explicit sizes only.
        norm_eps: of the transformer's LayerNorms, explicit sizes only.
    """

    clip: str | None = None
    weights: str | None = None
    image_size: int | None = None
    patch_size: int | None = None
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    output_dim: int | None = None
    mlp_ratio: float = 4.0
    quick_gelu: bool = False
    pre_norm: bool = True
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.clip is not None:
            explicit = (field for field in fields(self) if field.name not in ("clip", "weights"))
            if any(getattr(self, field.name) != field.default for field in explicit):
                raise InputError(
                    f"expected an open_clip name or sizes on an image card, found {self.clip!r} and sizes"
                )
            return
        missing = [name for name in SIZES if getattr(self, name) is None]
        if missing:
            raise InputError(f"an image card without an open_clip name needs {', '.join(missing)} too")
        if self.weights is not None:
            raise InputError(
                f"weights {self.weights!r} need an open_clip name: give clip='ViT-B-16' or the like"
            )
        self._check_sizes()

    def _check_sizes(self) -> None:
        for name in SIZES:
            size = getattr(self, name)
            if size < 1:
                raise InputError(f"image card: expected {name} of at least 1, found {size}")
        if self.norm_eps <= 0:
            raise InputError(f"image card: expected norm_eps above 0, found {self.norm_eps}")
        for whole, part in (("image_size", "patch_size"), ("width", "heads")):
            if getattr(self, whole) % getattr(self, part):
                raise InputError(
                    f"image card: expected {whole} to be a multiple of {part}, "
                    f"found {getattr(self, whole)} and {getattr(self, part)}"
                )


class ImageFeatures(NamedTuple):
    """What the tower sees: `cls` (B, width) after ln_post, `patches` (B, L, width) out of the last block."""

    cls: Tensor
    patches: Tensor


class ImageTower(nn.Module):
    """A CLIP vision transformer that can be masked and can reconstruct its pixels.

    Attributes:
        size: pixels a side.
        patch: pixels a side.
        grid: patches a side, L = grid * grid.
        width: of the tokens.
        dim: D of the joint space.
        depth: blocks.
    """

    def __init__(self, visual: Any) -> None:
        """Take over open_clip's `visual`: its projection moves to `projection` (width, D)."""
        super().__init__()
        check_visual(visual)
        self.size: int = visual.image_size[0]
        self.patch: int = visual.patch_size[0]
        self.grid: int = visual.grid_size[0]
        self.width, self.dim = (int(side) for side in visual.proj.shape)
        self.depth = len(visual.transformer.resblocks)
        self.projection = visual.proj
        visual.proj = None
        self.visual = visual
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.width).normal_(std=0.02))
        self.ln_patch = nn.LayerNorm(self.width)
        self.decoder = nn.Sequential(
            nn.Conv2d(self.width, self.patch * self.patch * 3, kernel_size=1),
            nn.PixelShuffle(self.patch),
        )

    def forward(self, images: Tensor, mask: Tensor | None = None) -> ImageFeatures:
        """Encode images, with the masked patches hidden behind the mask token (METHOD 1.2).

        Masking comes before the positional embedding and the class token; all tokens are processed.

        Args:
            images: (B, 3, size, size), normalised with CLIP's mean and deviation.
            mask: (B, grid, grid) bool, True where a patch is hidden.
        """
        tokens = self.visual.conv1(images).flatten(2).transpose(1, 2)  # (B, L, width)
        if mask is not None:
            hidden = mask.flatten(1).unsqueeze(-1)  # (B, L, 1)
            tokens = torch.where(hidden, self.mask_token.to(tokens.dtype), tokens)
        first = self.visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        tokens = tokens + self.visual.positional_embedding.to(tokens.dtype)
        tokens = self.visual.transformer(self.visual.ln_pre(tokens))  # (B, 1 + L, width)
        return ImageFeatures(cls=self.visual.ln_post(tokens[:, 0]), patches=tokens[:, 1:])

    def project(self, features: Tensor) -> Tensor:
        """Map features (..., width) into the joint space, (..., D), not normalised."""
        return features @ self.projection

    def reconstruct(self, patches: Tensor) -> Tensor:
        """Decode patch tokens (B, L, width) into normalised images (B, 3, size, size)."""
        return self.decoder(patches.transpose(1, 2).unflatten(2, (self.grid, self.grid)))


def build_image_tower(card: ImageCard, *, load_weights: bool = True) -> ImageTower:
    """Build the tower a card describes.

    Args:
        card: an open_clip name or explicit sizes.
        load_weights: False leaves the card's weights out, for a checkpoint that is about to fill them in.

    Raises:
        InputError: an unknown name, a tower that cannot be masked, or weights that cannot be had.
    """
    if card.clip is None:
        return ImageTower(_explicit_visual(card))
    check_config(card.clip)
    if load_weights and (card.weights is not None or has_scheme(card.clip)):
        return ImageTower(pretrained_clip(card.clip, card.weights).visual)
    return ImageTower(random_vision(card.clip))


def layer_id(name: str, depth: int) -> int:
    """Number a parameter of the tower for layer-wise learning rate decay (METHOD 2.1).

    Args:
        name: the parameter's name in an `ImageTower`, or in a module that holds one.
        depth: the tower's blocks.

    Returns:
        0 for the embeddings, conv1 and ln_pre; k + 1 for block k; depth + 1 for everything else.
    """
    if re.search(r"(^|\.)visual\.(class_embedding|positional_embedding|conv1|ln_pre)(\.|$)", name):
        return 0
    block = re.search(r"(^|\.)visual\.transformer\.resblocks\.(\d+)\.", name)
    return int(block[2]) + 1 if block else depth + 1


def check_config(name: str) -> None:
    """Refuse an open_clip name whose image tower cannot be masked, before it is built.

    Raises:
        InputError: says what the tower is and which ones work.
    """
    vision = model_config(name)["vision_cfg"]
    if vision.get("timm_model_name"):
        raise InputError(f"the image tower of {name!r} is timm's; expected {WORKING}")
    if isinstance(vision.get("layers"), list | tuple):
        raise InputError(f"the image tower of {name!r} is a ResNet; expected {WORKING}")
    if vision.get("attentional_pool") or vision.get("pool_type", "tok") != "tok":
        raise InputError(f"the image tower of {name!r} pools without a class token; expected {WORKING}")


def check_visual(visual: Any) -> None:
    """Refuse a built image tower that does not have the parts `ImageTower` needs.

    Raises:
        InputError: says which ones work.
    """
    transformer = import_open_clip().transformer.VisionTransformer
    if not isinstance(visual, transformer) or visual.attn_pool is not None or visual.pool_type != "tok":
        raise InputError(f"found an image tower of type {type(visual).__name__}; expected {WORKING}")
    image, patch = visual.image_size, visual.patch_size
    if image[0] != image[1] or patch[0] != patch[1] or image[0] % patch[0]:
        raise InputError(f"found images of {image} pixels and patches of {patch}; expected {WORKING}")
    if not isinstance(visual.patch_dropout, nn.Identity):
        raise InputError("found patch dropout, which takes patches away from under the mask: set it to 0")


def _explicit_visual(card: ImageCard) -> nn.Module:
    transformer = import_open_clip().transformer
    return transformer.VisionTransformer(
        image_size=card.image_size,
        patch_size=card.patch_size,
        width=card.width,
        layers=card.layers,
        heads=card.heads,
        mlp_ratio=card.mlp_ratio,
        output_dim=card.output_dim,
        no_ln_pre=not card.pre_norm,
        act_layer=transformer.QuickGELU if card.quick_gelu else nn.GELU,
        norm_layer=partial(transformer.LayerNorm, eps=card.norm_eps),
    )
