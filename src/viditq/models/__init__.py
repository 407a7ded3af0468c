"""One adapter per model family; :func:`adapter_for` finds the one of a transformer.

A class that none of them is for can be given one (:func:`register_adapter`). Without, its adapter
is guessed, and a line in the log says so.
"""

import logging
from functools import cache
from importlib import import_module
from typing import Any

from torch import nn

from viditq.errors import PipelineError
from viditq.models.adapter import Adapter, LayerInfo
from viditq.models.cogvideox import COGVIDEOX
from viditq.models.flux import FLUX
from viditq.models.flux2 import FLUX2
from viditq.models.guess import guess_adapter
from viditq.models.hunyuan_video import HUNYUAN_VIDEO
from viditq.models.kept import loaded_dtype
from viditq.models.latte import LATTE, LATTE_CLASS
from viditq.models.ltx import LTX
from viditq.models.opensora import STDIT, STDIT3
from viditq.models.pixart import PIXART
from viditq.models.qwen_image import QWEN_IMAGE
from viditq.models.sana import SANA
from viditq.models.sd3 import SD3
from viditq.models.wan import WAN

__all__ = [
    "ADAPTERS",
    "Adapter",
    "LayerInfo",
    "adapter_for",
    "adapter_named",
    "guess_adapter",
    "loaded_dtype",
    "register_adapter",
    "transformer_class",
]

ADAPTERS = (
    PIXART,
    LATTE,
    LATTE_CLASS,
    STDIT,
    STDIT3,
    FLUX,
    FLUX2,
    SD3,
    SANA,
    QWEN_IMAGE,
    WAN,
    COGVIDEOX,
    HUNYUAN_VIDEO,
    LTX,
)
"""Those that come with viditq."""

_BY_CLASS = {adapter.transformer: adapter for adapter in ADAPTERS}
_LOG = logging.getLogger("viditq")


def register_adapter(adapter: Adapter) -> None:
    """Use ``adapter`` for the transformers of its class, in place of any other, in this process.

    Checkpoints remember the adapter by its name, and are read where one of that name is known.
    """
    _BY_CLASS[adapter.transformer] = adapter


def adapter_named(class_name: str) -> Adapter:
    """The adapter of the transformer class called ``class_name``."""
    if class_name not in _BY_CLASS:
        raise PipelineError(f"{class_name} has no adapter; supported are {', '.join(_BY_CLASS)}.")
    return _BY_CLASS[class_name]


def transformer_class(class_name: str) -> Any:
    """The class itself, from where its adapter says that it is, or from diffusers.

    Raises:
        AttributeError: there is none of that name.
    """
    known = _BY_CLASS.get(class_name)
    return getattr(import_module(known.module if known else "diffusers"), class_name)


def adapter_for(transformer: nn.Module) -> Adapter:
    """The adapter of ``transformer``, by its class; a guessed one if the class has none.

    Raises:
        PipelineError: the class has none and none can be guessed.
    """
    name = type(transformer).__name__
    if name in _BY_CLASS:
        return _BY_CLASS[name]
    guessed = guess_adapter(transformer)
    _say_guessed(name, ", ".join(guessed.roles))
    return guessed


@cache
def _say_guessed(class_name: str, lists: str) -> None:
    """Say it once for each class."""
    _LOG.warning(
        "%s has no adapter: which layers of %s are quantized, and their roles, are guessed from "
        "their names (docs/adding-a-model.md shows how to say it instead).",
        class_name,
        lists,
    )
