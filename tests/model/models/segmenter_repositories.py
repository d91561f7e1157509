"""Oracles: the formulas of Segmenter in plain torch, with the parameter names of the original and of mmsegmentation.

Images must be multiples of the patch. Norms have torch's epsilon, 1e-5, except where a formula has another one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Original(nn.Module):
    """The original repository: timm's names, unused classifiers, a distillation token for DeiT."""

    interpolation = "bilinear"

    def __init__(self, decoder: str, classes: int, dim: int, side: int, patch: int, distilled: bool = False) -> None:
        super().__init__()
        prefix = 1 + distilled
        self.encoder = nn.Module()
        self.encoder.patch_embed = nn.Module()
        self.encoder.patch_embed.proj = nn.Conv2d(3, dim, patch, patch)
        self.encoder.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.encoder.pos_embed = nn.Parameter(torch.zeros(1, prefix + side**2, dim))
        self.encoder.blocks = nn.ModuleList(_Block(dim) for _ in range(2))
        self.encoder.norm = nn.LayerNorm(dim)
        self.encoder.head = nn.Linear(dim, 7)
        if distilled:
            self.encoder.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
            self.encoder.head_dist = nn.Linear(dim, 7)
        self.decoder = _LinearDecoder(dim, classes) if decoder == "linear" else _MaskDecoder(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        encoder = self.encoder
        tokens = [encoder.cls_token] + ([encoder.dist_token] if hasattr(encoder, "dist_token") else [])
        x, grid = _embed(images, encoder.patch_embed.proj, tokens, encoder.pos_embed, self.interpolation)
        for block in encoder.blocks:
            x = block(x)
        masks = self.decoder(encoder.norm(x)[:, len(tokens) :])
        return _enlarged(masks, grid, images)


class _Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        # [batch, tokens, 3 * heads * 16] -> three of [batch, heads, tokens, 16]
        q, k, v = self.attn.qkv(self.norm1(x)).unflatten(-1, (3, -1, 16)).movedim(2, 0).transpose(2, 3)
        attended = (q @ k.mT / 4).softmax(-1) @ v
        x = x + self.attn.proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class _LinearDecoder(nn.Module):
    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class _MaskDecoder(nn.Module):
    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(dim) for _ in range(2))
        self.cls_emb = nn.Parameter(torch.zeros(1, classes, dim))
        self.proj_dec = nn.Linear(dim, dim)
        self.proj_patch, self.proj_classes = (nn.Parameter(torch.zeros(dim, dim)) for _ in range(2))
        self.decoder_norm, self.mask_norm = nn.LayerNorm(dim), nn.LayerNorm(classes)

    def forward(self, x: Tensor) -> Tensor:
        x, classes = self.proj_dec(x), self.cls_emb.shape[1]
        x = torch.cat([x, self.cls_emb.expand(x.shape[0], -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_norm(x)
        return _masks(x[:, :-classes] @ self.proj_patch, x[:, -classes:] @ self.proj_classes, self.mask_norm)


class MMSegmentation(nn.Module):
    """mmsegmentation: torch's attention, linear projections, a 1 x 1 convolution as linear decoder."""

    interpolation = "bicubic"

    def __init__(self, decoder: str, classes: int, dim: int, side: int, patch: int) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.patch_embed = nn.Module()
        self.backbone.patch_embed.projection = nn.Conv2d(3, dim, patch, patch)
        self.backbone.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.backbone.pos_embed = nn.Parameter(torch.zeros(1, 1 + side**2, dim))
        self.backbone.layers = nn.ModuleList(_Layer(dim, eps=1e-6) for _ in range(2))
        self.backbone.ln1 = nn.LayerNorm(dim, eps=1e-6)
        self.decode_head = head = nn.Module()
        self.auxiliary_head = nn.ModuleList([nn.Conv2d(dim, classes, 1)])
        if decoder == "linear":
            head.conv_seg = nn.Conv2d(dim, classes, 1)
            return
        head.layers = nn.ModuleList(_Layer(dim, eps=1e-5) for _ in range(2))
        head.cls_emb = nn.Parameter(torch.zeros(1, classes, dim))
        head.dec_proj = nn.Linear(dim, dim)
        head.patch_proj, head.classes_proj = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        head.decoder_norm, head.mask_norm = nn.LayerNorm(dim), nn.LayerNorm(classes)

    def forward(self, images: Tensor) -> Tensor:
        backbone = self.backbone
        projection = backbone.patch_embed.projection
        x, grid = _embed(images, projection, [backbone.cls_token], backbone.pos_embed, self.interpolation)
        for layer in backbone.layers:
            x = layer(x)
        return _enlarged(self._decode(backbone.ln1(x)[:, 1:]), grid, images)

    def _decode(self, x: Tensor) -> Tensor:
        head = self.decode_head
        if not hasattr(head, "cls_emb"):
            return head.conv_seg(x.mT[..., None])[..., 0].mT
        patches = x.shape[1]
        x = torch.cat([head.dec_proj(x), head.cls_emb.expand(x.shape[0], -1, -1)], dim=1)
        for layer in head.layers:
            x = layer(x)
        x = head.decoder_norm(x)
        return _masks(head.patch_proj(x[:, :patches]), head.classes_proj(x[:, patches:]), head.mask_norm)


class _Layer(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attn, self.ffn = nn.Module(), nn.Module()
        self.attn.attn = nn.MultiheadAttention(dim, dim // 16, batch_first=True)
        inner = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU())
        self.ffn.layers = nn.Sequential(inner, nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln1(x)
        x = x + self.attn.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.ffn.layers(self.ln2(x))


def _embed(
    images: Tensor, projection: nn.Conv2d, tokens: list[Tensor], positions: Tensor, interpolation: str
) -> tuple[Tensor, tuple[int, int]]:
    """Tokens [batch, prefix + H * W, dim] with positions, which are resampled to the grid; and that grid."""
    patches = projection(images)
    height, width = patches.shape[2:]
    prefix, grid = positions[:, : len(tokens)], positions[:, len(tokens) :]
    side = round(grid.shape[1] ** 0.5)
    grid = grid.mT.unflatten(2, (side, side))
    if (height, width) != (side, side):
        grid = F.interpolate(grid, size=(height, width), mode=interpolation, align_corners=False)
    x = torch.cat([*(token.expand(images.shape[0], -1, -1) for token in tokens), patches.flatten(2).mT], dim=1)
    return x + torch.cat([prefix, grid.flatten(2).mT], dim=1), (height, width)


def _masks(patches: Tensor, classes: Tensor, norm: nn.LayerNorm) -> Tensor:
    return norm(F.normalize(patches, dim=-1) @ F.normalize(classes, dim=-1).mT)


def _enlarged(masks: Tensor, grid: tuple[int, int], images: Tensor) -> Tensor:
    return F.interpolate(masks.mT.unflatten(2, grid), size=images.shape[2:], mode="bilinear", align_corners=False)
