"""What diffusers keeps in fp32 of a model that is loaded in another dtype.

A class names parts of names in ``_keep_in_fp32_modules`` (Wan: norms, the embedder of time, the
modulation); every tensor with such a part in its name is fp32, whatever dtype was asked for.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["loaded_dtype"]


def loaded_dtype(model: nn.Module, name: str, dtype: torch.dtype) -> torch.dtype:
    """What the floating-point tensor ``name`` has in a ``model`` that is loaded in ``dtype``."""
    listed: Any = getattr(model, "_keep_in_fp32_modules", None) or ()
    kept: Iterable[str] = (listed,) if isinstance(listed, str) else listed
    return dtype if set(kept).isdisjoint(name.split(".")) else torch.float32
