"""The image towers that published checkpoints carry, beside the point encoder that was aligned with them."""

from __future__ import annotations

import re

from crossmost.checkpoints.layout import SAME, Form, ImageLayout, Rule
from crossmost.checkpoints.slip_tower import AROUND_BLOCKS, IN_BLOCKS, SLIP_IMAGE, slip_image_tower
from crossmost.models.image_tower import ImageCard

NO_HEADS = Rule(r"image_tower\.(?:mask_token|ln_patch\..*|decoder\..*)", (), None)
"""Only Cross-MoST models masked images."""

CLIP_B16 = ImageLayout(
    card=ImageCard(clip="ViT-B-16-quickgelu"),
    keys=r"image_projection|visual\.(?:(?:class|positional|mask_token)_embedding|"
    r"(?:conv1|ln_pre|ln_post|ln_patch|transformer|decoder)\..*)",
    rules=(
        Rule(r"image_tower\.mask_token", ("visual.mask_token_embedding",), optional="image heads"),
        Rule(r"image_tower\.(ln_patch\..*|decoder\..*)", (r"visual.\1",), optional="image heads"),
        Rule(r"image_tower\.(visual\..*)", (r"\1",)),
        Rule(r"image_tower\.projection", ("image_projection",)),
    ),
)
"""Cross-MoST's: OpenAI's ViT-B/16, its projection moved out."""

OPEN_CLIP_G14 = ImageLayout(
    card=ImageCard(clip="ViT-bigG-14"),
    keys=r"open_clip_model\.visual\..*",
    rules=(
        NO_HEADS,
        Rule(r"image_tower\.(visual\..*)", (r"open_clip_model.\1",)),
        Rule(r"image_tower\.projection", ("open_clip_model.visual.proj",)),
    ),
    kept=False,  # 1.8 billion parameters
)
"""ULIP-2's, in files that have it: open_clip's own names."""

SLIP_B16 = ImageLayout(
    card=SLIP_IMAGE,
    keys=r"image_projection|visual\.(?:cls_token|pos_embed|(?:patch_embed|blocks|norm)\..*)",
    rules=(
        NO_HEADS,
        Rule(
            r"image_tower\.visual\.class_embedding",
            ("visual.cls_token",),
            Form(lambda shape: ((1, 1, *shape),), None),
        ),
        Rule(
            r"image_tower\.visual\.positional_embedding",
            ("visual.pos_embed", "visual.patch_embed.proj.bias"),
            Form(lambda shape: ((1, *shape), shape[1:]), None),
        ),
        Rule(r"image_tower\.visual\.conv1\.weight", ("visual.patch_embed.proj.weight",), SAME),
        *(
            Rule(
                rf"image_tower\.visual\.transformer\.resblocks\.(\d+)\.{re.escape(ours)}",
                (rf"visual.blocks.\1.{theirs}",),
            )
            for theirs, ours in IN_BLOCKS.items()
        ),
        *(Rule(re.escape(f"image_tower.{ours}"), (theirs,)) for theirs, ours in AROUND_BLOCKS.items()),
    ),
    whole=slip_image_tower,
)
"""ULIP's: the timm transformer of SLIP."""
