"""What of a layer input's channel pattern is static and what is dynamic.

With ``A[t, j]`` the largest magnitude of channel ``j`` at step ``t``, the logarithm is taken apart
as in an analysis of variance:

    log A[t, j] = level[t] + static[j] + dynamic[t, j]

``level`` is a step's mean over the channels, ``static`` the mean over the steps of what remains,
``dynamic`` the rest. A fixed scaling can take away ``static`` (ViDiT-Q, arXiv 2406.02540, section
3.3); ``level`` is followed by scales that are found at run time; ``dynamic`` is left to the
rotation. Logarithms, because balancing divides.

A channel near zero would have a large logarithm of no meaning. Magnitudes therefore count as no
less than 1/256 of their step's mean, beyond which scaling does not go either, and a channel that is
below that at every step has no say, nor has a step at which all channels are zero.

``A`` is a maximum over the tokens that were seen, so chance in it counts as dynamic; and a pattern
drawn anew at each of ``T`` steps would still show a share of 1/T.
"""

from dataclasses import dataclass

from torch import Tensor

from viditq.balancing.scaling import MOST

__all__ = ["ChannelPattern", "channel_pattern"]


@dataclass(frozen=True)
class ChannelPattern:
    """The channels' magnitudes in doublings (log2) above their step's level.

    Attributes:
        static: (K',) fp64, mean 0, of the K' channels that have a say.
        dynamic: (T', K') fp64, mean 0 along both, of the T' steps that have a say.
    """

    static: Tensor
    dynamic: Tensor

    @property
    def static_share(self) -> float:
        """Share of the variance that is the same at every step, 0..1; 1 if all is flat."""
        static = self.static.square().sum().item() * len(self.dynamic)
        dynamic = self.dynamic.square().sum().item()
        flat = static + dynamic <= 1e-12 * self.dynamic.numel()
        return 1.0 if flat else static / (static + dynamic)


def channel_pattern(channels: Tensor) -> ChannelPattern:
    """Take the pattern apart; ``channels`` (T, K) are the largest magnitudes at each step."""
    channels = channels[channels.amax(dim=1) > 0].double()
    relative = channels / channels.mean(dim=1, keepdim=True)
    alive = (relative > 1 / MOST).any(dim=0)
    doublings = relative[:, alive].clamp_min(1 / MOST).log2()
    doublings = doublings - doublings.mean(dim=1, keepdim=True)
    static = doublings.mean(dim=0)
    return ChannelPattern(static, doublings - static)
