"""CLIP and a timm ViT written with torch's own modules, under their own names of parameters."""

from __future__ import annotations

import torch
from torch import nn


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width, heads, act, causal):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )
        self.act, self.causal = act, causal

    def forward(self, x):
        y = self.ln_1(x)
        mask = torch.full((len(x), len(x)), -torch.inf).triu(1) if self.causal else None
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](self.act(self.mlp["c_fc"](self.ln_2(x))))


class Tower(nn.Module):
    def __init__(self, width, layers, heads, act, causal):
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, heads, act, causal) for _ in range(layers)))


class Visual(nn.Module):
    def __init__(self, width, layers, act, patch, size, dim):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Tower(width, layers, width // 64, act, False)
        self.proj = nn.Parameter(torch.randn(width, dim) / width**0.5)

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).permute(2, 0, 1)
        first = self.class_embedding.expand(1, x.shape[1], -1)
        x = torch.cat([first, x]) + self.positional_embedding[:, None]
        x = self.transformer.resblocks(self.ln_pre(x))
        return self.ln_post(x[0]) @ self.proj


class OpenAIModel(nn.Module):
    """CLIP as OpenAI names it; ``long`` gives it Long-CLIP's second position table."""

    def __init__(
        self, *, act="quick_gelu", long=False, positions=77, vocabulary=60, dim=24, text_heads=1
    ):
        super().__init__()
        used = QuickGelu() if act == "quick_gelu" else nn.GELU()
        self.visual = Visual(128, 2, used, 8, 32, dim)
        self.transformer = Tower(64, 2, text_heads, used, True)
        self.token_embedding = nn.Embedding(vocabulary, 64)
        self.positional_embedding = nn.Parameter(torch.randn(positions, 64))
        if long:
            self.positional_embedding_res = nn.Parameter(torch.randn(positions, 64))
        self.ln_final = nn.LayerNorm(64)
        self.text_projection = nn.Parameter(torch.randn(64, dim) / 8)
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        for parameter in self.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)

    def text(self, ids):
        table = self.positional_embedding
        if hasattr(self, "positional_embedding_res"):
            early = (torch.arange(len(table)) < 20)[:, None]
            table = torch.where(early, table, self.positional_embedding_res)
        x = (self.token_embedding(ids) + table[: ids.shape[1]]).permute(1, 0, 2)
        x = self.ln_final(self.transformer.resblocks(x).permute(1, 0, 2))
        return x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection


class TimmBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, x):
        batch, length, width = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(batch, length, 3, width // 64, 64)
        q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
        weights = (q @ k.transpose(-1, -2) / 8).softmax(-1)
        x = x + self.attn["proj"]((weights @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class TimmViT(nn.Module):
    """A ViT as timm names it."""

    def __init__(self, width=128, layers=2, patch=8, size=32):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(TimmBlock(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for parameter in self.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)

    def forward(self, pixels):
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.norm(self.blocks(x))[:, 0]
