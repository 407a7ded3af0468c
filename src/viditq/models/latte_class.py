"""Latte as its authors first published it: video of a class, or of the one kind it was trained on.

A video becomes tokens, ``T`` frames of ``S`` patches. Blocks come in pairs: in the first of each,
tokens attend within a frame, in the second along time at one place; both end with a feed-forward.
The sum of the timestep's and the class's embedding gives every block, by a linear layer of its own,
shift, scale and gate of its attention and of its feed-forward (adaLN-Zero). Positions are sines and
cosines: those in the frame are added to the tokens once, those in time before the first temporal
block. Both tables are part of the checkpoints, and of the weights here.

Queries, keys and values are one linear layer, as the checkpoints have them. The network is made for
one size of video. One class more than there are stands for none: guidance is against it, and the
dropping of classes in training is left to whoever calls the network. Captions, to which the authors
led one variant of this network, are declined; diffusers has the Latte that they went on with.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from viditq.models.stdit import (
    SelfAttention,
    along_time,
    in_frames,
    modulated,
    sincos,
    sincos_2d,
    split,
    video,
)

__all__ = ["LatteClassBlock", "LatteClassTransformer3DModel", "rows"]

FREQUENCIES = 256


class LatteClassTransformer3DModel(ModelMixin, ConfigMixin):
    """Predicts the noise of a video and how its variance lies between its bounds.

    Args:
        num_attention_heads, attention_head_dim: H and D; the width is their product.
        num_layers: blocks of each kind.
        in_channels, out_channels: of the latent video; twice as many out, noise then variance.
        patch_size: height and width of a patch; in time it is one frame.
        sample_size: height and width of the latent video.
        video_length: frames.
        num_classes: that it was trained on; 0: it knows none.
    """

    _no_split_modules = ("LatteClassBlock",)
    _repeated_blocks = ("LatteClassBlock",)

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        num_layers: int = 14,
        in_channels: int = 4,
        out_channels: int = 8,
        patch_size: int = 2,
        sample_size: int = 32,
        video_length: int = 16,
        num_classes: int = 101,
    ) -> None:
        super().__init__()
        self.patch_size, self.num_classes = patch_size, num_classes
        self.video_shape = (in_channels, video_length, sample_size, sample_size)
        width = num_attention_heads * attention_head_dim
        self.patch_embedding = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.frequencies = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(FREQUENCIES, width)
        self.class_embedding = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.transformer_blocks, self.temporal_transformer_blocks = (
            nn.ModuleList(
                LatteClassBlock(width, num_attention_heads, over_time=over_time)
                for _ in range(num_layers)
            )
            for over_time in (False, True)
        )
        self.modulation = nn.Linear(width, 2 * width)
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.proj_out = nn.Linear(width, patch_size**2 * out_channels)

        side = torch.arange(sample_size // patch_size)
        self.register_buffer("spatial_position", sincos_2d(side, side, width)[None])
        self.register_buffer("temporal_position", sincos(torch.arange(video_length), width)[None])

    @property
    def null_class(self) -> int:
        """What stands for no class."""
        return self.num_classes

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """One denoising step.

        Args:
            hidden_states: (B, in_channels, T, height, width), latent video.
            timestep: (B,), of the diffusion process, 0 … 999.
            class_labels: (B,) int64, 0 … ``null_class``; ``None`` if the network knows no classes.
            return_dict: give an object with the attribute ``sample`` instead of a tuple.

        Returns:
            (B, out_channels, T, height, width).
        """
        if hidden_states.shape[1:] != self.video_shape:
            raise ValueError(
                f"hidden_states has shape {tuple(hidden_states.shape)}; this network is made for "
                f"(batch, {', '.join(map(str, self.video_shape))})."
            )
        tokens = self._tokens(hidden_states)
        condition = F.silu(self._condition(timestep, class_labels, tokens.dtype))

        position = self.temporal_position.to(tokens.dtype)[:, :, None]
        pairs = zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True)
        for number, (spatial, temporal) in enumerate(pairs):
            tokens = spatial(tokens, condition)
            tokens = temporal(tokens + position if number == 0 else tokens, condition)

        shift, scale = rows(self.modulation(condition), 2)
        tokens = self.proj_out(modulated(self.norm_out(tokens), shift, scale))
        sample = video(tokens, hidden_states.shape[3] // self.patch_size, self.patch_size)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _tokens(self, hidden_states: Tensor) -> Tensor:
        """(B, in_channels, T, height, width) to (B, T, S, C), positions in the frame added."""
        frames = hidden_states.transpose(1, 2)
        embedded = self.patch_embedding(frames.flatten(0, 1)).flatten(2).transpose(1, 2)
        tokens = embedded.unflatten(0, frames.shape[:2])
        return tokens + self.spatial_position.to(tokens.dtype)

    def _condition(self, timestep: Tensor, labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(B, C), embeddings of timestep and class."""
        time = self.time_embedding(self.frequencies(timestep).to(dtype))
        if (self.class_embedding is None) != (labels is None):
            raise ValueError(
                f"This network knows {self.num_classes} classes, and class_labels is "
                f"{'missing' if labels is None else 'given'}."
            )
        return time if self.class_embedding is None else time + self.class_embedding(labels)


class LatteClassBlock(nn.Module):
    """Attention in the frame, or along time if it is made so; a feed-forward; their modulation."""

    def __init__(self, width: int, heads: int, *, over_time: bool) -> None:
        super().__init__()
        self.over_time = over_time
        self.modulation = nn.Linear(width, 6 * width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn1 = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.ff = FeedForward(width, activation_fn="gelu-approximate")

    def forward(self, hidden_states: Tensor, condition: Tensor) -> Tensor:
        """(B, T, S, C) in and out.

        Args:
            hidden_states: tokens.
            condition: (B, C), what the modulation is computed from.
        """
        x = hidden_states
        shift, scale, gate, ff_shift, ff_scale, ff_gate = rows(self.modulation(condition), 6)
        attend = along_time if self.over_time else in_frames
        x = x + gate * attend(self.attn1, modulated(self.norm1(x), shift, scale))
        return x + ff_gate * self.ff(modulated(self.norm2(x), ff_shift, ff_scale))


def rows(modulation: Tensor, num: int) -> tuple[Tensor, ...]:
    """(B, num · C) as ``num`` tensors (B, 1, 1, C)."""
    return split(modulation.unflatten(1, (num, -1))[:, None])
