"""The two branches of the published method in plain PyTorch, masked modelling included (METHOD 1.2 to 1.4, 1.8, 1.9).

What throughput.py compares crossmost's trainer with: whole patches copied to each of their points, attention with its
matrix of weights, a sampling loop that starts anywhere, as plain_point_bert.py has them. The layers of a base are taken
over with their weights, so that both compute the same numbers.
"""

from __future__ import annotations

import torch
from plain_point_bert import PlainAttention, PlainTokens, nearest
from torch import Tensor, nn

from crossmost.models.image_tower import ImageTower
from crossmost.models.point_bert import Block, PointBert
from crossmost.models.student import Student


def farthest_points(xyz: Tensor, count: int) -> Tensor:
    """Indices (B, count) of farthest points of (B, N, 3), one after the other, from a random one."""
    batch = torch.arange(len(xyz), device=xyz.device)
    distance = torch.full(xyz.shape[:2], 1e10, device=xyz.device)
    chosen = torch.zeros(len(xyz), count, dtype=torch.long, device=xyz.device)
    farthest = torch.randint(xyz.shape[1], (len(xyz),), device=xyz.device)
    for index in range(count):
        chosen[:, index] = farthest
        distance = torch.min(distance, ((xyz - xyz[batch, farthest][:, None]) ** 2).sum(-1))
        farthest = distance.argmax(-1)
    return chosen


def cut(xyz: Tensor, groups: int, neighbors: int) -> tuple[Tensor, Tensor]:
    """Patches (B, G, K, 3) around their centers (B, G, 3), of points (B, N, 3)."""
    rows = torch.arange(len(xyz), device=xyz.device)[:, None]
    centers = xyz[rows, farthest_points(xyz, groups)]
    members = nearest(xyz, centers, neighbors)
    return xyz[rows[..., None], members] - centers[:, :, None], centers


class PlainBlock(nn.Module):
    """Pre-norm block with stochastic depth."""

    def __init__(self, layers: Block, rate: float):
        super().__init__()
        self.rate = rate
        self.norm1, self.norm2 = layers.norm1, layers.norm2
        self.attn = PlainAttention(layers.attn)
        self.mlp = nn.Sequential(layers.mlp.fc1, nn.GELU(), layers.mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))

    def drop(self, branch: Tensor) -> Tensor:
        """Leave whole samples out while training."""
        if not self.training or self.rate == 0:
            return branch
        kept = 1 - self.rate
        return branch.div(kept) * (kept + torch.rand(len(branch), 1, 1, device=branch.device)).floor()


class PlainPoints(nn.Module):
    """Point-BERT."""

    def __init__(self, layers: PointBert):
        super().__init__()
        card = layers.card
        self.groups, self.neighbors = card.groups, card.neighbors
        self.tokens = PlainTokens(layers.encoder)
        self.reduce_dim, self.pos_embed, self.norm = layers.reduce_dim, layers.pos_embed, layers.norm
        self.cls_token, self.cls_pos, self.mask_token = layers.cls_token, layers.cls_pos, layers.mask_token
        self.lm_head = layers.lm_head
        rates = torch.linspace(0, card.drop_path, card.depth).tolist()
        self.blocks = nn.ModuleList(map(PlainBlock, layers.blocks.blocks, rates))

    def forward(
        self, patches: Tensor, centers: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode; mask (B, G, 1) float, 1 where hidden. Gives [cls; max] (B, 2 width), cls, patch tokens."""
        x = self.reduce_dim(self.tokens(patches))
        if mask is not None:
            x = x * (1 - mask) + self.mask_token * mask
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        position = torch.cat([self.cls_pos.expand(len(x), -1, -1), self.pos_embed(centers)], dim=1)
        for block in self.blocks:
            x = block(x + position)
        x = self.norm(x)
        return torch.cat([x[:, 0], x[:, 1:].max(dim=1).values], dim=-1), x[:, 0], x[:, 1:]


class PlainImages(nn.Module):
    """CLIP's vision transformer with a mask token and a pixel decoder."""

    def __init__(self, layers: ImageTower):
        super().__init__()
        visual = layers.visual
        self.grid = layers.grid
        self.conv1, self.ln_pre, self.ln_post = visual.conv1, visual.ln_pre, visual.ln_post
        self.class_embedding, self.positional_embedding = visual.class_embedding, visual.positional_embedding
        self.blocks = visual.transformer.resblocks
        self.mask_token, self.ln_patch, self.decoder = layers.mask_token, layers.ln_patch, layers.decoder

    def forward(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode (B, 3, H, W); mask (B, grid, grid) float, 1 where hidden. Gives cls (B, width) and patch tokens."""
        x = self.conv1(images).flatten(2).transpose(1, 2)
        if mask is not None:
            hidden = mask.flatten(1)[..., None]
            x = x * (1 - hidden) + self.mask_token * hidden
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.blocks:
            x = block(x)
        return self.ln_post(x[:, 0]), x[:, 1:]

    def reconstruct(self, patches: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) of patch tokens (B, L, width)."""
        return self.decoder(patches.transpose(1, 2).unflatten(2, (self.grid, self.grid)))


class PlainNetwork(nn.Module):
    """Both branches with the classifier and the temperature that they share."""

    def __init__(self, student: Student):
        super().__init__()
        assert isinstance(student.point_encoder, PointBert)
        self.point_encoder, self.visual = PlainPoints(student.point_encoder), PlainImages(student.images())
        self.pc_projection, self.image_projection = student.point_projection, student.images().projection
        self.classifier, self.logit_scale = student.classifier, student.logit_scale
        self.proj = student.point_local_projection

    def logits(self, embedding: Tensor) -> Tensor:
        """(B, D) unit rows to (B, C)."""
        return self.logit_scale.exp() * embedding @ self.classifier
