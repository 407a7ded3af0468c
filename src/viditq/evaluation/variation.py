"""The four levels at which the inputs of a linear layer vary: token, condition, timestep, channel.

ViDiT-Q (arXiv 2406.02540, section 3) names them as what makes diffusion transformers hard to
quantize. What matters to a quantizer is the largest magnitude that one scale has to hold, so each
level is measured as how much that magnitude changes along it, 1 meaning not at all:

    token      largest over median magnitude of the tokens of one call    → one scale per token
    condition  larger over smaller magnitude of the two guidance branches → scales while it runs
    timestep   largest over smallest magnitude of the denoising steps     → scales while it runs
    channel    largest over median magnitude of the channels              → balancing beforehand

Channels are summed together in a matrix product and must share a scale, so their imbalance cannot
be followed at run time. ``static_share`` says how far it is the same at all steps, and thus a
matter of a fixed scaling (:mod:`viditq.evaluation.pattern`); what balancing does about it is
measured beside it (:mod:`viditq.evaluation.incoherence`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from viditq.evaluation.incoherence import Incoherence, branches
from viditq.evaluation.pattern import ChannelPattern, channel_pattern

__all__ = ["LayerVariation", "Profile", "Variation", "VariationHook"]


class Variation(BaseModel):
    """How a layer input varies: of one layer, or the median over several.

    Attributes:
        token, condition, timestep, channel: See the module; ``condition`` is None without guidance,
            and where one branch has no tokens or is zero. Ratios, 1 or more.
        static_share: Share of the channel pattern that is the same at every step, 0..1.
        incoherence: Of the input and of the weights that read it, before and after balancing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: float
    condition: float | None
    timestep: float
    channel: float
    static_share: float
    incoherence: Incoherence

    @classmethod
    def median(cls, several: Sequence["Variation"]) -> "Variation":
        """The median of each number; ``condition`` over those that have it."""
        return Variation(
            token=median(one.token for one in several),
            condition=median(given)
            if (given := [one.condition for one in several if one.condition is not None])
            else None,
            timestep=median(one.timestep for one in several),
            channel=median(one.channel for one in several),
            static_share=median(one.static_share for one in several),
            incoherence=Incoherence.median([one.incoherence for one in several]),
        )


class LayerVariation(Variation):
    """How the input of one layer varies.

    Attributes:
        role: Role of the layer.
        block: Qualified name of its block.
    """

    role: str
    block: str


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

    @property
    def pattern(self) -> ChannelPattern:
        """The channels' static and dynamic parts."""
        return channel_pattern(self.channels)


@dataclass
class VariationHook:
    """A forward pre-hook that watches one layer over the calls of several trajectories.

    Attributes:
        steps: Number of denoising steps that are recorded.
        guided: As in :func:`~viditq.evaluation.incoherence.branches`.
        position: Index of the step of the next call; set it before each.
        valid: (B, L) which tokens of the next call's captions are no padding; None is all.
    """

    steps: int
    guided: bool
    position: int = 0
    valid: Tensor | None = None
    _token_ratios: list[float] = field(default_factory=list)
    _condition: Tensor | None = None
    _channel: Tensor | None = None
    _tokens: Tensor | None = None

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:  # noqa: ARG002
        parts = [part.abs() for part in branches(arguments[0], self.guided, self.valid)]
        if self._condition is None or self._channel is None:
            self._condition = torch.zeros(self.steps, len(parts))
            self._channel = torch.zeros(self.steps, parts[0].shape[-1])
        tokens = [part.amax(dim=1) for part in parts]
        self._token_ratios += [_largest_over_median(values) for values in tokens if len(values)]
        # an empty prompt may have no token at all
        largest = torch.stack(
            [torch.cat((values, values.new_zeros(1))).amax() for values in tokens]
        )
        self._raise(self._condition, largest.cpu())
        self._raise(self._channel, torch.cat(parts).amax(dim=0).cpu())
        if self._tokens is None and self.position == self.steps // 2:
            self._tokens = tokens[-1].sort(descending=True).values.cpu()

    def _raise(self, largest: Tensor, values: Tensor) -> None:
        """Let row ``position`` of ``largest`` know ``values``."""
        largest[self.position] = torch.maximum(largest[self.position], values)

    @property
    def step_amax(self) -> Tensor:
        """(T, K) largest magnitude of each channel at each step, after the calls."""
        assert self._channel is not None
        return self._channel

    def variation(self, role: str, block: str, incoherence: Incoherence) -> LayerVariation:
        """The numbers, after the calls, with those of the second pass."""
        assert self._condition is not None
        assert self._channel is not None
        by_step = self._condition.amax(dim=1).clamp_min(1e-12)
        pairs = self._condition[self._condition.amin(dim=1) > 0]
        return LayerVariation(
            role=role,
            block=block,
            token=sum(self._token_ratios) / len(self._token_ratios),
            condition=float((pairs.amax(1) / pairs.amin(1)).mean())
            if self.guided and len(pairs)
            else None,
            timestep=float(by_step.max() / by_step.min()),
            channel=sum(map(_largest_over_median, self._channel)) / self.steps,
            static_share=channel_pattern(self._channel).static_share,
            incoherence=incoherence,
        )

    def profile(self, steps: Tensor) -> Profile:
        """What the plots show, after the calls; ``steps`` (T,) are the recorded step indices."""
        assert self._condition is not None
        assert self._channel is not None
        assert self._tokens is not None
        return Profile(steps, self._condition, self._channel, self._tokens)


def _largest_over_median(values: Tensor) -> float:
    return float(values.max() / values.median().clamp_min(1e-12))
