"""Point-BERT against METHOD 1.3 written out in float64 NumPy, its size, its mask and its stochastic depth."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crossmost.errors import InputError
from crossmost.models.grouping import group
from crossmost.models.point_bert import DropPath, PointBert
from crossmost.models.point_cards import PointBertCard, list_point_cards, load_point_card

Array = NDArray[np.float64]
FEW = settings(max_examples=20, deadline=None)
JOINT_DIM = 512


def tiny_card(**changes: Any) -> PointBertCard:
    numbers = {
        "name": "test", "points": 64, "groups": 12, "neighbors": 5, "channels": 3, "token_widths": (8, 12, 16, 20),
        "width": 24, "depth": 3, "heads": 4, "drop_path": 0.0, "learning_rate": 1e-3,
    }  # fmt: skip
    return PointBertCard(**{**numbers, **changes})


def make_encoder(card: PointBertCard, seed: int = 0) -> PointBert:
    """An encoder in evaluation mode whose BatchNorm and tokens are anything but neutral."""
    torch.manual_seed(seed)
    encoder = PointBert(card)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2)
        for token in (encoder.cls_token, encoder.cls_pos, encoder.mask_token):
            token.normal_(std=0.5)
    return encoder.eval()


def patches_of(card: PointBertCard, batch: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(batch, max(card.groups, card.neighbors) + 40, card.channels, generator=draw)
    return tuple(group(points / 3, card.groups, card.neighbors))  # type: ignore[return-value]


class Exact:
    """METHOD 1.3, steps 3 to 6, in float64, one layer a line."""

    def __init__(self, encoder: PointBert, *, batch_statistics: bool = False):
        self.card, self.batch_statistics = encoder.card, batch_statistics
        self.state = {name: value.numpy().astype(np.float64) for name, value in encoder.state_dict().items()}

    def linear(self, x: Array, name: str) -> Array:
        y: Array = x @ self.state[f"{name}.weight"].T
        return y + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else y

    def batch_norm(self, x: Array, name: str) -> Array:
        mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        if self.batch_statistics:
            every = x.reshape(-1, x.shape[-1])
            mean, variance = every.mean(axis=0), every.var(axis=0)
        scaled = (x - mean) / np.sqrt(variance + 1e-5)
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def layer_norm(self, x: Array, name: str) -> Array:
        scaled = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    @staticmethod
    def gelu(x: Array) -> Array:
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def patch_tokens(self, patches: Array) -> Array:
        x = self.linear(patches, "encoder.first_conv.0")
        x = np.maximum(self.batch_norm(x, "encoder.first_conv.1"), 0)
        local = self.linear(x, "encoder.first_conv.3")  # (B, G, K, local)
        highest = np.broadcast_to(local.max(axis=2, keepdims=True), local.shape)
        x = self.linear(np.concatenate([highest, local], axis=-1), "encoder.second_conv.0")  # [global; local]
        x = np.maximum(self.batch_norm(x, "encoder.second_conv.1"), 0)
        return self.linear(x, "encoder.second_conv.3").max(axis=2)

    def attention(self, x: Array, name: str) -> Array:
        batch, _, width = x.shape
        heads, each = self.card.heads, width // self.card.heads
        q, k, v = np.split(self.linear(x, f"{name}.qkv"), 3, axis=-1)
        mixed = np.empty_like(x)
        for b in range(batch):
            for head in range(heads):
                part = slice(head * each, (head + 1) * each)
                scores = q[b, :, part] @ k[b, :, part].T / math.sqrt(each)
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                mixed[b, :, part] = weights / weights.sum(axis=1, keepdims=True) @ v[b, :, part]
        return self.linear(mixed, f"{name}.proj")

    def block(self, x: Array, name: str) -> Array:
        x = x + self.attention(self.layer_norm(x, f"{name}.norm1"), f"{name}.attn")
        hidden = self.gelu(self.linear(self.layer_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        return x + self.linear(hidden, f"{name}.mlp.fc2")

    def __call__(self, patches: Array, centers: Array, mask: NDArray[np.bool_] | None = None) -> Array:
        """The feature [CLS; max] (B, 2 width)."""
        tokens = self.linear(self.patch_tokens(patches), "reduce_dim")
        if mask is not None:
            tokens[mask] = self.state["mask_token"][0, 0]
        position = self.linear(self.gelu(self.linear(centers, "pos_embed.0")), "pos_embed.2")
        front = (len(tokens), 1, self.card.width)
        x = np.concatenate([np.broadcast_to(self.state["cls_token"], front), tokens], axis=1)
        position = np.concatenate([np.broadcast_to(self.state["cls_pos"], front), position], axis=1)
        for index in range(self.card.depth):
            x = self.block(x + position, f"blocks.blocks.{index}")
        x = self.layer_norm(x, "norm")
        return np.concatenate([x[:, 0], x[:, 1:].max(axis=1)], axis=1)


def deviation(found: torch.Tensor, expected: Array) -> float:
    """max |d| / rms."""
    return float(np.abs(found.detach().numpy() - expected).max() / np.sqrt((expected**2).mean()))


def exact_inputs(patches: torch.Tensor, centers: torch.Tensor) -> tuple[Array, Array]:
    return patches.numpy().astype(np.float64), centers.numpy().astype(np.float64)


def test_the_cross_most_encoder_agrees_with_the_method() -> None:
    card = load_point_card("point-bert-64x32")
    encoder, inputs = make_encoder(card), patches_of(card, 2)
    mask = torch.rand(2, card.groups) < 0.35
    with torch.no_grad():
        plain, masked = encoder(*inputs), encoder(*inputs, mask)
    exact = Exact(encoder)
    assert deviation(plain.feature, exact(*exact_inputs(*inputs))) <= 5e-5
    assert deviation(masked.feature, exact(*exact_inputs(*inputs), mask.numpy())) <= 5e-5
    assert (
        deviation(plain.tokens, exact.linear(exact.patch_tokens(exact_inputs(*inputs)[0]), "reduce_dim"))
        <= 5e-5
    )


@pytest.mark.parametrize("channels", [3, 6])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_tiny_encoder_agrees_in_both_modes(channels: int, seed: int) -> None:
    encoder, inputs = (
        make_encoder(tiny_card(channels=channels), seed),
        patches_of(tiny_card(channels=channels), 3, seed),
    )
    with torch.no_grad():
        assert deviation(encoder(*inputs).feature, Exact(encoder)(*exact_inputs(*inputs))) <= 5e-5
        exact = Exact(encoder, batch_statistics=True)
        assert deviation(encoder.train()(*inputs).feature, exact(*exact_inputs(*inputs))) <= 5e-5


def count(module: torch.nn.Module | torch.Tensor) -> int:
    parts = [module] if isinstance(module, torch.Tensor) else module.parameters()
    return sum(parameter.numel() for parameter in parts)


def test_the_cross_most_encoder_has_the_parameters_the_method_counts() -> None:
    """22,203,648: all of this encoder but our patch head, and Q, which is the student's here."""
    card = load_point_card("point-bert-64x32")
    encoder = PointBert(card)
    assert count(encoder.encoder) == 428_800  # frozen
    assert count(encoder.mask_token) == 384
    assert count(encoder.lm_head) == 384 * 384 + 384
    assert count(encoder.patch_head) == 384 * 96 + 96
    q = card.width * JOINT_DIM
    assert count(encoder) - count(encoder.patch_head) + q == 22_203_648
    assert 2 * card.width * JOINT_DIM == 393_216  # W_P of METHOD 1.3


@pytest.mark.parametrize(
    ("name", "groups", "channels"),
    [("point-bert-64x32", 64, 3), ("point-bert-512x32", 512, 3), ("point-bert-512x32-rgb", 512, 6)],
)
def test_the_published_cards(name: str, groups: int, channels: int) -> None:
    card = load_point_card(name)
    assert (card.groups, card.neighbors, card.channels) == (groups, 32, channels)
    assert (card.width, card.depth, card.heads, card.mlp_ratio, card.drop_path) == (384, 12, 6, 4.0, 0.1)
    assert card.token_widths == (128, 256, 512, 256)
    assert card.least == groups


def test_every_card_loads_and_encodes() -> None:
    assert "point-tiny" in list_point_cards()
    for name in list_point_cards():
        card = load_point_card(name)
        assert card.name == name
        assert card.width % card.heads == 0
        assert card.least <= card.points
    tiny = load_point_card("point-tiny")
    assert PointBert(tiny).eval()(*patches_of(tiny, 2)).feature.shape == (2, 2 * tiny.width)


def test_an_unknown_card_is_named_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"point-huge.*point-tiny"):
        load_point_card("point-huge")


def test_what_the_encoder_returns() -> None:
    card = tiny_card()
    found = make_encoder(card)(*patches_of(card, 2))
    assert found.feature.shape == (2, 48)
    assert found.patches.shape == found.tokens.shape == (2, 12, 24)
    assert torch.equal(found.feature[:, :24], found.cls)
    assert torch.equal(found.feature[:, 24:], found.patches.amax(dim=1))


@given(seed=st.integers(0, 1000))
@FEW
def test_a_patch_is_a_set_of_points_and_a_cloud_a_set_of_patches(seed: int) -> None:
    card, draw = tiny_card(), torch.Generator().manual_seed(seed)
    encoder, (patches, centers) = make_encoder(card), patches_of(card, 2, seed)
    neighbors, groups = torch.randperm(5, generator=draw), torch.randperm(12, generator=draw)
    with torch.no_grad():
        found = encoder(patches, centers).feature
        torch.testing.assert_close(
            encoder(patches[:, :, neighbors], centers).feature, found, rtol=1e-4, atol=1e-5
        )
        shuffled = encoder(patches[:, groups], centers[:, groups]).feature
    torch.testing.assert_close(shuffled, found, rtol=1e-4, atol=1e-5)


def test_a_mask_hides_content_and_keeps_position() -> None:
    card = tiny_card()
    encoder, (patches, centers) = make_encoder(card), patches_of(card, 1)
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[0, 3] = True
    other = patches.clone()
    other[0, 3] += 1
    moved = centers.clone()
    moved[0, 3] += 1
    with torch.no_grad():
        found = encoder(patches, centers, mask)
        assert torch.equal(found.feature, encoder(other, centers, mask).feature)
        assert not torch.equal(found.feature, encoder(other, centers).feature)
        assert not torch.allclose(found.feature, encoder(patches, moved, mask).feature)
        other[0, 4] += 1
        assert not torch.allclose(found.feature, encoder(other, centers, mask).feature)
        assert torch.equal(found.tokens, encoder(patches, centers).tokens)  # as they were before masking
        nothing = encoder(patches, centers, torch.zeros_like(mask)).feature
    torch.testing.assert_close(nothing, encoder(patches, centers).feature)


def test_everything_hidden_leaves_positions_and_a_finite_answer() -> None:
    card = tiny_card()
    encoder, (patches, centers) = make_encoder(card), patches_of(card, 2)
    hidden = torch.ones(2, 12, dtype=torch.bool)
    found = encoder(patches, centers, hidden).feature
    assert torch.isfinite(found).all()
    assert torch.equal(found, encoder(5 * patches, centers, hidden).feature)
    assert not torch.allclose(found[0], found[1])


def test_a_cloud_of_equal_points_has_a_finite_feature() -> None:
    card = tiny_card()
    assert torch.isfinite(make_encoder(card)(torch.zeros(1, 12, 5, 3), torch.zeros(1, 12, 3)).feature).all()


def test_stochastic_depth_rises_linearly_and_only_trains() -> None:
    card = tiny_card(drop_path=0.5)
    encoder, inputs = make_encoder(card), patches_of(card, 4)
    rates = [block.drop_path.rate for block in encoder.blocks.blocks]
    assert rates == pytest.approx([0, 0.25, 0.5])
    with torch.no_grad():
        assert torch.equal(encoder(*inputs).feature, encoder(*inputs).feature)
        encoder.encoder.requires_grad_(False)
        encoder.blocks.train()
        assert not torch.equal(encoder(*inputs).feature, encoder(*inputs).feature)
    published = PointBert(load_point_card("point-bert-64x32")).blocks.blocks
    assert [block.drop_path.rate for block in published] == pytest.approx([0.1 * k / 11 for k in range(12)])


def test_a_dropped_branch_is_dropped_for_the_whole_sample_and_kept_in_the_mean() -> None:
    torch.manual_seed(0)
    drop, ones = DropPath(0.3).train(), torch.ones(4000, 2, 3)
    found = drop(ones)
    values = found.flatten(1)
    assert (values == values[:, :1]).all()
    assert set(np.round(found.unique().numpy(), 4)) == {0.0, np.float32(1.4286)}
    assert float(found.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(ones), ones)
    assert torch.equal(DropPath(0.0).train()(ones), ones)


def test_the_position_code_is_added_before_every_block() -> None:
    """With blocks that do nothing, the code adds up once a block."""
    card = tiny_card()
    encoder, (patches, centers) = make_encoder(card), patches_of(card, 2)
    with torch.no_grad():
        for block in encoder.blocks.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.zero_()
                layer.bias.zero_()
        encoder.norm = torch.nn.Identity()
        found = encoder(patches, centers)
        expected = found.tokens + card.depth * encoder.pos_embed(centers)
    torch.testing.assert_close(found.patches, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.cls[0], (encoder.cls_token + card.depth * encoder.cls_pos)[0, 0], rtol=1e-4, atol=1e-5
    )
