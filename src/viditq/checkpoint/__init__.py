"""Quantized transformers on disk, in the layout of diffusers' ``save_pretrained``.

``config.json`` is the float model's, with a ``quantization_config`` that holds the compact plan and
the provenance; the safetensors hold codes, scales and whatever stayed float; ``viditq_layers.json``
holds the diagnostics of each layer, for reports. Loading is strict: every tensor must be there,
with the shape and the kind of number that the plan asks for, or nothing is loaded. Nothing is
pickled.
"""

from viditq.checkpoint.config import (
    CONFIG,
    QUANT_METHOD,
    Provenance,
    QuantizationConfig,
    is_quantized,
    parse_config,
    read_config,
)
from viditq.checkpoint.layers import LAYERS, write_layers
from viditq.checkpoint.model import load, save
from viditq.checkpoint.summary import CheckpointSummary, inspect
from viditq.checkpoint.tensors import WEIGHTS, WEIGHTS_INDEX, open_weights, refuse_missing

__all__ = [
    "CONFIG",
    "LAYERS",
    "QUANT_METHOD",
    "WEIGHTS",
    "WEIGHTS_INDEX",
    "CheckpointSummary",
    "Provenance",
    "QuantizationConfig",
    "inspect",
    "is_quantized",
    "load",
    "open_weights",
    "parse_config",
    "read_config",
    "refuse_missing",
    "save",
    "write_layers",
]
