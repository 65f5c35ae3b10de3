"""A tiny CLIP of open_clip's own making, registered by name, with its weights in a file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class TinyClip:
    name: str
    weights: Path
    model: Any  # open_clip's own CLIP with these weights


TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}


def make_clip(folder: Path, name: str, **settings: Any) -> TinyClip:
    import torch
    from safetensors.torch import save_file

    from crossmost.models.clip import import_open_clip

    open_clip = import_open_clip()
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, **settings}
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(7)
    model = open_clip.create_model(name).eval()
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    save_file(model.state_dict(), folder / f"{name}.safetensors")
    return TinyClip(name, folder / f"{name}.safetensors", model)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> TinyClip:
    return make_clip(tmp_path_factory.mktemp("clip"), "crossmost-test-tiny")


@pytest.fixture(scope="session")
def tiny_quickgelu_clip(tmp_path_factory: pytest.TempPathFactory) -> TinyClip:
    return make_clip(tmp_path_factory.mktemp("clip"), "crossmost-test-tiny-quickgelu", quick_gelu=True)
