"""OpenShape's Point-BERT from its description: a cloud to its embedding, stage by stage, in float64 NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def exact_gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def tanh_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class Exact:
    """The stages of one cloud, by name, in their order; the keyword arguments are slips one could make."""

    def __init__(
        self,
        card: Any,
        state: Mapping[str, Any],
        *,
        gelu: Callable[[Array], Array] = exact_gelu,
        epsilon: float = 1e-5,
        missing: int = 0,
        heads: int | None = None,
        absolute_first: bool = False,
        feature_first: bool = False,
        last_norm: bool = False,
        batch_statistics: bool = False,
    ):
        self.card, self.gelu, self.epsilon = card, gelu, epsilon
        self.neighbors, self.heads = card.neighbors - missing, heads or card.heads
        self.absolute_first, self.feature_first, self.last_norm = absolute_first, feature_first, last_norm
        self.batch_statistics = batch_statistics
        self.state = {name: np.asarray(value, np.float64) for name, value in state.items()}

    def linear(self, x: Array, name: str) -> Array:
        y: Array = x @ self.state[f"{name}.weight"].T
        return y + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else y

    def batch_norm(self, x: Array, name: str) -> Array:
        mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        if self.batch_statistics:
            mean, variance = x.mean(axis=(0, 1)), x.var(axis=(0, 1))
        scaled = (x - mean) / np.sqrt(variance + 1e-5)
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def layer_norm(self, x: Array, name: str) -> Array:
        scaled = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + self.epsilon)
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def sample(self, xyz: NDArray[np.float32]) -> list[int]:
        """Farthest points, the first the farthest from the origin, in float32 as everywhere."""

        def squared(center: NDArray[np.float32]) -> NDArray[np.float32]:
            x, y, z = (xyz - center).T
            return x * x + y * y + z * z

        chosen = [int(squared(np.zeros(3, np.float32)).argmax())]
        nearest = np.full(len(xyz), np.inf, np.float32)
        while len(chosen) < self.card.groups:
            nearest = np.minimum(nearest, squared(xyz[chosen[-1]]))
            chosen.append(int(nearest.argmax()))
        return chosen

    def ball(self, xyz: Array, center: Array) -> list[int]:
        """The first points within the radius, by index, and the first again for each that is missing."""
        inside = np.flatnonzero(((xyz - center) ** 2).sum(axis=1) <= self.card.radius**2).tolist()
        return (inside + inside[:1] * self.neighbors)[: self.neighbors]

    def set_abstraction(self, balls: Array, centers: Array) -> Array:
        """(G, K, 6), places and colors, and (G, 3) to (G, out)."""
        parts = [balls[..., :3] - centers[:, None], balls[..., :3], balls[..., 3:]]
        if self.absolute_first:
            parts[:2] = parts[1::-1]
        x = np.concatenate(parts, axis=-1)
        for layer in range(3):
            x = self.batch_norm(self.linear(x, f"sa.mlp_convs.{layer}"), f"sa.mlp_bns.{layer}")
            x = np.maximum(x, 0)
        return x.max(axis=1)

    def lift(self, features: Array, centers: Array, mask: NDArray[np.bool_] | None) -> Array:
        parts = [features, centers] if self.feature_first else [centers, features]
        x = self.linear(np.concatenate(parts, axis=1), "lift.0")
        if mask is not None:  # the mask token stands for the feature's part of the layer
            of_center = self.state["lift.0.weight"][:, :3]
            x[mask] = centers[mask] @ of_center.T + self.state["lift.0.bias"] + self.state["mask_token"][0, 0]
        return self.layer_norm(x, "lift.2")

    def attention(self, x: Array, name: str) -> Array:
        q, k, v = np.split(self.linear(x, f"{name}.to_qkv"), 3, axis=-1)
        each = x.shape[1] // self.heads
        mixed = np.empty_like(x)
        for start in range(0, x.shape[1], each):
            part = slice(start, start + each)
            scores = q[:, part] @ k[:, part].T / math.sqrt(each)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed[:, part] = weights / weights.sum(axis=1, keepdims=True) @ v[:, part]
        return self.linear(mixed, f"{name}.to_out.0")

    def block(self, x: Array, name: str) -> Array:
        x = x + self.attention(self.layer_norm(x, f"{name}.0.norm"), f"{name}.0.fn")
        hidden = self.gelu(self.linear(self.layer_norm(x, f"{name}.1.norm"), f"{name}.1.fn.net.0"))
        return x + self.linear(hidden, f"{name}.1.fn.net.3")

    def __call__(
        self, cloud: NDArray[np.float32], projection: Array, mask: NDArray[np.bool_] | None = None
    ) -> dict[str, Array]:
        chosen, points = self.sample(cloud[:, :3]), cloud.astype(np.float64)
        centers = points[chosen, :3]
        members = np.array([self.ball(points[:, :3], center) for center in centers])
        found = {"sampled": np.array(chosen), "members": members}
        found["set abstraction"] = self.set_abstraction(points[members], centers)
        found["tokens"] = self.lift(found["set abstraction"], centers, mask)
        x = np.concatenate([self.state["cls_token"][None], found["tokens"]])
        for index in range(self.card.depth):
            x = found[f"block {index}"] = self.block(x, f"transformer.layers.{index}")
        cls = x[0]
        if self.last_norm:
            cls = (cls - cls.mean()) / np.sqrt(cls.var() + self.epsilon)
        found["feature"] = np.append(cls, 1.0)
        embedding = found["feature"] @ projection
        found["embedding"] = embedding / np.linalg.norm(embedding)
        return found
