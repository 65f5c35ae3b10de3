import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from crossmost.errors import InputError
from crossmost.models.clip import import_open_clip
from crossmost.models.text_tower import PROMPTS, embed_classes, text_model
from crossmost.runtime.vocabulary import InvalidVocabulary

TEMPLATES = ("a photo of a {}.", "itap of my {}.", "the {}")


def reference(clip, names, templates):
    """METHOD 1.4 with open_clip alone, one prompt at a time."""
    tokenizer = import_open_clip().get_tokenizer(clip.name)
    columns = []
    with torch.no_grad():
        for name in names:
            prompts = [template.format(name) for template in templates]
            rows = [normalize(clip.model.encode_text(tokenizer(prompt)), dim=-1)[0] for prompt in prompts]
            columns.append(normalize(torch.stack(rows).double().mean(dim=0), dim=-1))
    return torch.stack(columns).numpy()


def test_there_are_the_64_templates_of_the_method():
    assert len(PROMPTS) == len(set(PROMPTS)) == 64
    assert all(prompt.count("{}") == 1 for prompt in PROMPTS)
    assert PROMPTS[:3] == (
        "a point cloud model of {}.",
        "There is a {} in the scene.",
        "There is the {} in the scene.",
    )
    assert PROMPTS[-2:] == ("a painting of the {}.", "a painting of a {}.")
    assert [prompt for prompt in PROMPTS if not prompt.endswith(".")] == ["a black and white photo of a {}"]


@pytest.mark.parametrize("fixture", ["tiny_clip", "tiny_quickgelu_clip"])
def test_embeddings_agree_with_open_clip(fixture, request):
    clip = request.getfixturevalue(fixture)
    names = ("mug", "night_stand", "Floor Lamp")
    vocabulary = embed_classes(names, clip=clip.name, weights=str(clip.weights), templates=TEMPLATES, batch=2)
    np.testing.assert_allclose(vocabulary.embeddings, reference(clip, names, TEMPLATES), atol=1e-6)
    assert vocabulary.names == names
    assert vocabulary.prompts == TEMPLATES
    assert vocabulary.logit_scale == pytest.approx(np.exp(3.0), rel=1e-6)
    assert vocabulary.tag == f"{clip.name}/{clip.name}.safetensors"  # no folder of the machine that made it


def test_the_batch_does_not_matter(tiny_clip):
    made = [
        embed_classes(
            ("mug", "bowl"), clip=tiny_clip.name, weights=str(tiny_clip.weights), batch=batch
        ).embeddings
        for batch in (7, 1000)
    ]
    np.testing.assert_allclose(*made, atol=1e-6)


def test_spaces_change_the_prompt_and_not_the_name(tiny_clip):
    def embed(name, **options):
        weights = str(tiny_clip.weights)
        return embed_classes((name,), clip=tiny_clip.name, weights=weights, templates=TEMPLATES, **options)

    spaced = embed("night_stand", spaces=True)
    assert spaced.names == ("night_stand",)
    np.testing.assert_array_equal(spaced.embeddings, embed("night stand").embeddings)
    assert not np.allclose(spaced.embeddings, embed("night_stand").embeddings)


def test_an_over_long_prompt_is_cut(tiny_clip):
    name = "very " * 100 + "long"
    vocabulary = embed_classes(
        (name,), clip=tiny_clip.name, weights=str(tiny_clip.weights), templates=TEMPLATES
    )
    np.testing.assert_allclose(vocabulary.embeddings, reference(tiny_clip, (name,), TEMPLATES), atol=1e-6)


def test_braces_in_a_name_are_text(tiny_clip):
    made = embed_classes(
        ("{0} mug",), clip=tiny_clip.name, weights=str(tiny_clip.weights), templates=TEMPLATES
    )
    np.testing.assert_allclose(made.embeddings, reference(tiny_clip, ("{0} mug",), TEMPLATES), atol=1e-6)


def test_without_weights_there_is_no_vocabulary(tiny_clip):
    with pytest.raises(InputError, match="--clip-weights FILE"):
        embed_classes(("mug",), clip=tiny_clip.name, weights=None)
    random = embed_classes(
        ("mug",), clip=tiny_clip.name, weights=None, templates=TEMPLATES, allow_random=True
    )
    assert random.tag == f"{tiny_clip.name}/random"


def test_a_local_folder_brings_its_weights(tiny_clip, tmp_path):
    from crossmost.models.clip import model_config

    config = {"model_cfg": model_config(tiny_clip.name), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_model.safetensors").write_bytes(tiny_clip.weights.read_bytes())
    made = embed_classes(("mug",), clip=f"local-dir:{tmp_path}", weights=None, templates=TEMPLATES)
    np.testing.assert_allclose(made.embeddings, reference(tiny_clip, ("mug",), TEMPLATES), atol=1e-6)
    assert made.tag == f"local-dir:{tmp_path.name}"


def test_the_image_tower_is_not_kept(tiny_clip):
    model = text_model(tiny_clip.name, str(tiny_clip.weights))
    assert not any(name.startswith("visual") for name, _ in model.named_parameters())
    assert not model.training


def test_a_tokenizer_that_cannot_be_had_is_an_input_error(monkeypatch, tiny_clip):
    def missing(*args, **kwargs):
        raise ImportError("transformers is not installed")

    monkeypatch.setattr(import_open_clip(), "get_tokenizer", missing)
    with pytest.raises(InputError, match=r"tokenizer of .*transformers is not installed.*ViT-B-32"):
        embed_classes(("mug",), clip=tiny_clip.name, weights=str(tiny_clip.weights))


@pytest.mark.parametrize(
    ("names", "templates", "what"),
    [
        ((), TEMPLATES, "at least one class name"),
        (("mug", "mug"), TEMPLATES, "'mug' more than once"),
        (("mug", "Mug"), TEMPLATES, "CLIP ignores case"),
        (("mug", " "), TEMPLATES, "an empty one"),
        (("mug",), (), "at least one prompt template"),
        (("mug",), ("a photo.",), "one {} in every prompt template, found 'a photo.'"),
        (("mug",), ("{} and {}",), "one {} in every prompt template"),
    ],
)
def test_names_and_templates_are_checked(names, templates, what, tiny_clip):
    with pytest.raises((InputError, InvalidVocabulary), match=what):
        embed_classes(names, clip=tiny_clip.name, weights=str(tiny_clip.weights), templates=templates)
