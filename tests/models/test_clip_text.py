"""Text towers without their image towers: the same embeddings, and only half of the file read."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crossmost.checkpoints import clip_file
from crossmost.errors import InputError
from crossmost.models.clip import clip_on_meta, import_open_clip, model_config, pretrained_clip
from crossmost.models.clip_text import load_text
from crossmost.models.text_tower import embed_texts, model_tag, text_model, text_tokenizer

TEXTS = ["a mug", "a photo of a night stand.", "long " * 100, ""]


def embeddings(model: Any, name: str) -> Tensor:
    return embed_texts(model, text_tokenizer(name)(TEXTS))


def assert_same_text(model: Any, whole: Any, name: str) -> None:
    assert torch.equal(embeddings(model, name), embeddings(whole, name))
    assert not any(parameter.is_meta for parameter in (*model.parameters(), *model.buffers()))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not hasattr(model, "visual")
    assert not model.training


KINDS = {
    "timm": {
        "custom_text": True,
        "vision_cfg": {
            "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": None, "image_size": 32,
        },
        "embed_dim": 192,
    },
    "coca": {
        "custom_text": True,
        "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
        "text_cfg": {
            "context_length": 76, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1, "embed_cls": True,
            "output_tokens": True,
        },
    },
    "sigmoid": {  # SigLIP's; its own name would ask for its tokenizer
        "custom_text": True,
        "init_logit_bias": -10,
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1, "no_causal_mask": True,
            "proj_bias": True, "pool_type": "last",
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=["plain", *KINDS])
def clip(request: pytest.FixtureRequest, tiny_clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(name, weights, model) of every kind of CLIP that open_clip has."""
    if request.param == "plain":
        return tiny_clip.name, tiny_clip.weights, tiny_clip.model
    folder = tmp_path_factory.mktemp("kinds")
    name = f"crossmost-test-{request.param}"
    config = {**model_config(tiny_clip.name), **KINDS[request.param]}
    (folder / f"{name}.json").write_text(json.dumps(config))
    import_open_clip().add_model_config(folder / f"{name}.json")
    torch.manual_seed(3)
    model = import_open_clip().create_model(name).eval()
    save_file(model.state_dict(), folder / "weights.safetensors")
    return name, folder / "weights.safetensors", model


def test_embeddings_are_those_of_the_whole_model(clip: Any) -> None:
    name, weights, model = clip
    assert_same_text(load_text(name, str(weights)), model, name)


@pytest.mark.parametrize("wrapped", ["state_dict", "ddp", "plain", "safetensors-ddp", "half", "old"])
def test_whatever_a_training_script_wraps_around(wrapped: str, tiny_clip: Any, tmp_path: Path) -> None:
    state = tiny_clip.model.state_dict()
    ddp = {f"module.{name}": tensor for name, tensor in state.items()}
    file, expected = tmp_path / "clip.pt", tiny_clip.model
    if wrapped == "safetensors-ddp":
        file = tmp_path / "clip.safetensors"
        save_file(ddp, file)
    elif wrapped == "half":
        half = {name: tensor.half() for name, tensor in state.items()}
        torch.save(half, file)
        expected = pretrained_clip(tiny_clip.name, str(file))
    elif wrapped == "old":  # a pickle from before torch 1.6
        torch.save({"state_dict": ddp}, file, _use_new_zipfile_serialization=False)
    else:
        torch.save(
            {"state_dict": state} if wrapped == "state_dict" else ddp if wrapped == "ddp" else state, file
        )
    assert_same_text(load_text(tiny_clip.name, str(file)), expected, tiny_clip.name)


def test_old_names_fit_a_model_with_a_text_module(tiny_clip: Any, tmp_path: Path) -> None:
    config = {**model_config(tiny_clip.name), "custom_text": True}
    (tmp_path / "crossmost-test-custom.json").write_text(json.dumps(config))
    import_open_clip().add_model_config(tmp_path / "crossmost-test-custom.json")
    assert_same_text(
        load_text("crossmost-test-custom", str(tiny_clip.weights)), tiny_clip.model, tiny_clip.name
    )


def test_of_a_safetensors_file_only_the_text_half_is_read(
    tiny_clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    class Counted:
        def __init__(self, *arguments: Any, **options: Any):
            self.file = safe_open(*arguments, **options)

        def __enter__(self) -> Any:
            self.file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.file.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def get_tensor(self, name: str) -> Tensor:
            read.append(name)
            return self.file.get_tensor(name)

    safe_open = clip_file.safe_open
    monkeypatch.setattr(clip_file, "safe_open", Counted)
    load_text(tiny_clip.name, str(tiny_clip.weights))
    text = {name for name in tiny_clip.model.state_dict() if not name.startswith("visual.")}
    assert set(read) == text
    assert len(read) == len(text)


@pytest.fixture
def peak() -> Callable[[Callable[[], Any]], int]:
    """Measure by how many bytes a call raises the peak of this process's memory, mapped files included."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not tell a process its peak memory")

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

    def measure(call: Callable[[], Any]) -> int:
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        call()
        return status("VmHWM") - before

    return measure


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_memory_does_not_grow_with_the_image_half(
    suffix: str, tiny_clip: Any, tmp_path: Path, peak: Callable[[Callable[[], Any]], int]
) -> None:
    image_half = 256 * 2**20
    state = {**load_file(tiny_clip.weights), "visual.unused": torch.zeros(image_half // 4)}
    file = tmp_path / f"large{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, file)
    del state
    load_text(tiny_clip.name, str(tiny_clip.weights))  # what is imported and kept at the first call
    assert peak(lambda: load_text(tiny_clip.name, str(file))) < image_half / 2
    assert peak(lambda: {name: tensor + 1 for name, tensor in open_whole(file).items()}) > image_half


def open_whole(file: Path) -> dict[str, Tensor]:
    with clip_file.open_weights(file) as stored:
        return {name: each.read().clone() for name, each in stored.items()}


@pytest.mark.parametrize("name", ["ViT-bigG-14", "EVA02-E-14-plus"])
def test_the_largest_models_are_built_without_memory(name: str) -> None:
    model = clip_on_meta(model_config(name))
    sizes = {part: sum(p.numel() for p in module.parameters()) for part, module in model.named_children()}
    assert sizes["visual"] > 1.8e9
    assert all(parameter.is_meta for parameter in model.parameters())


def test_weights_of_another_image_tower_are_another_model(tiny_clip: Any, tmp_path: Path) -> None:
    """ViT-B-16 and ViT-B-32 have text towers of one shape."""
    state = tiny_clip.model.state_dict()
    state["visual.conv1.weight"] = torch.zeros(64, 3, 16, 16)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(
        InputError, match=r"another architecture: expected 'visual.conv1.weight' of shape .* found"
    ):
        load_text(tiny_clip.name, str(tmp_path / "other.safetensors"))
    text = {name: tensor for name, tensor in state.items() if not name.startswith("visual.")}
    save_file(text, tmp_path / "text.safetensors")
    assert_same_text(
        load_text(tiny_clip.name, str(tmp_path / "text.safetensors")), tiny_clip.model, tiny_clip.name
    )


def test_text_halves_that_do_not_fit_are_named(tiny_clip: Any, tmp_path: Path) -> None:
    state = tiny_clip.model.state_dict()
    deeper = {name.replace("resblocks.1.", "resblocks.2."): tensor for name, tensor in state.items()}
    for changed, message in (
        ({**deeper, **state}, "it has the unknown 'transformer.resblocks.2"),
        ({name: state[name] for name in state if "ln_final" not in name}, "'ln_final.bias' .* found none"),
        (
            {**state, "text_projection": torch.zeros(64, 8)},
            r"'text_projection' of shape \(64, 24\), found \(64, 8\)",
        ),
        ({**state, "image_projection": torch.zeros(1)}, "SLIP or ULIP: give --clip slip-vit-b-16"),
    ):
        save_file(
            {name: tensor.clone() for name, tensor in changed.items()}, tmp_path / "changed.safetensors"
        )
        with pytest.raises(InputError, match=message) as error:
            load_text(tiny_clip.name, str(tmp_path / "changed.safetensors"))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_damaged_files_are_one_line(suffix: str, tiny_clip: Any, tmp_path: Path) -> None:
    for content in (
        tiny_clip.weights.read_bytes()[:1000],
        b"",
        b"<html>",
        b"cposix\nsystem\n(S'touch owned'\ntR.",
    ):
        (tmp_path / f"cut{suffix}").write_bytes(content)
        with pytest.raises(InputError, match="cannot load CLIP weights") as error:
            load_text(tiny_clip.name, str(tmp_path / f"cut{suffix}"))
        assert "\n" not in str(error.value)


def test_a_shorter_context_is_stretched_as_open_clip_does(tiny_clip: Any, tmp_path: Path) -> None:
    state = tiny_clip.model.state_dict()
    torch.save({**state, "positional_embedding": state["positional_embedding"][:50]}, tmp_path / "short.pt")
    expected = pretrained_clip(tiny_clip.name, str(tmp_path / "short.pt"))
    assert_same_text(load_text(tiny_clip.name, str(tmp_path / "short.pt")), expected, tiny_clip.name)


class Container(nn.Module):
    """The tensors of a state dict as a module of modules."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        inner: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            first, _, rest = name.partition(".")
            if rest:
                inner.setdefault(first, {})[rest] = tensor
            else:
                self.register_parameter(first, nn.Parameter(tensor))
        for name, tensors in inner.items():
            self.add_module(name, Container(tensors))


class OpenAiClip(Container):
    def __init__(self, state: dict[str, Tensor]):
        super().__init__(state)
        for name, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.text_projection


@pytest.fixture(scope="module", params=["script", "trace"])
def archive(
    request: pytest.FixtureRequest, tiny_quickgelu_clip: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A TorchScript archive as OpenAI's: names, half precision, three numbers beside the weights."""
    half = {name: tensor.half() for name, tensor in tiny_quickgelu_clip.model.state_dict().items()}
    model = OpenAiClip(half).eval()
    path = tmp_path_factory.mktemp("openai") / "ViT-B-16.pt"
    example = torch.zeros(1, 64, dtype=torch.float16)
    torch.jit.save(
        torch.jit.script(model) if request.param == "script" else torch.jit.trace(model, example), path
    )
    return path


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_openais_archive_is_read_and_not_run(
    archive: Path, tiny_quickgelu_clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.jit, "load", None)
    name = tiny_quickgelu_clip.name
    whole = pretrained_clip(name, str(archive))
    expected = tiny_quickgelu_clip.model.state_dict()
    assert whole.state_dict().keys() == expected.keys()
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, expected[key].half().float()), key
    pixels = torch.randn(2, 3, 32, 32)
    rounded = copy.deepcopy(tiny_quickgelu_clip.model).half().float()
    with torch.no_grad():
        assert torch.equal(whole.encode_image(pixels), rounded.encode_image(pixels))
    assert_same_text(text_model(name, str(archive)), whole, name)
    assert model_tag(name, str(archive)) == f"{name}/openai"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_openais_archive_wants_its_activation(archive: Path, tiny_clip: Any) -> None:
    for load in (load_text, pretrained_clip):
        with pytest.raises(InputError, match=rf"OpenAI's archive.* use '{tiny_clip.name}-quickgelu'"):
            load(tiny_clip.name, str(archive))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_openais_archive_of_another_model_is_refused(archive: Path) -> None:
    with pytest.raises(InputError, match="another architecture: "):
        load_text("ViT-B-16-quickgelu", str(archive))


def test_a_tag_is_downloaded_by_open_clip(tiny_clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(tag: dict[str, Any]) -> str:
        asked.append(tag["hf_hub"])
        return str(tiny_clip.weights)

    pretrained = sys.modules["open_clip.pretrained"]._PRETRAINED
    monkeypatch.setitem(pretrained, tiny_clip.name, {"some_tag": {"hf_hub": "owner/repo/"}})
    monkeypatch.setattr("open_clip.factory.download_pretrained", download)
    assert_same_text(text_model(f"{tiny_clip.name}/some_tag", None), tiny_clip.model, tiny_clip.name)
    assert asked == ["owner/repo/"]
    assert model_tag(f"{tiny_clip.name}/some_tag", None) == f"{tiny_clip.name}/some_tag"
    # A file that is said to be the tag's.
    assert model_tag(f"{tiny_clip.name}/some_tag", str(tiny_clip.weights)) == f"{tiny_clip.name}/some_tag"


def test_without_a_network_the_file_and_where_to_give_it_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any) -> str:
        raise OSError("no route to host\nand more")

    import_open_clip()
    monkeypatch.setattr("open_clip.factory.download_pretrained", offline)
    with pytest.raises(InputError, match="no route to host") as error:
        text_model("ViT-bigG-14/laion2b_s39b_b160k", None)
    line = str(error.value)
    assert "--clip-weights FILE with --clip ViT-bigG-14/laion2b_s39b_b160k" in line
    assert (
        "open_clip_model.safetensors of https://huggingface.co/laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"
        in line
    )
    assert "\n" not in line
