"""Which tokens of a layer's input are no padding.

A mask is the transformer's own argument, of captions. Some layers read the caption behind the image
or video, in one sequence; the mask is then that of the sequence's end. An input that is neither,
such as captions repeated for each frame, counts as a whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

__all__ = ["pad_captions", "trim_captions", "valid_tokens"]

_CAPTION, _MASK = "encoder_hidden_states", "encoder_attention_mask"


def valid_tokens(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """(B, S) bool, the tokens of ``x`` (B, S, K) that ``mask`` (B, L) does not call padding.

    ``None`` is all of them.
    """
    if mask is None or mask.ndim != 2 or x.ndim != 3 or len(mask) != len(x):
        return None
    before = x.shape[1] - mask.shape[1]
    return F.pad(mask.bool(), (before, 0), value=True) if before >= 0 else None


def trim_captions(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments without caption tokens that are padding in every row.

    Attention with a mask (B, L) gives such tokens no weight, so the call's output is the same. A
    mask of another shape, or none, leaves all as it is.
    """
    trimmed = dict(arguments)
    caption, mask = trimmed.get(_CAPTION), trimmed.get(_MASK)
    if isinstance(caption, Tensor) and isinstance(mask, Tensor) and mask.ndim == 2:
        counted = mask.bool().any(0).nonzero()
        length = int(counted.max()) + 1 if len(counted) else mask.shape[1]
        if caption.shape[1] == mask.shape[1]:
            trimmed[_CAPTION], trimmed[_MASK] = caption[:, :length], mask[:, :length]
    return trimmed


def pad_captions(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The arguments of several calls whose captions :func:`trim_captions` cut, as long as each
    other again; a call whose captions have no mask (B, L) is left as it is."""
    padded = [dict(arguments) for arguments in calls]
    masked = [
        arguments
        for arguments in padded
        if isinstance(mask := arguments.get(_MASK), Tensor) and mask.ndim == 2
    ]
    longest = max((arguments[_MASK].shape[1] for arguments in masked), default=0)
    for arguments in masked:
        missing = longest - arguments[_MASK].shape[1]
        if arguments[_CAPTION].shape[1] == arguments[_MASK].shape[1]:
            arguments[_CAPTION] = F.pad(arguments[_CAPTION], (0, 0, 0, missing))
            arguments[_MASK] = F.pad(arguments[_MASK], (0, missing))
    return padded
