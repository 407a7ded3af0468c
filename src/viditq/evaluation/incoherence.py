"""How hard a layer input and its weights are to quantize, before and after balancing.

Incoherence is max|x| / mean|x| of what shares a scale (ViDiT-Q, arXiv 2406.02540, section 3.3):
1 is the best, and a Gaussian token of 256 to 1024 channels has 3.8 to 4.3. It is measured on
the recorded calls for the input as it is, after scaling alone, after rotation alone, and after
both, and on the weights that read it, because what scaling takes from the one it gives to the
other. The scaling is ViDiT-Q's: it needs the static profile, so these calls are a second pass.
Nothing is quantized here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from viditq.balancing import Balance, make_balance, static_profile
from viditq.calibration import valid_tokens

__all__ = [
    "ALPHA",
    "HADAMARD",
    "Balanced",
    "Incoherence",
    "IncoherenceHook",
    "balances",
    "branches",
    "weight_incoherence",
]

ALPHA = 0.5
HADAMARD = 128


class Balanced(BaseModel):
    """One number before and after balancing.

    Attributes:
        raw: As it is.
        scaled: After scaling alone, with the static profile and alpha 0.5.
        rotated: After rotation alone, in blocks of up to 128 channels.
        both: After scaling, then rotation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    raw: float
    scaled: float
    rotated: float
    both: float

    @classmethod
    def of(cls, values: Tensor) -> "Balanced":
        """From (4,) values in the order of the attributes."""
        return cls(**dict(zip(cls.model_fields, values.tolist(), strict=True)))

    @classmethod
    def median(cls, several: Sequence["Balanced"]) -> "Balanced":
        """The median of each attribute."""
        return cls(**{name: median(getattr(b, name) for b in several) for name in cls.model_fields})


class Incoherence(BaseModel):
    """The incoherence of one layer input, and of the weights that read it, in all directions.

    Attributes:
        call: All values of one call together, the worst call: for one scale per tensor.
        token: Of each token alone, the median token: for one scale per token.
        worst_token: Of each token alone, the worst token.
        channel: Of the channels' largest magnitudes at one step, mean over the steps.
        weight: Of each output channel's weights alone, the median output channel.
        token_by_step: As ``token``, at each recorded step.
        token_by_condition: As ``token``, without and with the prompt; None without guidance, and
            where one branch has no tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    call: Balanced
    token: Balanced
    worst_token: Balanced
    channel: Balanced
    weight: Balanced
    token_by_step: list[Balanced]
    token_by_condition: list[Balanced] | None

    @classmethod
    def median(cls, several: Sequence["Incoherence"]) -> "Incoherence":
        """The median of each number over layers with the same steps."""
        steps = zip(*(one.token_by_step for one in several), strict=True)
        conditions = [c for one in several if (c := one.token_by_condition)]
        return cls(
            call=Balanced.median([one.call for one in several]),
            token=Balanced.median([one.token for one in several]),
            worst_token=Balanced.median([one.worst_token for one in several]),
            channel=Balanced.median([one.channel for one in several]),
            weight=Balanced.median([one.weight for one in several]),
            token_by_step=[Balanced.median(step) for step in steps],
            token_by_condition=[Balanced.median(c) for c in zip(*conditions, strict=True)] or None,
        )


def balances(step_amax: Tensor, weight: Tensor, *, alpha: float = ALPHA) -> list[Balance]:
    """The four balances of one layer input, in the order of :class:`Balanced`.

    Args:
        step_amax: (T, K) largest magnitude of each input channel at each step.
        weight: (N, K) of all layers that read the input.
        alpha: Migration strength of the scaling.
    """
    magnitudes = static_profile(step_amax), weight.abs().amax(dim=0)
    return [
        make_balance(*magnitudes, alpha=strength, hadamard=block)
        for block in (0, HADAMARD)
        for strength in (None, alpha)
    ]


def weight_incoherence(ways: Sequence[Balance], weight: Tensor) -> Balanced:
    """Of each output channel's weights, the median output channel; ``weight`` (N, K) fp32."""
    return Balanced.of(torch.stack([_over_mean(way.weight(weight).abs()).median() for way in ways]))


def branches(x: Tensor, guided: bool, valid: Tensor | None) -> list[Tensor]:
    """The tokens of each guidance branch, without padding.

    Args:
        x: (B, …, K) input of a layer.
        guided: Whether the first half of the batch is without and the second with the prompt.
        valid: (B, L) which tokens of captions are no padding, as
            :func:`viditq.calibration.valid_tokens` takes it; None is all.

    Returns:
        (M_i, K) fp32 of each branch; an empty prompt may have no token at all.
    """
    halves = [half.flatten(0, -2).float() for half in x.detach().chunk(2 if guided else 1)]
    valid = valid_tokens(x, valid)
    if valid is None:
        return halves
    masks = valid.chunk(len(halves))
    return [half[mask.flatten()] for half, mask in zip(halves, masks, strict=True)]


@dataclass
class IncoherenceHook:
    """A forward pre-hook that balances one layer's input in four ways and measures each.

    Attributes:
        steps: Number of denoising steps that are recorded.
        guided: As in :func:`branches`.
        balances: Of the input, in the order of :class:`Balanced`.
        features: K of the input.
        position: Index of the step of the next call; set it before each.
        valid: (B, L) which tokens of the next call's captions are no padding; None is all.
    """

    steps: int
    guided: bool
    balances: Sequence[Balance]
    features: int
    position: int = 0
    valid: Tensor | None = None
    _call: Tensor = field(init=False)
    _median: Tensor = field(init=False)
    _worst: Tensor = field(init=False)
    _count: Tensor = field(init=False)
    _channels: Tensor = field(init=False)

    def __post_init__(self) -> None:
        ways, branch_count = len(self.balances), 2 if self.guided else 1
        self._call = torch.zeros(ways)
        self._worst = torch.zeros(ways)
        self._median = torch.zeros(ways, self.steps, branch_count)  # sums over calls
        self._count = torch.zeros(self.steps, branch_count)
        self._channels = torch.zeros(ways, self.steps, self.features)

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:  # noqa: ARG002
        parts = branches(arguments[0], self.guided, self.valid)
        sizes = [len(part) for part in parts]
        joined = torch.cat(parts)
        if not len(joined):
            return
        self._count[self.position] += torch.tensor([size > 0 for size in sizes])
        for way, balance in enumerate(self.balances):
            x = balance.activation(joined).abs()
            self._call[way].clamp_min_(_over_mean(x.flatten()).cpu())
            tokens = _over_mean(x)
            self._worst[way].clamp_min_(tokens.amax().cpu())
            for branch, own in enumerate(tokens.split(sizes)):
                if len(own):
                    self._median[way, self.position, branch] += own.median().cpu()
            self._channels[way, self.position].clamp_min_(x.amax(dim=0).cpu())

    def incoherence(self, weight: Balanced) -> Incoherence:
        """The numbers, after the calls, with that of the weights."""
        by_step = self._median.sum(dim=2) / self._count.sum(dim=1)
        by_condition = self._median.sum(dim=1) / self._count.sum(dim=0)
        complete = self.guided and bool((self._count > 0).all())
        return Incoherence(
            call=Balanced.of(self._call),
            token=Balanced.of(self._median.sum(dim=(1, 2)) / self._count.sum()),
            worst_token=Balanced.of(self._worst),
            channel=Balanced.of(_over_mean(self._channels).mean(dim=1)),
            weight=weight,
            token_by_step=[Balanced.of(step) for step in by_step.T],
            token_by_condition=[Balanced.of(c) for c in by_condition.T] if complete else None,
        )


def _over_mean(magnitudes: Tensor) -> Tensor:
    """Largest over mean along the last dimension, which goes; 1 where all is zero."""
    mean = magnitudes.mean(dim=-1)
    return torch.where(mean > 0, magnitudes.amax(dim=-1) / mean, torch.ones_like(mean))
