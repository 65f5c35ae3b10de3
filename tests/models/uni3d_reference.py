"""Small encoders of Uni3D to test, and Uni3D from its description in float64 NumPy, stage by stage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crossmost.models.grouping import group
from crossmost.models.point_cards import Uni3DCard
from crossmost.models.uni3d import Uni3D

Array = NDArray[np.float64]
TOLERANCE = 5e-5
DIM = 20
KINDS = {"gelu": True, "packed-swiglu": True, "swiglu": False}
"""Kinds of MLP, and whether queries, keys and values share a layer in the sizes that have it."""


def small_card(kind: str, **changes: Any) -> Uni3DCard:
    numbers = {
        "name": "test", "points": 400, "groups": 10, "neighbors": 64, "channels": 6, "token_widths": (8, 12, 16, 20),
        "width": 24, "depth": 3, "heads": 3, "mlp_width": 37, "mlp": kind, "fused_qkv": KINDS[kind],
        "drop_path": 0.0,
    }  # fmt: skip
    return Uni3DCard(**{**numbers, **changes})


def make_encoder(card: Uni3DCard, seed: int = 0) -> Uni3D:
    """An encoder in evaluation mode that leaves nothing neutral.

    Its activations are small enough for the epsilon of the norms to matter, as a class token's are.
    """
    torch.manual_seed(seed)
    encoder = Uni3D(card)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith(("q_bias", "v_bias")):
                parameter.uniform_(-0.3, 0.3)
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm1d | nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean = torch.rand_like(module.bias) * 0.6 - 0.3
                module.running_var = torch.rand_like(module.bias) * 1.5 + 0.5
        for parameter in (*encoder.encoder2trans.parameters(), *encoder.pos_embed[2].parameters()):
            parameter.mul_(0.1)
    return encoder.eval()


def make_projection(width: int) -> Tensor:
    """[weight; bias] of the layer behind the encoder."""
    return torch.randn(width + 1, DIM, generator=torch.Generator().manual_seed(5)) * 0.2


def make_cloud(count: int = 300, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    cloud = np.concatenate([rng.normal(size=(count, 3)) / 3, rng.random((count, 3))], axis=1)
    return cloud.astype(np.float32)


def patches_of(card: Uni3DCard, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    clouds = np.stack([make_cloud(card.least + 40, seed + each) for each in range(batch)])
    return tuple(group(torch.from_numpy(clouds), card.groups, card.neighbors))  # type: ignore[return-value]


class Exact:
    """Uni3D of one cloud in float64, from its description; `slip` makes one small mistake of those people make."""

    def __init__(self, encoder: Uni3D, slip: str | None = None):
        assert isinstance(encoder.card, Uni3DCard)
        self.card, self.slip = encoder.card, slip
        self.state = {name: value.numpy().astype(np.float64) for name, value in encoder.state_dict().items()}

    def sampled(self, cloud: Array) -> list[int]:
        """Farthest points, from the one farthest from the origin; the lowest index where two are as far."""
        chosen = [max(range(len(cloud)), key=lambda i: (np.linalg.norm(cloud[i, :3]), -i))]
        while len(chosen) < self.card.groups:
            to_chosen = np.linalg.norm(cloud[:, None, :3] - cloud[None, chosen, :3], axis=2).min(axis=1)
            chosen.append(int(np.flatnonzero(to_chosen == to_chosen.max())[0]))
        return chosen

    def neighbors(self, cloud: Array, center: Array) -> list[int]:
        count = self.card.neighbors - (self.slip == "one neighbour less")
        distances = np.linalg.norm(cloud[:, :3] - center, axis=1)
        return sorted(range(len(cloud)), key=lambda i: (distances[i], i))[:count]

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", 0.0)

    def batch_norm(self, x: Array, name: str) -> Array:
        scaled = (x - self.state[f"{name}.running_mean"]) / np.sqrt(self.state[f"{name}.running_var"] + 1e-5)
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def layer_norm(self, x: Array, name: str) -> Array:
        epsilon = 1e-5 if self.slip == "torch's epsilon" else 1e-6
        scaled = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def gelu(self, x: Array) -> Array:
        if self.slip == "tanh":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def token(self, patch: Array) -> Array:
        """(K, 6) to (width,)."""
        x = np.maximum(self.batch_norm(self.linear(patch, "encoder.first_conv.0"), "encoder.first_conv.1"), 0)
        local = self.linear(x, "encoder.first_conv.3")
        highest = np.broadcast_to(local.max(axis=0), local.shape)
        x = self.linear(np.concatenate([highest, local], axis=1), "encoder.second_conv.0")
        x = np.maximum(self.batch_norm(x, "encoder.second_conv.1"), 0)
        return self.linear(self.linear(x, "encoder.second_conv.3").max(axis=0), "encoder2trans")

    def tokens(self, cloud: Array, chosen: list[int]) -> Array:
        found = []
        for index in chosen:
            patch = cloud[self.neighbors(cloud, cloud[index, :3])]
            patch[:, :3] -= cloud[index, :3]
            found.append(self.token(patch))
        return np.stack(found)

    def queries_keys_values(self, x: Array, name: str) -> tuple[Array, Array, Array]:
        if self.card.fused_qkv:
            q, k, v = np.split(self.linear(x, f"{name}.qkv"), 3, axis=1)
            return q + self.state[f"{name}.q_bias"], k, v + self.state[f"{name}.v_bias"]
        q, k, v = (self.linear(x, f"{name}.{each}_proj") for each in "qkv")
        return q, k, v

    @staticmethod
    def rotate(x: Array) -> Array:
        """A rotary embedding of all tokens but the first, which EVA has and Uni3D leaves out."""
        places, pairs = np.arange(1, len(x))[:, None], x[1:].reshape(len(x) - 1, -1, 2)
        angles = places / 100.0 ** (np.arange(pairs.shape[1]) / pairs.shape[1])
        (a, b), (cos, sin) = np.moveaxis(pairs, 2, 0), (np.cos(angles), np.sin(angles))
        turned = np.stack([a * cos - b * sin, a * sin + b * cos], axis=2).reshape(len(x) - 1, -1)
        return np.concatenate([x[:1], turned])

    def attention(self, x: Array, name: str) -> Array:
        each = self.card.width // self.card.heads
        whole = self.queries_keys_values(x, name)
        mixed = np.empty_like(x)
        for start in range(0, self.card.width, each):
            q, k, v = (part[:, start : start + each] for part in whole)
            if self.slip == "rotary":
                q, k = self.rotate(q), self.rotate(k)
            weights = np.exp(q @ k.T / math.sqrt(each))
            mixed[:, start : start + each] = weights / weights.sum(axis=1, keepdims=True) @ v
        return self.linear(mixed, f"{name}.proj")

    def mlp(self, x: Array, name: str) -> Array:
        if self.card.mlp == "gelu":
            return self.linear(self.gelu(self.linear(x, f"{name}.fc1")), f"{name}.fc2")
        if self.card.mlp == "packed-swiglu":
            gate, value = np.split(self.linear(x, f"{name}.fc1"), 2, axis=1)
        else:
            gate, value = self.linear(x, f"{name}.fc1_g"), self.linear(x, f"{name}.fc1_x")
        if self.slip == "halves exchanged":
            gate, value = value, gate
        hidden = gate / (1 + np.exp(-gate)) * value
        if self.card.mlp == "swiglu":
            hidden = self.layer_norm(hidden, f"{name}.norm")
        return self.linear(hidden, f"{name}.fc2")

    def stages(self, cloud: Array, projection: Array, hidden: Any = None) -> dict[str, Array]:
        """What is handed over from step to step, by name; `hidden`, if any, are the masked patches, (G,) bool."""
        found: dict[str, Array] = {}
        chosen = self.sampled(cloud)
        centers = cloud[chosen, :3]
        tokens = found["tokens"] = self.tokens(cloud, chosen)
        if hidden is not None:
            tokens = np.where(hidden[:, None], self.state["mask_token"][0], tokens)
        place = self.linear(self.gelu(self.linear(centers, "pos_embed.0")), "pos_embed.2")
        first = self.state["cls_token"][0] + self.state["cls_pos"][0]
        position = np.concatenate([self.state["cls_pos"][0], place])
        x = np.concatenate([first, tokens + place])
        for index in range(self.card.depth):
            name = f"visual.blocks.{index}"
            if self.slip == "position before every block" and index:
                x = x + position
            x = x + self.attention(self.layer_norm(x, f"{name}.norm1"), f"{name}.attn")
            x = x + self.mlp(self.layer_norm(x, f"{name}.norm2"), f"{name}.mlp")
            found[name] = x
        cls = found["cls"] = self.layer_norm(x, "visual.fc_norm")[0]
        embedding = cls @ projection[:-1] + projection[-1]
        found["embedding"] = embedding / np.linalg.norm(embedding)
        return found


def deviation(found: Tensor, expected: Array | Tensor) -> float:
    """max |d| / rms, in float64."""
    exact = torch.as_tensor(expected, dtype=torch.float64)
    return float((found.double() - exact).abs().max() / exact.square().mean().sqrt())
