"""Point-BERT in plain PyTorch, as the field publishes it: what the runtime is compared with.

Written from METHOD 1.3's description, without any of the savings of crossmost's own module: rows of points in the
sampling loop, the whole distance matrix by |a|^2 + |b|^2 - 2ab, 1x1 convolutions with their batch norms, the patch's
maximum copied to each of its points, attention with its matrix of weights. Only the start of the sampling is ours,
so that both choose the same centres.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crossmost.models.point_bert import PatchEncoder, PointBert


def farthest_points(xyz: Tensor, count: int) -> Tensor:
    """Indices (B, count) of farthest points of (B, N, 3), one after the other."""
    batch = torch.arange(len(xyz))
    distance = torch.full(xyz.shape[:2], 1e10)
    farthest = (xyz**2).sum(-1).argmax(-1)
    chosen = torch.zeros(len(xyz), count, dtype=torch.long)
    for index in range(count):
        chosen[:, index] = farthest
        centroid = xyz[batch, farthest][:, None]  # (B, 1, 3)
        squared = ((xyz - centroid) ** 2).sum(-1)
        nearer = squared < distance
        distance[nearer] = squared[nearer]
        farthest = distance.argmax(-1)
    return chosen


def nearest(xyz: Tensor, centers: Tensor, count: int) -> Tensor:
    """Indices (B, G, count) of the points nearest to each centre, by the expanded square."""
    squared = (centers**2).sum(-1)[:, :, None] + (xyz**2).sum(-1)[:, None] - 2 * centers @ xyz.transpose(1, 2)
    return squared.topk(count, dim=-1, largest=False, sorted=False).indices


def convolutions(stage: nn.Sequential) -> nn.Sequential:
    """Linear layers as 1x1 convolutions; batch norms as they are."""
    layers = []
    for layer in stage:
        if isinstance(layer, nn.Linear):
            convolution = nn.Conv1d(layer.in_features, layer.out_features, 1)
            convolution.load_state_dict({"weight": layer.weight[..., None], "bias": layer.bias})
            layers.append(convolution)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


class PlainTokens(nn.Module):
    """mini-PointNet."""

    def __init__(self, layers: PatchEncoder):
        super().__init__()
        self.first, self.second = convolutions(layers.first_conv), convolutions(layers.second_conv)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, G, K, channels) to (B, G, out)."""
        batch, groups, neighbors, channels = patches.shape
        local = self.first(patches.reshape(-1, neighbors, channels).transpose(2, 1))  # (B*G, 256, K)
        highest = local.max(dim=2, keepdim=True).values
        joined = torch.cat([highest.expand(-1, -1, neighbors), local], dim=1)
        return self.second(joined).max(dim=2).values.reshape(batch, groups, -1)


class PlainAttention(nn.Module):
    """Attention with its matrix of weights in memory."""

    def __init__(self, layers: nn.Module):
        super().__init__()
        self.heads, self.qkv, self.proj = layers.heads, layers.qkv, layers.proj

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        return self.proj((weights.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, tokens, width))


def plain_path(
    encoder: PointBert, head: nn.Module
) -> tuple[
    Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]
]:
    """The three steps of one network, its weights shared: sampling, grouping and encoding.

    Returns:
        points (B, N, 3) to centers (B, G, 3); both to patches (B, G, K, 3); patches and centers to (B, D) unit rows.
    """
    card = encoder.card
    tokens = PlainTokens(encoder.encoder).eval()
    attentions = [PlainAttention(block.attn) for block in encoder.blocks.blocks]

    def sample(points: Tensor) -> Tensor:
        chosen = farthest_points(points, card.groups)
        return points[torch.arange(len(points))[:, None], chosen]

    def cut(points: Tensor, centers: Tensor) -> Tensor:
        members = nearest(points, centers, card.neighbors)  # (B, G, K)
        return points[torch.arange(len(points))[:, None, None], members] - centers[:, :, None]

    def encode(patches: Tensor, centers: Tensor) -> Tensor:
        batch = len(patches)
        x = torch.cat([encoder.cls_token.expand(batch, -1, -1), encoder.reduce_dim(tokens(patches))], dim=1)
        position = torch.cat([encoder.cls_pos.expand(batch, -1, -1), encoder.pos_embed(centers)], dim=1)
        for block, attention in zip(encoder.blocks.blocks, attentions, strict=True):
            x = x + position
            x = x + attention(block.norm1(x))
            hidden = block.mlp.fc1(block.norm2(x))
            x = x + block.mlp.fc2(nn.functional.gelu(hidden))
        x = encoder.norm(x)
        feature = torch.cat([x[:, 0], x[:, 1:].max(dim=1).values], dim=-1)
        return head(feature)

    return sample, cut, encode
