"""The image tower of SLIP, and of ULIP which is aligned with it, in the words of `ImageTower`.

It is timm's `vit_base_patch16_224` (METHOD 4.2). Unlike CLIP's it has no norm before the blocks, an epsilon of
1e-6, exact GELU, a bias on the patches, and images normalised with ImageNet's mean and deviation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from crossmost.data.augment import CLIP_MEAN, CLIP_STD
from crossmost.errors import InputError
from crossmost.models.image_tower import ImageCard

SLIP_IMAGE = ImageCard(
    image_size=224,
    patch_size=16,
    width=768,
    layers=12,
    heads=12,
    output_dim=512,
    pre_norm=False,
    norm_eps=1e-6,
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

IN_BLOCKS = {
    "norm1.weight": "ln_1.weight",
    "norm1.bias": "ln_1.bias",
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.qkv.bias": "attn.in_proj_bias",
    "attn.proj.weight": "attn.out_proj.weight",
    "attn.proj.bias": "attn.out_proj.bias",
    "norm2.weight": "ln_2.weight",
    "norm2.bias": "ln_2.bias",
    "mlp.fc1.weight": "mlp.c_fc.weight",
    "mlp.fc1.bias": "mlp.c_fc.bias",
    "mlp.fc2.weight": "mlp.c_proj.weight",
    "mlp.fc2.bias": "mlp.c_proj.bias",
}
AROUND_BLOCKS = {
    "visual.norm.weight": "visual.ln_post.weight",
    "visual.norm.bias": "visual.ln_post.bias",
    "image_projection": "projection",
}
START = (
    "visual.cls_token",
    "visual.pos_embed",
    "visual.patch_embed.proj.weight",
    "visual.patch_embed.proj.bias",
)
"""What comes before the blocks: not renamed alone, but worked into the parts that CLIP's tower has."""


def slip_image_tower(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn SLIP's image weights into those of an `ImageTower` made from `SLIP_IMAGE`.

    The mask token, the norm of the patches and the decoder are not among them: SLIP has none, and training starts
    them as it starts everybody's.

    Args:
        tensors: `image_projection` (768, 512) and all of `visual.*`, without a wrapper's prefix; other names are
            passed over.

    Returns:
        By name, float32.

    Raises:
        InputError: a weight of the tower is missing or unknown; the message names it.
    """
    blocks = {int(found[1]) for name in tensors if (found := re.match(r"visual\.blocks\.(\d+)\.", name))}
    names = AROUND_BLOCKS | {
        f"visual.blocks.{block}.{ours}": f"visual.transformer.resblocks.{block}.{theirs}"
        for block in range(len(blocks))
        for ours, theirs in IN_BLOCKS.items()
    }
    expected = {*names, *START}
    missing = sorted(expected - tensors.keys())
    if missing or not blocks:
        raise InputError(f"SLIP's image tower lacks weight '{missing[0] if missing else 'visual.blocks.0'}'")
    surplus = sorted(name for name in tensors.keys() - expected if name.startswith("visual."))
    if surplus:
        raise InputError(f"SLIP's image tower has the unknown weight '{surplus[0]}'")
    return _start(*(tensors[name] for name in START)) | {
        theirs: tensors[ours].float() for ours, theirs in names.items()
    }


def _start(first: Tensor, position: Tensor, patches: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """The weights before the blocks, for images as all of crossmost sees them: normalised as CLIP's.

    Args:
        first: the class token (1, 1, 768).
        position: (1, 1 + L, 768).
        patches: (768, 3, 16, 16), for images normalised as ImageNet's.
        bias: (768,) of the patches.
    """
    # SLIP's image is linear in CLIP's, channel by channel: scale * image + shift, and so are its patches.
    scale = torch.tensor(CLIP_STD, dtype=torch.float64) / torch.tensor(IMAGENET_STD, dtype=torch.float64)
    shift = (
        torch.tensor(CLIP_MEAN, dtype=torch.float64) - torch.tensor(IMAGENET_MEAN, dtype=torch.float64)
    ) / torch.tensor(IMAGENET_STD, dtype=torch.float64)
    exact = patches.double()
    constant = bias.double() + torch.einsum("ochw,c->o", exact, shift)
    # CLIP's patches have no bias. What is added to every patch may as well be in the positional embedding of each.
    # Behind a mask SLIP would have added no bias, here it is: the mask token counts from there. It is drawn anew
    # and learned, so the constant is its own affair.
    moved = position[0].double().clone()
    moved[1:] += constant
    return {
        "visual.class_embedding": first.flatten().float(),
        "visual.positional_embedding": moved.float(),
        "visual.conv1.weight": (exact * scale[:, None, None]).float(),
    }
