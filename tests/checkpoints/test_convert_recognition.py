"""Keys and shapes decide which checkpoint a file is; what does not fit to the last tensor is told, tensor by tensor."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmost.checkpoints.layout import Layout, Rule
from crossmost.checkpoints.layouts import LAYOUTS
from crossmost.checkpoints.recognition import Fit, base_shapes, fit, recognize
from crossmost.errors import InputError
from crossmost.models.image_tower import ImageCard
from crossmost.models.point_cards import load_point_card

State = dict[str, Tensor]
NAMES = tuple(layout.card.name for layout in LAYOUTS)
IMAGE = ImageCard(image_size=16, patch_size=8, width=16, layers=1, heads=2, output_dim=8)


def shaped(shapes: dict[str, tuple[int, ...]]) -> State:
    """Tensors that have a shape and next to no memory."""
    counter = torch.zeros((), dtype=torch.int64)
    return {
        key: counter if key.endswith("num_batches_tracked") else torch.zeros(()).expand(shape)
        for key, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def files(published: ModuleType) -> dict[str, State]:
    """The point branch of every published checkpoint, in full size."""
    made = {}
    for layout in LAYOUTS:
        card, name = layout.card, layout.card.name
        if name.startswith("uni3d"):
            made[name] = published.uni3d(card, 1024)
        elif name == "openshape-pointbert-vitb32":
            made[name] = published.openshape(card, None, "")
        elif name.startswith("openshape"):
            made[name] = published.openshape(card, layout.dim)
        else:
            make = published.cross_most if name.startswith("crossmost") else published.point_bert
            made[name] = make(card, layout.dim)
    return {name: shaped(shapes) for name, shapes in made.items()}


def recognized(tensors: State, name: str | None = None) -> list[Fit]:
    return recognize(tensors, LAYOUTS, Path("a.pt"), None if name is None else load_point_card(name))


def refused(tensors: State, name: str | None = None) -> str:
    with pytest.raises(InputError) as found:
        recognized(tensors, name)
    line = str(found.value)
    assert "\n" not in line
    assert line.startswith("a.pt: ")
    return line


@pytest.mark.parametrize("name", NAMES)
def test_each_is_recognized(files: dict[str, State], name: str) -> None:
    found = recognized(files[name])
    assert found[0].card.name == name
    others = [each.card.name for each in found[1:]]
    assert others == (["crossmost-pointbert"] if name == "ulip-pointbert" else [])
    assert found[0].matched == found[0].expected
    assert recognized(files[name], name)[0].card.name == name


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_order_of_keys_does_not_matter(files: dict[str, State], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    order = data.draw(st.permutations(sorted(files[name])))
    expected, found = recognized(files[name])[0], recognized({key: files[name][key] for key in order})[0]
    assert (found.layout, found.sources, found.new) == (expected.layout, expected.sources, expected.new)
    assert found.left_out == expected.left_out


def of_use(found: Fit) -> list[str]:
    return sorted({key for source in found.sources.values() for key in source.keys})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_tensor_that_is_missing_or_of_another_shape_is_named(
    files: dict[str, State], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(NAMES))
    whole = recognized(files[name])[0]
    key = data.draw(st.sampled_from(of_use(whole)))
    tensor = files[name][key]
    changed = {each: value for each, value in files[name].items() if each != key}
    shape = data.draw(st.sampled_from([None, (*tensor.shape, 1), (1, *tensor.shape), (7, *tensor.shape[1:])]))
    if shape is not None:
        changed[key] = torch.zeros((), dtype=tensor.dtype).expand(shape)
    line = refused(changed)
    assert whole.layout.title in line
    assert f"of whose {whole.expected} keys {whole.expected - 1} match" in line
    assert f"'{key}' expected {tuple(tensor.shape)}, found {'none' if shape is None else shape}" in line


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_tensor_is_named(files: dict[str, State], name: str) -> None:
    line = refused({**files[name], "adapter.weight": torch.zeros(3, 4)})
    assert "'adapter.weight' expected no such key, found (3, 4)" in line


def test_a_counter_for_a_weight_is_no_fit(files: dict[str, State]) -> None:
    key = "point_encoder.norm.weight"
    changed = {**files["ulip-pointbert"], key: torch.zeros(384, dtype=torch.int64)}
    assert f"'{key}' expected (384,), found (384,) of int64" in refused(changed)


def test_the_first_three_misfits_are_shown_and_the_rest_counted(files: dict[str, State]) -> None:
    lost = sorted(key for key in files["ulip2-pointbert"] if "blocks.17." in key)
    line = refused({key: value for key, value in files["ulip2-pointbert"].items() if key not in lost})
    assert sum(f"'{key}'" in line for key in lost) == 3
    assert f"and {len(lost) - 3} more" in line
    assert "ulip2-pointbert" in line


def test_a_file_of_another_kind_shows_some_of_its_keys() -> None:
    line = refused({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)})
    assert all(name in line for name in NAMES)
    assert "none of their 2 tensors, but 'conv1.weight', 'fc.bias'" in line


def test_a_variant_without_color_is_told_in_words(files: dict[str, State]) -> None:
    key = "point_encoder.encoder.first_conv.0.weight"
    line = refused({**files["ulip2-pointbert"], key: torch.zeros(128, 3, 1)})
    assert "reads 3 numbers a point (xyz without color) where ulip2-pointbert reads 6 (xyz and rgb)" in line


@pytest.mark.parametrize(
    ("name", "key", "shape", "said"),
    [
        ("ulip-pointbert", "pc_projection", (768, 1280), "1280 numbers where that of slip-vit-b-16/slip_"),
        ("ulip2-pointbert", "pc_projection", (768, 512), "512 numbers where that of ViT-bigG-14/laion2b_"),
        ("uni3d-b", "point_encoder.trans2embed.weight", (768, 768), "768 numbers where that of EVA02-E-14-plus"),
    ],
)  # fmt: skip
def test_another_width_of_the_embedding_is_told_in_words(
    files: dict[str, State], name: str, key: str, shape: tuple[int, ...], said: str
) -> None:
    assert said in refused({**files[name], key: torch.zeros(shape)})


# What weights cannot tell.


def test_a_bare_point_branch_is_what_the_user_says(files: dict[str, State]) -> None:
    bare = files["ulip-pointbert"]
    default, forced = recognized(bare)[0], recognized(bare, "crossmost-pointbert")[0]
    assert (default.card.groups, default.layout.text) == (512, "slip-vit-b-16/slip_base_100ep")
    assert (forced.card.groups, forced.layout.text) == (64, "ViT-B-16-quickgelu/openai")


def test_the_towers_in_a_file_say_which_text_model_it_is_aligned_with(
    files: dict[str, State], published: ModuleType
) -> None:
    tower = replace(IMAGE, output_dim=512)
    small = [
        replace(layout, image=layout.image and replace(layout.image, card=tower))
        for layout in LAYOUTS
        if layout.dim == 512
    ]
    assert small[0].image is not None
    small[0] = replace(small[0], image=replace(small[0].image, card=replace(tower, pre_norm=False)))
    slip = shaped(published.slip_visual(16, 8, 16, 1) | {"image_projection": (16, 512)})
    found = recognize(
        {**files["ulip-pointbert"], **slip}, small, Path("a.pt"), load_point_card("crossmost-pointbert")
    )
    assert found[0].card.name == "crossmost-pointbert"
    assert found[0].layout.text == "slip-vit-b-16/slip_base_100ep"


@pytest.mark.parametrize("name", ["point-bert-64x32", "point-bert-512x32"])
def test_any_card_of_the_same_shapes_can_be_forced(files: dict[str, State], name: str) -> None:
    found = recognized(files["ulip-pointbert"], name)[0]
    assert (found.card.name, found.layout.card.name) == (name, "ulip-pointbert")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("ulip-pointbert", "ulip2-pointbert"),
        ("ulip-pointbert", "point-tiny"),
        ("ulip2-pointbert", "point-bert-512x32-rgb"),
        ("uni3d-b", "uni3d-l"),
        ("openshape-pointbert-vitg14", "openshape-pointbert-vitl14"),
        ("openshape-pointbert-vitb32", "openshape-pointbert-vitl14"),  # of the same shapes
    ],
)  # fmt: skip
def test_a_forced_card_must_fit(files: dict[str, State], file: str, name: str) -> None:
    line = refused(files[file], name)
    assert line.startswith(f"a.pt: expected the weights of {name}, as --as says, found those of ")
    assert line.endswith(f"({file}): leave out --as")


def test_a_forced_card_of_another_architecture_is_refused(files: dict[str, State]) -> None:
    assert "uni3d-s" in refused(files["ulip-pointbert"], "uni3d-s")


# Parts that a file has whole or not at all.


@pytest.mark.parametrize("kept", ["point_encoder.mask_token", "point_encoder.lm_head.weight"])
def test_heads_come_whole_or_not_at_all(files: dict[str, State], kept: str) -> None:
    heads = {"point_encoder.mask_token", "point_encoder.lm_head.weight", "point_encoder.lm_head.bias"}
    without = {key: value for key, value in files["crossmost-pointbert"].items() if key not in heads}
    found = recognized(without, "crossmost-pointbert")[0]
    assert heads <= {*found.new}
    line = refused({**without, kept: files["crossmost-pointbert"][kept]})
    assert "Cross-MoST" in line
    assert all(f"'{key}' expected" in line for key in heads - {kept})


def test_an_image_tower_comes_whole_or_not_at_all(files: dict[str, State], published: ModuleType) -> None:
    layout = LAYOUTS[NAMES.index("crossmost-pointbert")]
    assert layout.image is not None
    small = replace(layout, image=replace(layout.image, card=replace(IMAGE, output_dim=512)))
    images = shaped(published.clip_visual(16, 8, 16, 1) | {"image_projection": (16, 512)})
    whole = {**files["crossmost-pointbert"], **images}
    assert not fit(whole, small, small.card).misfits
    for key in images:
        (misfit,) = fit({each: whole[each] for each in whole if each != key}, small, small.card).misfits
        assert misfit.key == key


# The layouts themselves.


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_each_rule_is_of_use_and_each_tensor_has_one(layout: Layout) -> None:
    cards = (None, layout.image.card) if layout.image else (None,)
    names = {ours for card in cards for ours in base_shapes(layout.card, card, layout.dim)}
    rules: tuple[Rule, ...] = (*(layout.image.rules if layout.image else ()), *layout.rules)
    first = {
        next(index for index, rule in enumerate(rules) if re.fullmatch(rule.ours, ours)) for ours in names
    }
    assert first == set(range(len(rules)))


def test_every_layout_has_another_card_of_its_name() -> None:
    assert len(set(NAMES)) == len(LAYOUTS)
    assert all(layout.card == load_point_card(layout.card.name) for layout in LAYOUTS)


def test_the_zoo_and_the_layouts_agree() -> None:
    from crossmost.zoo import list_models

    found = {model.name: (model.dim, model.text) for model in list_models()}
    assert found == {layout.card.name: (layout.dim, layout.text) for layout in LAYOUTS}
