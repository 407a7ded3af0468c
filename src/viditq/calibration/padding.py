"""Which tokens of a layer's input are no padding.

A mask is the transformer's own argument, of captions. Some layers read the caption behind the image
or video, in one sequence; the mask is then that of the sequence's end. An input that is neither,
such as captions repeated for each frame, counts as a whole.
"""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["valid_tokens"]


def valid_tokens(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """(B, S) bool, the tokens of ``x`` (B, S, K) that ``mask`` (B, L) does not call padding.

    ``None`` is all of them.
    """
    if mask is None or mask.ndim != 2 or x.ndim != 3 or len(mask) != len(x):
        return None
    before = x.shape[1] - mask.shape[1]
    return F.pad(mask.bool(), (before, 0), value=True) if before >= 0 else None
