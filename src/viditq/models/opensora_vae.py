"""The decoder in time of Open-Sora 1.2: latents of a video to latents of its frames.

Open-Sora 1.2 compresses a video twice: an image autoencoder every frame, then a causal one in time,
four frames into one. This is the way back of the second; the first is diffusers' own. Frames are
coded in chunks of 17, and each chunk by itself; a convolution sees no later frame. A chunk whose
length four does not divide was filled up in front, and what was filled is cut off again.

Encoding, which sampling does not need, is declined.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

__all__ = ["OpenSoraTemporalDecoder"]


class OpenSoraTemporalDecoder(ModelMixin, ConfigMixin):
    """Args:
    latent_channels: of the latents on both sides.
    block_out_channels: widths, the one next to the output first.
    temporal_upsample: between which of them the frames double.
    layers_per_block: residual blocks of each width.
    norm_num_groups: of the group norms.
    latents_mean, latents_std: by channel, of the latents that the transformer sees as normal.
    chunk_frames: frames that are coded together.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 512),
        temporal_upsample: tuple[bool, ...] = (False, True, True),
        layers_per_block: int = 4,
        norm_num_groups: int = 32,
        latents_mean: tuple[float, ...] = (-0.10, 0.34, 0.27, 0.98),
        latents_std: tuple[float, ...] = (3.85, 2.32, 2.33, 3.06),
        chunk_frames: int = 17,
    ) -> None:
        super().__init__()
        self.chunk_frames = chunk_frames
        self.factor = 2 ** sum(temporal_upsample)
        self.mean, self.std = tuple(latents_mean), tuple(latents_std)
        widest = block_out_channels[-1]
        self.post_quant_conv = CausalConv3d(latent_channels, latent_channels, 1)
        self.conv_in = CausalConv3d(latent_channels, widest, 3)
        self.mid = nn.Sequential(
            *(ResBlock(widest, widest, norm_num_groups) for _ in range(layers_per_block))
        )
        before = (*block_out_channels[1:], widest)
        doubles = (False, *temporal_upsample)
        self.up_blocks = nn.ModuleList(
            UpBlock(wide, narrow, layers_per_block, norm_num_groups, double)
            for wide, narrow, double in reversed(
                list(zip(before, block_out_channels, doubles, strict=True))
            )
        )
        self.norm_out = nn.GroupNorm(norm_num_groups, block_out_channels[0])
        self.conv_out = CausalConv3d(block_out_channels[0], latent_channels, 3)

    def latent_frames(self, frames: int) -> int:
        """How many latent frames a video of ``frames`` has."""
        chunks, rest = divmod(frames, self.chunk_frames)
        return chunks * -(-self.chunk_frames // self.factor) + -(-rest // self.factor)

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """Normalized latents (B, C, latent_frames(frames), h, w) to (B, C, frames, h, w)."""
        mean, std = (
            torch.tensor(values, dtype=latents.dtype, device=latents.device).view(1, -1, 1, 1, 1)
            for values in (self.mean, self.std)
        )
        chunks = (latents * std + mean).split(self.latent_frames(self.chunk_frames), dim=2)
        lengths = [
            min(self.chunk_frames, frames - i * self.chunk_frames) for i in range(len(chunks))
        ]
        decoded = [
            self(chunk)[:, :, -length % self.factor :]
            for chunk, length in zip(chunks, lengths, strict=True)
        ]
        return torch.cat(decoded, dim=2)

    def forward(self, latents: Tensor) -> Tensor:
        """One chunk: (B, C, T, h, w) to (B, C, factor·T, h, w)."""
        x = self.mid(self.conv_in(self.post_quant_conv(latents)))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class UpBlock(nn.Module):
    """Residual blocks, then twice as many frames if ``double``."""

    def __init__(self, wide: int, narrow: int, layers: int, groups: int, double: bool) -> None:
        super().__init__()
        widths = (wide, *[narrow] * layers)
        self.resnets = nn.Sequential(*(ResBlock(a, b, groups) for a, b in pairwise(widths)))
        self.upsample = CausalConv3d(narrow, 2 * narrow, 3) if double else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, wide, T, h, w) to (B, narrow, T or 2·T, h, w)."""
        x = self.resnets(x)
        if self.upsample is None:
            return x
        pairs = self.upsample(x).unflatten(1, (-1, 2))  # (B, C, 2, T, h, w)
        return pairs.transpose(2, 3).flatten(2, 3)


class ResBlock(nn.Module):
    """Two causal convolutions and a way past them."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in)
        self.conv1 = CausalConv3d(channels_in, channels_out, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels_out)
        self.conv2 = CausalConv3d(channels_out, channels_out, 3, bias=False)
        self.shortcut = (
            CausalConv3d(channels_in, channels_out, 1, bias=False)
            if channels_in != channels_out
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, T, h, w) to (B, channels_out, T, h, w)."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.shortcut(x) + y


class CausalConv3d(nn.Conv3d):
    """A convolution whose kernel ends in time where its output is; what is outside is zero."""

    def __init__(self, channels_in: int, channels_out: int, size: int, bias: bool = True) -> None:
        padding = (0, size // 2, size // 2)
        super().__init__(channels_in, channels_out, size, padding=padding, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 0, 0, 0, self.kernel_size[0] - 1, 0)))
