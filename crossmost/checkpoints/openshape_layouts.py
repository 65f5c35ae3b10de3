"""The checkpoints of OpenShape's Point-BERT."""

from __future__ import annotations

from crossmost.checkpoints.layout import (
    AFFINE,
    NO_HEADS,
    PATCH_HEAD,
    UNIT,
    Layout,
    LeftOut,
    Rule,
    convolution,
)
from crossmost.models.point_cards import load_point_card

PROJECTION = Rule(r"point_projection", ("proj.weight", "proj.bias"), AFFINE)
NO_PROJECTION = Rule(r"point_projection", (), UNIT)  # the encoder's own numbers are the embedding
PROJECTIONS_OF_CLIP = LeftOut(
    r"(?:text|image)_proj\..*", "on CLIP's side: class names are embedded by CLIP alone"
)


def rules(prefix: str, projection: Rule) -> tuple[Rule, ...]:
    """What the files share; `prefix` goes before the encoder's names."""
    return (
        PATCH_HEAD,
        NO_HEADS,
        Rule(r"point_encoder\.(sa\.mlp_convs\.\d\.weight)", (rf"{prefix}\1",), convolution(2)),
        Rule(r"point_encoder\.(lift\.0\.weight)", (rf"{prefix}\1",), convolution(1)),
        Rule(r"point_encoder\.(.*)", (rf"{prefix}\1",)),
        projection,
        Rule(r"logit_scale", ("logit_scale",), optional="scale"),
    )


LAYOUTS = (
    Layout(
        title="OpenShape (Point-BERT, ViT-bigG-14)",
        card=load_point_card("openshape-pointbert-vitg14"),
        dim=1280,
        text="ViT-bigG-14/laion2b_s39b_b160k",
        rules=rules("ppat.", PROJECTION),
        left_out=(PROJECTIONS_OF_CLIP,),
    ),
    Layout(
        title="OpenShape (Point-BERT, ViT-L/14)",
        card=load_point_card("openshape-pointbert-vitl14"),
        dim=768,
        text="ViT-L-14-quickgelu/openai",
        rules=rules("ppat.", PROJECTION),
        left_out=(PROJECTIONS_OF_CLIP,),
    ),
    Layout(
        title="OpenShape (Point-BERT, ViT-B/32)",
        card=load_point_card("openshape-pointbert-vitb32"),
        dim=512,
        text="ViT-B-32-quickgelu/openai",
        rules=rules("", NO_PROJECTION),
        left_out=(PROJECTIONS_OF_CLIP,),
    ),
)
