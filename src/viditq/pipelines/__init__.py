"""Where viditq meets diffusers' pipelines: load, record, quantize, generate, register."""

from viditq.pipelines.convert_latte import convert_latte
from viditq.pipelines.convert_opensora import convert_opensora
from viditq.pipelines.families import Family, family, transformers
from viditq.pipelines.generate import DEFAULT_GUIDANCE, DEFAULT_STEPS, generate
from viditq.pipelines.quantize import calibration_prompts, quantize
from viditq.pipelines.record import record
from viditq.pipelines.register import register
from viditq.pipelines.sources import load, read_index, resolve, resolve_device

__all__ = [
    "DEFAULT_GUIDANCE",
    "DEFAULT_STEPS",
    "Family",
    "calibration_prompts",
    "convert_latte",
    "convert_opensora",
    "family",
    "generate",
    "load",
    "quantize",
    "read_index",
    "record",
    "register",
    "resolve",
    "resolve_device",
    "transformers",
]
