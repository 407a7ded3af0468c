"""The four levels at which the inputs of a linear layer vary: token, condition, timestep, channel.

ViDiT-Q (arXiv 2406.02540, section 3) names them as what makes diffusion transformers hard to
quantize. What matters to a quantizer is the largest magnitude that one scale has to hold, so each
level is measured as how much that magnitude changes along it, 1 meaning not at all:

    token      largest over median magnitude of the tokens of one call    → one scale per token
    condition  larger over smaller magnitude of the two guidance branches → scales while it runs
    timestep   largest over smallest magnitude of the denoising steps     → scales while it runs
    channel    largest over median magnitude of the channels              → balancing beforehand

Channels are summed together in a matrix product and must share a scale, so their imbalance cannot
be followed at run time. ``channel_stability`` says how far it is the same at all steps, and thus a
matter of a fixed scaling; what is not is left to the rotation.
"""

from dataclasses import dataclass, field

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LayerVariation", "Profile", "VariationHook"]


class LayerVariation(BaseModel):
    """How the input of one layer varies; ratios, 1 or more.

    Attributes:
        role: Role of the layer.
        block: Qualified name of its block.
        token, condition, timestep, channel: See the module; ``condition`` is None without guidance,
            and where one branch has no tokens or is zero.
        channel_stability: Mean cosine similarity of the channels' magnitudes at each step with
            their mean over the steps, 0..1; 1 = the imbalance is the same at every step.
        incoherence: Largest over mean magnitude of all values of one call, the worst call.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    block: str
    token: float
    condition: float | None
    timestep: float
    channel: float
    channel_stability: float
    incoherence: float


@dataclass(frozen=True)
class Profile:
    """What the plots of one layer show; magnitudes are largest absolute values.

    Attributes:
        steps: (T,) denoising steps.
        conditions: (T, 2) without and with the prompt, or (T, 1) without guidance.
        channels: (T, K).
        tokens: (M,) of one call in the middle of the trajectory, largest first.
    """

    steps: Tensor
    conditions: Tensor
    channels: Tensor
    tokens: Tensor


@dataclass
class VariationHook:
    """A forward pre-hook that watches one layer over the calls of several trajectories.

    Attributes:
        steps: Number of denoising steps that are recorded.
        guided: Whether the first half of a batch is without and the second half with the prompt.
        position: Index of the step of the next call; set it before each.
        valid: (B, S) which tokens of the next call's input are no padding; None is all.
    """

    steps: int
    guided: bool
    position: int = 0
    valid: Tensor | None = None
    _token_ratios: list[float] = field(default_factory=list)
    _condition: Tensor | None = None
    _channel: Tensor | None = None
    _tokens: Tensor | None = None
    _incoherence: float = 0.0

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:  # noqa: ARG002  # noqa: ARG002
        x = arguments[0].detach().float().abs()
        branches = [branch.flatten(0, -2) for branch in x.chunk(2 if self.guided else 1)]
        if self.valid is not None and self.valid.shape == x.shape[:-1]:
            masks = self.valid.bool().chunk(len(branches))
            branches = [one[mask.flatten()] for one, mask in zip(branches, masks, strict=True)]
        if self._condition is None or self._channel is None:
            self._condition = torch.zeros(self.steps, len(branches))
            self._channel = torch.zeros(self.steps, x.shape[-1])
        tokens = [branch.amax(dim=1) for branch in branches]
        self._token_ratios += [_largest_over_median(values) for values in tokens if len(values)]
        # an empty prompt may have no token at all
        largest = torch.stack(
            [torch.cat((values, values.new_zeros(1))).amax() for values in tokens]
        )
        self._raise(self._condition, largest.cpu())
        joined = torch.cat(branches)
        self._raise(self._channel, joined.amax(dim=0).cpu())
        spread = float(joined.max() / joined.mean().clamp_min(1e-12))
        self._incoherence = max(self._incoherence, spread)
        if self._tokens is None and self.position == self.steps // 2:
            self._tokens = tokens[-1].sort(descending=True).values.cpu()

    def _raise(self, largest: Tensor, values: Tensor) -> None:
        """Let row ``position`` of ``largest`` know ``values``."""
        largest[self.position] = torch.maximum(largest[self.position], values)

    def variation(self, role: str, block: str) -> LayerVariation:
        """The numbers, after the calls."""
        assert self._condition is not None
        assert self._channel is not None
        by_step = self._condition.amax(dim=1).clamp_min(1e-12)
        pairs = self._condition[self._condition.amin(dim=1) > 0]
        mean = self._channel.mean(dim=0, keepdim=True)
        return LayerVariation(
            role=role,
            block=block,
            token=sum(self._token_ratios) / len(self._token_ratios),
            condition=float((pairs.amax(1) / pairs.amin(1)).mean())
            if self.guided and len(pairs)
            else None,
            timestep=float(by_step.max() / by_step.min()),
            channel=sum(map(_largest_over_median, self._channel)) / self.steps,
            channel_stability=float(functional.cosine_similarity(self._channel, mean).mean()),
            incoherence=self._incoherence,
        )

    def profile(self, steps: Tensor) -> Profile:
        """What the plots show, after the calls; ``steps`` (T,) are the recorded step indices."""
        assert self._condition is not None
        assert self._channel is not None
        assert self._tokens is not None
        return Profile(steps, self._condition, self._channel, self._tokens)


def _largest_over_median(values: Tensor) -> float:
    return float(values.max() / values.median().clamp_min(1e-12))
