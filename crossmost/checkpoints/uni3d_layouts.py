"""The checkpoints of Uni3D in its five sizes."""

from __future__ import annotations

from crossmost.checkpoints.layout import (
    AFFINE,
    LOGIT_SCALE,
    NO_HEADS,
    PATCH_HEAD,
    Layout,
    LeftOut,
    Rule,
    convolution,
)
from crossmost.models.point_cards import load_point_card

SIZES = {"ti": "tiny", "s": "small", "b": "base", "l": "large", "g": "giant"}
RULES = (
    PATCH_HEAD,
    NO_HEADS,
    Rule(
        r"point_encoder\.(encoder\.(?:first|second)_conv\.[03]\.weight)",
        (r"point_encoder.\1",),
        convolution(1),
    ),
    Rule(r"point_encoder\.(.*)", (r"point_encoder.\1",)),
    Rule(r"point_projection", ("point_encoder.trans2embed.weight", "point_encoder.trans2embed.bias"), AFFINE),
    LOGIT_SCALE,
)
IMAGE_PARTS = LeftOut(
    r"point_encoder\.visual\.(?:patch_embed\..*|pos_embed|cls_token|head\..*)",
    "what the trunk needed for images: Uni3D never uses it",
)
LAYOUTS = tuple(
    Layout(
        title=f"Uni3D ({name})",
        card=load_point_card(f"uni3d-{size}"),
        dim=1024,
        text="EVA02-E-14-plus/laion2b_s9b_b144k",
        rules=RULES,
        left_out=(IMAGE_PARTS,),
    )
    for size, name in SIZES.items()
)
