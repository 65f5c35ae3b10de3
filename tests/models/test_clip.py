import logging

import pytest
import torch
from safetensors.torch import save_file

from crossmost.errors import InputError
from crossmost.models.clip import import_open_clip, model_config, pretrained_clip
from crossmost.models.text_tower import text_model


@pytest.mark.parametrize(
    ("written", "meant"),
    [("vit-b/32", "ViT-B-32"), ("ViTL14", "ViT-L-14"), ("ViT-B-16-quickgel", "ViT-B-16-quickgelu")],
)
def test_an_unknown_name_is_answered_with_the_nearest(written, meant):
    with pytest.raises(InputError, match=f"found '{written}'; did you mean '{meant}'"):
        model_config(written)


def test_weights_are_never_silently_random(tiny_clip):
    with pytest.raises(InputError, match="needs weights: give --clip-weights FILE"):
        pretrained_clip(tiny_clip.name, None)


def test_a_missing_file_names_the_tags_that_fit():
    with pytest.raises(
        InputError, match=r"a tag of 'ViT-B-16' \(laion400m_e31.*found 'nowhere.safetensors'"
    ) as error:
        pretrained_clip("ViT-B-16", "nowhere.safetensors")
    assert "openai" not in str(error.value)  # trained with QuickGELU: not for this name


@pytest.mark.parametrize(
    ("name", "tag", "other"),
    [("ViT-B-16", "openai", "ViT-B-16-quickgelu"), ("ViT-L-14", "openai", "ViT-L-14-quickgelu")],
)
def test_openai_weights_ask_for_quickgelu(name, tag, other):
    with pytest.raises(InputError, match=f"the other GELU: use '{other}'"):
        pretrained_clip(name, tag)


def test_a_file_that_is_said_to_hold_openais_weights_asks_for_quickgelu_too(tiny_clip, tmp_path):
    file = tmp_path / "ViT-B-32.safetensors"
    save_file(tiny_clip.model.state_dict(), file)
    with pytest.raises(InputError, match="'openai' of 'ViT-B-32' were trained with the other GELU"):
        text_model("ViT-B-32/openai", str(file))


def test_a_failed_download_is_one_line_and_says_what_to_give(monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise OSError("no route to host\nand a second line")

    import_open_clip()
    monkeypatch.setattr("open_clip.factory.download_pretrained", offline)
    with pytest.raises(InputError, match=r"no route to host.*give --clip-weights FILE") as error:
        pretrained_clip("ViT-B-32-quickgelu", "openai")
    assert "--clip ViT-B-32-quickgelu/openai" in str(error.value)
    assert "https://huggingface.co/timm/vit_base_patch32_clip_224.openai" in str(error.value)
    assert str(error.value).endswith("/ViT-B-32.pt")
    assert "\n" not in str(error.value)
    assert capsys.readouterr().err == ""
    assert logging.root.manager.disable == logging.NOTSET


def test_weights_of_another_architecture_are_refused(tiny_clip, tmp_path):
    with pytest.raises(InputError, match="cannot load CLIP weights") as error:
        pretrained_clip("ViT-S-32-alt", str(tiny_clip.weights))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_truncated_file_is_refused(tiny_clip, tmp_path, suffix):
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(tiny_clip.weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot load CLIP weights"):
        pretrained_clip(tiny_clip.name, str(cut))


def test_a_pickle_is_not_executed(tiny_clip, tmp_path):
    evil = tmp_path / "evil.pt"
    evil.write_bytes(b"cposix\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    with pytest.raises(InputError, match="holds more than tensors"):
        pretrained_clip(tiny_clip.name, str(evil))
    assert not (tmp_path / "owned").exists()


def test_a_state_dict_is_taken_as_well(tiny_clip, tmp_path):
    torch.save({"state_dict": tiny_clip.model.state_dict()}, tmp_path / "clip.pt")
    model = pretrained_clip(tiny_clip.name, str(tmp_path / "clip.pt"))
    assert torch.equal(model.visual.proj, tiny_clip.model.visual.proj)


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(InputError, match="cannot read the CLIP configuration of 'local-dir:nowhere'"):
        pretrained_clip("local-dir:nowhere", None)


def test_a_name_with_its_own_weights_takes_no_others(tmp_path, tiny_clip):
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 8}}')
    with pytest.raises(InputError, match="brings its own weights"):
        pretrained_clip(f"local-dir:{tmp_path}", str(tiny_clip.weights))
