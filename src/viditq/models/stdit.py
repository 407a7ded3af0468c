"""STDiT, the network of Open-Sora 1.0: PixArt's blocks with an attention over time in each.

A video becomes tokens, ``T`` frames of ``S`` patches. Every block lets them attend within a frame,
then along time at one place, then to the caption, and ends with a feed-forward. The timestep
modulates the first and the last of these through one table per block (adaLN-single); attention over
time and to the caption read the tokens as they are. Positions are sines and cosines: those in the
frame are added to the tokens once, those in time to what the first temporal attention reads.

Queries, keys and values are one linear layer, as the published checkpoints have them. The network
is made for one size of video. Sequence parallelism and the dropping of captions in training, which
Open-Sora has inside the network, are left to whoever calls it: the caption to drop to is
``null_caption``.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import PixArtAlphaTextProjection
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import AdaLayerNormSingle
from torch import Tensor, nn

__all__ = [
    "CrossAttention",
    "STDiTBlock",
    "STDiTTransformer3DModel",
    "SelfAttention",
    "along_time",
    "in_frames",
    "modulated",
    "patches",
    "position_angles",
    "sincos",
    "sincos_2d",
    "split",
    "video",
]


class STDiTTransformer3DModel(ModelMixin, ConfigMixin):
    """Predicts the noise of a video and how its variance lies between its bounds.

    Args:
        num_attention_heads, attention_head_dim: H and D; the width is their product.
        num_layers: blocks.
        in_channels, out_channels: of the latent video; twice as many out, noise then variance.
        patch_size: height and width of a patch; in time it is one frame.
        sample_size: height and width of the latent video.
        video_length: frames.
        caption_channels: width of the text encoder.
        caption_length: tokens of a caption, padding included.
        spatial_interpolation_scale, temporal_interpolation_scale: positions are divided by them;
            Open-Sora has 0.5 at 256 pixels, 1 at 512, and in time 1 for 16 frames, ⅔ for 64.
        mlp_ratio: width of the feed-forwards over that of the tokens; 4 in Open-Sora.
    """

    _no_split_modules = ("STDiTBlock",)
    _repeated_blocks = ("STDiTBlock",)

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        num_layers: int = 28,
        in_channels: int = 4,
        out_channels: int = 8,
        patch_size: int = 2,
        sample_size: int = 64,
        video_length: int = 16,
        caption_channels: int = 4096,
        caption_length: int = 120,
        spatial_interpolation_scale: float = 1.0,
        temporal_interpolation_scale: float = 1.0,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.video_shape = (in_channels, video_length, sample_size, sample_size)
        width = num_attention_heads * attention_head_dim
        patch = (1, patch_size, patch_size)
        self.patch_embedding = nn.Conv3d(in_channels, width, kernel_size=patch, stride=patch)
        self.adaln_single = AdaLayerNormSingle(width)
        self.caption_projection = PixArtAlphaTextProjection(caption_channels, width)
        self.null_caption = nn.Parameter(
            torch.randn(caption_length, caption_channels) / caption_channels**0.5
        )
        self.transformer_blocks = nn.ModuleList(
            STDiTBlock(width, num_attention_heads, mlp_ratio) for _ in range(num_layers)
        )
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.proj_out = nn.Linear(width, patch_size**2 * out_channels)

        side = torch.arange(sample_size // patch_size) / spatial_interpolation_scale
        place = sincos_2d(side, side, width)
        time = sincos(torch.arange(video_length) / temporal_interpolation_scale, width)
        self.register_buffer("spatial_position", place, persistent=False)
        self.register_buffer("temporal_position", time, persistent=False)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """One denoising step.

        Args:
            hidden_states: (B, in_channels, T, height, width), latent video.
            timestep: (B,), of the diffusion process, 0 … 999.
            encoder_hidden_states: (B, L, caption_channels), the text encoder's output.
            encoder_attention_mask: (B, L), which of its tokens are no padding; ``None``: all.
            return_dict: give an object with the attribute ``sample`` instead of a tuple.

        Returns:
            (B, out_channels, T, height, width).
        """
        if hidden_states.shape[1:] != self.video_shape:
            raise ValueError(
                f"hidden_states has shape {tuple(hidden_states.shape)}; this network is made for "
                f"(batch, {', '.join(map(str, self.video_shape))})."
            )
        tokens = patches(self.patch_embedding(hidden_states))
        dtype = tokens.dtype
        tokens = tokens + self.spatial_position.to(dtype)
        modulation, embedded_timestep = self.adaln_single(timestep, hidden_dtype=dtype)
        modulation = modulation.unflatten(1, (6, -1))[:, None]
        caption = self.caption_projection(encoder_hidden_states)
        mask = None if encoder_attention_mask is None else encoder_attention_mask.bool()

        position = self.temporal_position.to(dtype)
        for number, block in enumerate(self.transformer_blocks):
            first = position if number == 0 else None
            tokens = block(tokens, modulation, caption, mask, first)

        shift, scale = split(self.scale_shift_table + embedded_timestep[:, None, None])
        tokens = self.proj_out(modulated(self.norm_out(tokens), shift, scale))
        sample = video(tokens, hidden_states.shape[3] // self.patch_size, self.patch_size)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


class STDiTBlock(nn.Module):
    """Attention in the frame (``attn1``), over time, to the caption (``attn2``); feed-forward."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn1 = SelfAttention(width, heads)
        self.temporal_attn = SelfAttention(width, heads)
        self.attn2 = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        inner = round(width * mlp_ratio)
        self.ff = FeedForward(width, activation_fn="gelu-approximate", inner_dim=inner)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(
        self,
        hidden_states: Tensor,
        modulation: Tensor,
        encoder_hidden_states: Tensor,
        mask: Tensor | None,
        temporal_position: Tensor | None = None,
    ) -> Tensor:
        """(B, T, S, C) in and out.

        Args:
            hidden_states: tokens.
            modulation: (B, 1, 6, C), what the timestep adds to the block's table.
            encoder_hidden_states: (B, L, C), caption.
            mask: (B, L) bool, tokens of the caption to attend to.
            temporal_position: (T, C), added to what the temporal attention reads.
        """
        x = hidden_states
        table = self.scale_shift_table + modulation
        shift, scale, gate, ff_shift, ff_scale, ff_gate = split(table)

        x = x + gate * in_frames(self.attn1, modulated(self.norm1(x), shift, scale))
        y = x if temporal_position is None else x + temporal_position[:, None]
        x = x + gate * along_time(self.temporal_attn, y)
        x = x + self.attn2(x.flatten(1, 2), encoder_hidden_states, mask).reshape(x.shape)
        return x + ff_gate * self.ff(modulated(self.norm2(x), ff_shift, ff_scale))


class SelfAttention(nn.Module):
    """Multi-head attention among the tokens of a sequence, with one layer for Q, K and V.

    Args:
        width, heads: C, H.
        qk_norm: give queries and keys of a head unit mean square, times a learned vector.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width)
        self.norm_q = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.norm_k = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.to_out = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor, angles: Tensor | None = None) -> Tensor:
        """(B, S, C) in and out; ``angles`` (S, D/2) turn queries and keys by their position."""
        return self.to_out(self.attended(self.to_qkv(hidden_states), angles))

    def attended(self, qkv: Tensor, angles: Tensor | None = None) -> Tensor:
        """What the last layer reads, (B, S, C), for what the first makes, (B, S, 3C)."""
        heads = qkv.unflatten(2, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (B, H, S, D) each
        query, key = self.norm_q(query), self.norm_k(key)
        if angles is not None:
            query, key = rotated(query, angles), rotated(key, angles)
        attended = F.scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Multi-head attention to the tokens of a caption, with one layer for K and V."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.to_out = nn.Linear(width, width)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """(B, S, C) tokens, (B, L, C) caption and (B, L) bool mask to (B, S, C)."""
        query, kv = self.to_q(hidden_states), self.to_kv(encoder_hidden_states)
        return self.to_out(self.attended(query, kv, mask))

    def attended(self, query: Tensor, kv: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the last layer reads, (B, S, C), for queries (B, S, C) and keys and values
        (B, L, 2C)."""
        query = query.unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = kv.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if mask is None else mask[:, None, None]
        )
        return attended.transpose(1, 2).flatten(2)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x`` (B, T, S, C) scaled and shifted by channel, (B, 1 or T, 1, C) each."""
    return x * (1 + scale) + shift


def split(table: Tensor) -> tuple[Tensor, ...]:
    """The rows of a modulation table (B, 1 or T, rows, C), (B, 1 or T, 1, C) each."""
    return table.split(1, dim=2)


def in_frames(attention: nn.Module, x: Tensor) -> Tensor:
    """``attention`` among the tokens of each frame of ``x`` (B, T, S, C)."""
    return attention(x.flatten(0, 1)).reshape(x.shape)


def along_time(attention: nn.Module, x: Tensor, *angles: Tensor) -> Tensor:
    """``attention`` among the tokens at each place of ``x`` (B, T, S, C)."""
    y = x.transpose(1, 2)
    return attention(y.flatten(0, 1), *angles).reshape(y.shape).transpose(1, 2)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """``x`` (B, H, S, D): the pair of its features 2i and 2i + 1 turned by ``angles`` (S, D/2)."""
    a, b = x.unflatten(3, (-1, 2)).unbind(4)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=4).flatten(3)


def sincos(positions: Tensor, width: int) -> Tensor:
    """(N,) positions to (N, width) fp32: sines, then cosines, of falling frequencies."""
    angles = position_angles(positions, width)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sincos_2d(down: Tensor, right: Tensor, width: int) -> Tensor:
    """Positions of rows and of columns to (rows·columns, width): half of it for the column."""
    row, column = torch.meshgrid(down, right, indexing="ij")
    tables = sincos(column.flatten(), width // 2), sincos(row.flatten(), width // 2)
    return torch.cat(tables, dim=1)


def position_angles(positions: Tensor, width: int) -> Tensor:
    """(N,) positions times frequencies that fall from 1 to nearly 1/10,000: (N, width / 2) fp64."""
    exponents = torch.arange(width // 2, dtype=torch.float64, device=positions.device) * 2 / width
    return positions.double()[:, None] * 10_000**-exponents


def patches(embedded: Tensor) -> Tensor:
    """Embedded patches (B, C, T, rows, columns) as tokens (B, T, S, C)."""
    return embedded.flatten(3).permute(0, 2, 3, 1)


def video(tokens: Tensor, rows: int, patch: int) -> Tensor:
    """Tokens (B, T, S, patch²·C), channels last in each, as a video (B, C, T, height, width)."""
    grid = tokens.unflatten(3, (patch, patch, -1)).unflatten(2, (rows, -1))
    # (B, T, rows, columns, patch, patch, C) to (B, C, T, rows, patch, columns, patch)
    return grid.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
