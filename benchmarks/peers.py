"""PyTorch models that ``fit.py`` measures the zoo beside, of the same function.

Written from the papers and in idiomatic PyTorch, in its layout (batch, channels, height, width),
with ``scaled_dot_product_attention`` and PyTorch's own layers. Parameters have the names that the
authors' code gives them, so that ``keras_hybrid.convert`` takes a peer's weights: before anything
is timed, both models must put out the same numbers.

A peer takes the images as the zoo's model does, but channels first: (batch, 3, height, width) in
[0, 255], normalised inside; it returns logits (batch, classes).
"""

import itertools
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from keras_hybrid.applications.base import IMAGENET_MEAN, IMAGENET_STD
from keras_hybrid.applications.cct import CIFAR_MEAN, CIFAR_STD
from keras_hybrid.convert.mapping import TorchMapping

__all__ = ["PEERS", "Normalized", "build_peer", "load_facerec_small"]


def attend(query, key, value, heads: int, **options):
    """Multi-head attention of (batch, tokens, channels); ``options`` are PyTorch's function's."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    x = F.scaled_dot_product_attention(query, key, value, **options)
    return x.transpose(1, 2).flatten(2)


def rates(last: float, depth: int) -> list[float]:
    """Rates of stochastic depth that rise linearly from 0."""
    return [last * i / max(1, depth - 1) for i in range(depth)]


def relative_positions(side: int):
    """Row of a table of relative positions for each two cells of a square, (side², side²)."""
    row, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    index = (row[:, None] - row + side - 1) * (2 * side - 1) + column[:, None] - column
    return index + side - 1


class DropPath(nn.Module):
    """Stochastic depth."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training or not self.rate:
            return x
        shape = (len(x),) + (1,) * (x.ndim - 1)
        return x * x.new_empty(shape).bernoulli_(1 - self.rate).div_(1 - self.rate)


class SequencePooling(nn.Linear):
    """A weighted sum of the tokens whose weights are a softmax of a linear map of them."""

    def __init__(self, dim: int):
        super().__init__(dim, 1)

    def forward(self, x):
        return (super().forward(x).softmax(dim=1).transpose(1, 2) @ x).squeeze(1)


# --- CCT ------------------------------------------------------------------------------------------


class CCTAttention(nn.Module):
    """Self-attention without biases before it."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        rate = self.dropout if self.training else 0.0
        return self.proj(attend(*self.qkv(x).chunk(3, -1), self.heads, dropout_p=rate))


class CCTBlock(nn.Module):
    """a = x + attention(LN x); b = LN a; b + MLP b."""

    def __init__(self, dim: int, heads: int, width: int, dropout: float, drop_path: float):
        super().__init__()
        self.pre_norm = nn.LayerNorm(dim)
        self.self_attn = CCTAttention(dim, heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, width)
        self.linear2 = nn.Linear(width, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x):
        x = self.norm1(x + self.drop_path(self.self_attn(self.pre_norm(x))))
        return x + self.drop_path(self.linear2(F.gelu(self.linear1(x))))


class CCTTokenizer(nn.Module):
    """One convolution, ReLU and max pooling."""

    def __init__(self, dim: int):
        super().__init__()
        layers = nn.Sequential(
            nn.Conv2d(3, dim, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.conv_layers = nn.Sequential(layers)

    def forward(self, x):
        return self.conv_layers(x).flatten(2).transpose(1, 2)


class CCTEncoder(nn.Module):
    """Positions, blocks, sequence pooling, classifier."""

    def __init__(self, tokens: int, classes: int, dim: int, depth: int, heads: int, width: int):
        super().__init__()
        self.positional_emb = nn.Parameter(0.2 * torch.randn(1, tokens, dim))
        self.blocks = nn.Sequential(
            *(CCTBlock(dim, heads, width, 0.1, rate) for rate in rates(0.1, depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.attention_pool = SequencePooling(dim)
        self.fc = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.norm(self.blocks(x + self.positional_emb))
        return self.fc(self.attention_pool(x))


class CCT(nn.Sequential):
    """CCT-7/3×1 (Hassani et al. 2021)."""

    def __init__(self, size: int, classes: int):
        super().__init__()
        self.tokenizer = CCTTokenizer(256)
        self.classifier = CCTEncoder((size // 2) ** 2, classes, 256, 7, 4, 512)


# --- CvT ------------------------------------------------------------------------------------------


class CvTAttention(nn.Module):
    """Attention whose queries, keys and values come from depthwise convolutions."""

    def __init__(self, dim: int, heads: int, class_token: bool):
        super().__init__()
        self.heads, self.class_token = heads, class_token
        for letter, stride in (("q", 1), ("k", 2), ("v", 2)):
            convolution = nn.Sequential()
            convolution.conv = nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False)
            convolution.bn = nn.BatchNorm2d(dim)
            setattr(self, f"conv_proj_{letter}", convolution)
            setattr(self, f"proj_{letter}", nn.Linear(dim, dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, side: int):
        grid = x[:, 1:] if self.class_token else x
        grid = grid.transpose(1, 2).unflatten(2, (side, side))

        def project(convolution, linear):
            y = convolution(grid).flatten(2).transpose(1, 2)
            return linear(torch.cat([x[:, :1], y], dim=1) if self.class_token else y)

        query = project(self.conv_proj_q, self.proj_q)
        key = project(self.conv_proj_k, self.proj_k)
        value = project(self.conv_proj_v, self.proj_v)
        return self.proj(attend(query, key, value, self.heads, scale=x.shape[-1] ** -0.5))


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x)."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class CvTBlock(nn.Module):
    """A pre-norm encoder block."""

    def __init__(self, dim: int, heads: int, class_token: bool, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = CvTAttention(dim, heads, class_token)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential()
        self.mlp.fc1 = nn.Linear(dim, 4 * dim)
        self.mlp.act = QuickGELU()
        self.mlp.fc2 = nn.Linear(4 * dim, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x, side: int):
        x = x + self.drop_path(self.attn(self.norm1(x), side))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CvTEmbedding(nn.Module):
    """A strided convolution, normalised: map → tokens."""

    def __init__(self, channels: int, dim: int, kernel: int, stride: int, padding: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[-1]


class CvTStage(nn.Module):
    """Embedding and blocks; the last stage has the class token and stochastic depth."""

    def __init__(self, embedding: CvTEmbedding, heads: int, depth: int, is_last: bool):
        super().__init__()
        dim = embedding.proj.out_channels
        self.patch_embed = embedding
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim)) if is_last else None
        self.blocks = nn.ModuleList(
            CvTBlock(dim, heads, is_last, rate) for rate in rates(0.1 * is_last, depth)
        )

    def forward(self, x):
        x, side = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x, side)
        return x if self.cls_token is not None else x.transpose(1, 2).unflatten(2, (side, side))


class CvT(nn.Module):
    """CvT-13 (Wu et al. 2021)."""

    def __init__(self, size: int, classes: int):
        super().__init__()
        self.stage0 = CvTStage(CvTEmbedding(3, 64, 7, 4, 2), 1, 1, False)
        self.stage1 = CvTStage(CvTEmbedding(64, 192, 3, 2, 1), 3, 2, False)
        self.stage2 = CvTStage(CvTEmbedding(192, 384, 3, 2, 1), 6, 10, True)
        self.norm = nn.LayerNorm(384)
        self.head = nn.Linear(384, classes)

    def forward(self, x):
        x = self.norm(self.stage2(self.stage1(self.stage0(x))))
        return self.head(x[:, 0])


# --- Face Transformer -----------------------------------------------------------------------------


class Residual(nn.Module):
    """x + fn x."""

    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return x + self.fn(x)


class PreNorm(nn.Module):
    """Fn LN x."""

    def __init__(self, dim: int, fn: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x):
        return self.fn(self.norm(x))


class FaceAttention(nn.Module):
    """Self-attention whose logits are divided by the square root of the model's width."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))

    def forward(self, x):
        qkv = self.to_qkv(x).chunk(3, -1)
        return self.to_out(attend(*qkv, self.heads, scale=x.shape[-1] ** -0.5))


class FaceMLP(nn.Module):
    """Two linear maps with a GELU between."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x):
        return self.net(x)


class FaceTransformer(nn.Module):
    """ViT-P8S8 (Zhong and Deng 2021), ending in a linear classifier."""

    def __init__(self, size: int, classes: int, dim: int = 512, depth: int = 20, heads: int = 8):
        super().__init__()
        self.patch_to_embedding = nn.Linear(8 * 8 * 3, dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, (size // 8) ** 2 + 1, dim))
        self.dropout = nn.Dropout(0.1)
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(
            nn.ModuleList(
                Residual(PreNorm(dim, branch))
                for branch in (FaceAttention(dim, heads, 0.1), FaceMLP(dim, 0.1))
            )
            for _ in range(depth)
        )
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim))
        self.loss = nn.Linear(dim, classes)

    def forward(self, x):
        # (batch, 3, rows, 8, columns, 8) → (batch, patches, row · column · channel)
        x = x.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).permute(0, 2, 4, 3, 5, 1)
        x = self.patch_to_embedding(x.flatten(3).flatten(1, 2))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.dropout(x + self.pos_embedding)
        for attention, mlp in self.transformer.layers:
            x = mlp(attention(x))
        return self.loss(self.mlp_head(x[:, 0]))


# --- Swin -----------------------------------------------------------------------------------------


def windows(x, side: int):
    """(batch, height, width, channels) → (batch · windows, side², channels)."""
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


class SwinAttention(nn.Module):
    """Attention within windows of a shifted map, with a bias for each relative position."""

    def __init__(self, dim: int, heads: int, size: int, window: int, is_shifted: bool):
        super().__init__()
        self.heads, self.side = heads, min(size, window)
        self.shift = window // 2 if is_shifted and size > window else 0
        side = self.side
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        table = 0.02 * torch.randn((2 * side - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(table)
        self.register_buffer("index", relative_positions(side), persistent=False)
        mask = None
        if self.shift:
            # The map's parts that the shift brings together, numbered along each axis.
            part = torch.zeros(size)
            part[-side:], part[-self.shift :] = 1, 2
            part = windows((3 * part[:, None] + part)[None, :, :, None], side).squeeze(-1)
            mask = torch.where(part[:, :, None] == part[:, None], 0.0, -100.0).unsqueeze(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x):
        batch, size, side = len(x), x.shape[1], self.side
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        qkv = self.qkv(windows(x, side)).chunk(3, -1)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1).unsqueeze(0)
        if self.shift:
            bias = (bias + self.mask).repeat(batch, 1, 1, 1)
        x = self.proj(attend(*qkv, self.heads, attn_mask=bias.to(qkv[0].dtype)))
        x = x.unflatten(0, (batch, size // side, size // side)).unflatten(3, (side, side))
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x


class SwinBlock(nn.Module):
    """A pre-norm encoder block on a map."""

    def __init__(self, dim: int, attention: SwinAttention, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential()
        self.mlp.fc1 = nn.Linear(dim, 4 * dim)
        self.mlp.act = nn.GELU()
        self.mlp.fc2 = nn.Linear(4 * dim, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class SwinMerging(nn.Module):
    """2 × 2 neighbours side by side, normalised, projected to twice the channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x):
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=-1)
        return self.reduction(self.norm(x))


class Swin(nn.Module):
    """Swin-T (Liu et al. 2021)."""

    def __init__(self, size: int, classes: int, patch: int = 4, window: int = 7):
        super().__init__()
        dim, depths, heads = 96, (2, 2, 6, 2), (3, 6, 12, 24)
        self.patch_embed = nn.Sequential()
        self.patch_embed.proj = nn.Conv2d(3, dim, patch, patch)
        self.patch_embed.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList()
        drop_path = iter(rates(0.2, sum(depths)))
        size //= patch
        for stage, depth in enumerate(depths):
            layer = nn.Sequential()
            if stage:
                layer.downsample = SwinMerging(dim)
                dim, size = 2 * dim, size // 2
            layer.blocks = nn.Sequential()
            for i in range(depth):
                attention = SwinAttention(dim, heads[stage], size, window, i % 2 == 1)
                layer.blocks.append(SwinBlock(dim, attention, next(drop_path)))
            self.layers.append(layer)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Sequential()
        self.head.fc = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.patch_embed.norm(self.patch_embed.proj(x).permute(0, 2, 3, 1))
        for layer in self.layers:
            x = layer(x)
        return self.head.fc(self.norm(x).mean((1, 2)))


# --- FaceRec-small --------------------------------------------------------------------------------


def conv_norm(channels: int, width: int, kernel: int) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


class FaceRecBlock(nn.Module):
    """A pre-norm encoder block with logits of convolutional features and relative positions."""

    def __init__(self, side: int, dim: int, heads: int, conv_dim: int, drop_path: float):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(conv_dim, heads * 8)
        self.key = nn.Linear(conv_dim, heads * 8)
        self.table = nn.Parameter(0.02 * torch.randn((2 * side - 1) ** 2, heads))
        self.register_buffer("index", relative_positions(side), persistent=False)
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x, features):
        query, key = (
            linear(features).unflatten(-1, (self.heads, 8)).transpose(1, 2)
            for linear in (self.query, self.key)
        )
        bias = (query * 8**-0.5) @ key.transpose(2, 3)
        bias = bias + self.table[self.index].permute(2, 0, 1)
        qkv = self.qkv(self.norm1(x)).chunk(3, -1)
        y = self.proj(attend(*qkv, self.heads, attn_mask=bias.to(qkv[0].dtype)))
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class FaceRecSmall(nn.Module):
    """FaceRec-small, ending in a linear classifier."""

    def __init__(self, size: int, classes: int, dim: int = 192, depth: int = 5, conv_dim: int = 64):
        super().__init__()
        widths = (3, 24, 48, dim)
        self.stem = nn.ModuleList(
            conv_norm(before, after, 3) for before, after in itertools.pairwise(widths)
        )
        self.taps = nn.ModuleList(conv_norm(width, conv_dim, 1) for width in widths[1:])
        self.tap_norm = nn.LayerNorm(conv_dim)
        side = size // 8
        self.pos_embed = nn.Parameter(0.2 * torch.randn(1, side**2, dim))
        self.blocks = nn.ModuleList(
            FaceRecBlock(side, dim, 6, conv_dim, rate) for rate in rates(0.1, depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.pool = SequencePooling(dim)
        self.places = nn.Linear(dim, 64)
        self.dropout = nn.Dropout(0.1)
        self.embedding = nn.Linear(dim + side**2 * 64, 256, bias=False)
        self.embedding_norm = nn.BatchNorm1d(256)
        self.head = nn.Linear(256, classes)

    def forward(self, x):
        scales = []
        for i, (stage, tap) in enumerate(zip(self.stem, self.taps, strict=True)):
            # Keras's "same": the odd cell of padding stands at the end.
            x = F.max_pool2d(F.pad(stage(x), (0, 1, 0, 1)), 3, 2)
            scales.append(F.avg_pool2d(tap(x), 4 >> i))
        features = self.tap_norm(sum(scales).flatten(2).transpose(1, 2))
        x = x.flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x, features)
        x = self.norm(x)
        x = torch.cat([self.pool(x), self.places(x).flatten(1)], dim=1)
        return self.head(self.embedding_norm(self.embedding(self.dropout(x))))


def load_facerec_small(model, state: dict) -> None:
    """Load a peer's ``state_dict`` into the zoo's FaceRec-small, of which nobody else has files."""
    mapping = TorchMapping(model)
    for ours, theirs in (("stem{}", "stem.{}"), ("tap{}", "taps.{}")):
        for i in range(3):
            mapping.conv(f"{ours.format(i)}_conv", f"{theirs.format(i)}.0")
            mapping.norm(f"{ours.format(i)}_norm", f"{theirs.format(i)}.1")
    mapping.norm("tap_norm", "tap_norm")
    mapping.tensor("position_embedding", "pos_embed", "embedding")
    for i in range(mapping.count("block{}_attention")):
        for part in ("query", "key"):
            mapping.dense(f"block{i}_convolutional_attention.{part}", f"blocks.{i}.{part}")
        mapping.tensor(f"block{i}_relative_position", f"blocks.{i}.table", "table")
        mapping.norm(f"block{i}_norm1", f"blocks.{i}.norm1")
        mapping.dense(f"block{i}_attention.qkv", f"blocks.{i}.qkv")
        mapping.dense(f"block{i}_attention.projection", f"blocks.{i}.proj")
        mapping.norm(f"block{i}_norm2", f"blocks.{i}.norm2")
        mapping.dense(f"block{i}_mlp_dense1", f"blocks.{i}.mlp.0")
        mapping.dense(f"block{i}_mlp_dense2", f"blocks.{i}.mlp.2")
    mapping.norm("norm", "norm")
    mapping.dense("sequence_pooling.score", "pool")
    mapping.dense("places_projection", "places")
    mapping.dense("embedding_projection", "embedding")
    mapping.norm("embedding_norm", "embedding_norm")
    mapping.dense("predictions", "head")
    for name, target in mapping.targets.items():
        target.variable.assign(target.layout(state[name].numpy()).reshape(target.variable.shape))


# --- all of them ----------------------------------------------------------------------------------


class Normalized(nn.Module):
    """Images in [0, 255], also as bytes → (x − mean) / std → the network."""

    def __init__(self, network: nn.Module, mean, std):
        super().__init__()
        self.network = network
        for name, value in (("mean", mean), ("std", std)):
            value = torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, x):
        return self.network((x.float() - self.mean) / self.std)


_HALF = ((127.5,) * 3, (127.5,) * 3)
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)

# Registered model → (the network, its normalisation, whose code it is).
PEERS = {
    "facerec_small": (FaceRecSmall, _HALF, "own PyTorch"),
    "cct_7_3x1": (CCT, (CIFAR_MEAN, CIFAR_STD), "own PyTorch"),
    "cvt_13": (CvT, _IMAGENET, "own PyTorch"),
    "cvt_13_32": (CvT, _IMAGENET, "own PyTorch"),
    "vit_p8s8": (FaceTransformer, ((0.0,) * 3, (1.0,) * 3), "own PyTorch"),
    "swin_tiny": (Swin, _IMAGENET, "own PyTorch"),
    "swin_tiny_32": (partial(Swin, patch=2, window=4), _IMAGENET, "own PyTorch"),
}


def build_peer(name: str, size: int, classes: int) -> Normalized:
    """Return the peer of a registered model for images of ``size`` × ``size`` pixels."""
    network, (mean, std), _ = PEERS[name]
    return Normalized(network(size, classes), mean, std)
