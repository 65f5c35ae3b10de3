"""The checkpoints of ULIP, ULIP-2 and Cross-MoST, all around the same Point-BERT."""

from __future__ import annotations

from crossmost.checkpoints.image_layouts import CLIP_B16, OPEN_CLIP_G14, SLIP_B16
from crossmost.checkpoints.layout import (
    LOGIT_SCALE,
    NO_HEADS,
    PATCH_HEAD,
    Layout,
    LeftOut,
    Rule,
    convolution,
)
from crossmost.models.point_cards import load_point_card

ENCODER = (
    Rule(
        r"point_encoder\.(encoder\.(?:first|second)_conv\.[03]\.weight)",
        (r"point_encoder.\1",),
        convolution(1),
    ),
    Rule(r"point_encoder\.(.*)", (r"point_encoder.\1",)),
    Rule(r"point_projection", ("pc_projection",)),
    LOGIT_SCALE,
)
HEADS = Rule(r"point_encoder\.(mask_token|lm_head\..*)", (r"point_encoder.\1",), optional="heads")
TEXT_TOWER = LeftOut(
    r"transformer\.resblocks\..*|token_embedding\.weight|positional_embedding|ln_final\..*|text_projection",
    "the text tower: class names are embedded by the text model itself",
)

ULIP = Layout(
    title="ULIP (Point-BERT)",
    card=load_point_card("ulip-pointbert"),
    dim=512,
    text="slip-vit-b-16/slip_base_100ep",
    rules=(PATCH_HEAD, NO_HEADS, *ENCODER),
    left_out=(TEXT_TOWER,),
    image=SLIP_B16,
    twin="crossmost-pointbert",
)
ULIP_2 = Layout(
    title="ULIP-2 (Point-BERT of 18 layers, xyz and rgb)",
    card=load_point_card("ulip2-pointbert"),
    dim=1280,
    text="ViT-bigG-14/laion2b_s39b_b160k",
    rules=(PATCH_HEAD, NO_HEADS, *ENCODER),
    left_out=(
        LeftOut(
            r"open_clip_model\.(?!visual\.).*",
            "the text tower: class names are embedded by the text model itself",
        ),
    ),
    image=OPEN_CLIP_G14,
)
CROSS_MOST = Layout(
    title="Cross-MoST (Point-BERT)",
    card=load_point_card("crossmost-pointbert"),
    dim=512,
    text="ViT-B-16-quickgelu/openai",
    rules=(PATCH_HEAD, HEADS, *ENCODER),
    left_out=(
        TEXT_TOWER,
        LeftOut(r"point_encoder\.proj", "of the global-local alignment: each training draws its own"),
    ),
    image=CLIP_B16,
    classifier="classifier",
    twin="ulip-pointbert",
)
LAYOUTS = (ULIP, ULIP_2, CROSS_MOST)
