"""One adapter per model family; :func:`adapter_for` finds the one of a transformer."""

from torch import nn

from viditq.errors import PipelineError
from viditq.models.adapter import Adapter, LayerInfo
from viditq.models.cogvideox import COGVIDEOX
from viditq.models.flux import FLUX
from viditq.models.latte import LATTE
from viditq.models.opensora import STDIT, STDIT3
from viditq.models.pixart import PIXART
from viditq.models.wan import WAN

__all__ = ["ADAPTERS", "Adapter", "LayerInfo", "adapter_for", "adapter_named"]

ADAPTERS = (PIXART, LATTE, STDIT, STDIT3, FLUX, WAN, COGVIDEOX)


def adapter_named(class_name: str) -> Adapter:
    """The adapter of the transformer class called ``class_name``."""
    for adapter in ADAPTERS:
        if adapter.transformer == class_name:
            return adapter
    raise PipelineError(
        f"{class_name} has no adapter; supported are {', '.join(a.transformer for a in ADAPTERS)}."
    )


def adapter_for(transformer: nn.Module) -> Adapter:
    """The adapter of ``transformer``, by its class."""
    return adapter_named(type(transformer).__name__)
