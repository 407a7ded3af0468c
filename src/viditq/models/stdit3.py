"""STDiT3, the network of Open-Sora 1.2: spatial and temporal blocks in turn, for any size of video.

A temporal block is a spatial one whose attention runs along time, with queries and keys turned by
the frame's number (rotary positions); both attend to the caption and have a feed-forward. Queries
and keys are normalized. Frame rate and size are conditions: the rate is added to the timestep's
embedding, and positions in the frame are scaled by the size in pixels. The network predicts the
velocity of a rectified flow, from noise to video.

A timestep for each frame lets some frames be given, at timestep 0, and the others be made to fit
them. What :mod:`viditq.models.stdit` leaves to the caller is left to them here, too.
"""

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from viditq.models.stdit import (
    CrossAttention,
    SelfAttention,
    along_time,
    in_frames,
    modulated,
    patches,
    position_angles,
    sincos_2d,
    split,
    video,
)

__all__ = ["STDiT3Block", "STDiT3Transformer3DModel"]

FREQUENCIES = 256


class STDiT3Transformer3DModel(ModelMixin, ConfigMixin):
    """Predicts the velocity of a video, and as many channels that its loss left free.

    Args:
        num_attention_heads, attention_head_dim: H and D; the width is their product.
        num_layers: blocks of each kind.
        in_channels, out_channels: of the latent video; twice as many out, velocity first.
        patch_size: height and width of a patch; in time it is one frame.
        base_size: in pixels, of videos whose positions are not scaled.
        caption_channels: width of the text encoder.
        caption_length: tokens of a caption, padding included.
    """

    _no_split_modules = ("STDiT3Block",)
    _repeated_blocks = ("STDiT3Block",)

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        num_layers: int = 28,
        in_channels: int = 4,
        out_channels: int = 8,
        patch_size: int = 2,
        base_size: int = 512,
        caption_channels: int = 4096,
        caption_length: int = 300,
    ) -> None:
        super().__init__()
        self.patch_size, self.base_size = patch_size, base_size
        self.head_dim, self.width = attention_head_dim, num_attention_heads * attention_head_dim
        patch = (1, patch_size, patch_size)
        self.patch_embedding = nn.Conv3d(in_channels, self.width, kernel_size=patch, stride=patch)
        self.frequencies = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(FREQUENCIES, self.width)
        self.fps_embedding = TimestepEmbedding(FREQUENCIES, self.width)
        self.time_modulation = nn.Linear(self.width, 6 * self.width)
        self.caption_projection = PixArtAlphaTextProjection(caption_channels, self.width)
        self.null_caption = nn.Parameter(
            torch.randn(caption_length, caption_channels) / caption_channels**0.5
        )
        self.transformer_blocks, self.temporal_transformer_blocks = (
            nn.ModuleList(STDiT3Block(self.width, num_attention_heads) for _ in range(num_layers))
            for _ in range(2)
        )
        self.scale_shift_table = nn.Parameter(torch.randn(2, self.width) / self.width**0.5)
        self.norm_out = nn.LayerNorm(self.width, eps=1e-6, elementwise_affine=False)
        self.proj_out = nn.Linear(self.width, patch_size**2 * out_channels)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        *,
        fps: Tensor,
        height: int,
        width: int,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """One denoising step.

        Args:
            hidden_states: (B, in_channels, T, h, w), latent video.
            timestep: (B,) or (B, T), 1000 for noise down to 0 for a video.
            encoder_hidden_states: (B, L, caption_channels), the text encoder's output.
            encoder_attention_mask: (B, L), which of its tokens are no padding; ``None``: all.
            fps: (B,), frames per second.
            height, width: of the video, in pixels.
            return_dict: give an object with the attribute ``sample`` instead of a tuple.

        Returns:
            (B, out_channels, T, h, w).
        """
        *_, frames, latent_height, latent_width = hidden_states.shape
        missing_right, missing_below = (
            -latent_width % self.patch_size,
            -latent_height % self.patch_size,
        )
        padded = F.pad(hidden_states, (0, missing_right, 0, missing_below))
        embedded = self.patch_embedding(padded)
        rows, columns = embedded.shape[3:]
        position = self._positions(rows, columns, (height * width) ** 0.5, embedded.device)
        tokens = patches(embedded) + position.to(embedded.dtype)

        dtype = tokens.dtype
        time = self.time_embedding(self.frequencies(timestep.flatten()).to(dtype))
        rate = self.fps_embedding(self.frequencies(fps).to(dtype))
        time = time.unflatten(0, (len(fps), -1)) + rate[:, None]  # (B, 1 or T, C)
        modulation = self.time_modulation(F.silu(time)).unflatten(2, (6, -1))
        caption = self.caption_projection(encoder_hidden_states)
        mask = None if encoder_attention_mask is None else encoder_attention_mask.bool()
        angles = position_angles(torch.arange(frames, device=tokens.device), self.head_dim).float()

        pairs = zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True)
        for spatial, temporal in pairs:
            tokens = spatial(tokens, modulation, caption, mask)
            tokens = temporal(tokens, modulation, caption, mask, angles)

        shift, scale = split(self.scale_shift_table + time[:, :, None])
        tokens = self.proj_out(modulated(self.norm_out(tokens), shift, scale))
        sample = video(tokens, rows, self.patch_size)[..., :latent_height, :latent_width]
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _positions(self, rows: int, columns: int, size: float, device: torch.device) -> Tensor:
        """(rows·columns, C); ``size`` is the side of a square with as many pixels as a frame."""
        side = round(math.sqrt(rows * columns)) * self.base_size / size
        down, right = (torch.arange(n, device=device) * (side / n) for n in (rows, columns))
        return sincos_2d(down, right, self.width)


class STDiT3Block(nn.Module):
    """Attention in the frame, or along time if there are ``angles``; to the caption; MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn1 = SelfAttention(width, heads, qk_norm=True)
        self.attn2 = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.ff = FeedForward(width, activation_fn="gelu-approximate")
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(
        self,
        hidden_states: Tensor,
        modulation: Tensor,
        encoder_hidden_states: Tensor,
        mask: Tensor | None,
        angles: Tensor | None = None,
    ) -> Tensor:
        """(B, T, S, C) in and out.

        Args:
            hidden_states: tokens.
            modulation: (B, 1 or T, 6, C), what the timestep adds to the block's table.
            encoder_hidden_states: (B, L, C), caption.
            mask: (B, L) bool, tokens of the caption to attend to.
            angles: (T, D/2), of the frames.
        """
        x = hidden_states
        table = self.scale_shift_table + modulation
        shift, scale, gate, ff_shift, ff_scale, ff_gate = split(table)

        y = modulated(self.norm1(x), shift, scale)
        spatial = angles is None
        x = x + gate * (in_frames(self.attn1, y) if spatial else along_time(self.attn1, y, angles))
        x = x + self.attn2(x.flatten(1, 2), encoder_hidden_states, mask).reshape(x.shape)
        return x + ff_gate * self.ff(modulated(self.norm2(x), ff_shift, ff_scale))
