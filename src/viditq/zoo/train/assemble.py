"""Writes trained parts as a stock pipeline directory, in half precision."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import LattePipeline, PixArtSigmaPipeline
from torch import nn

from viditq.zoo.text import make_tokenizer
from viditq.zoo.train.models import make_scheduler

__all__ = ["assemble"]

_SHARD = "12MB"


def assemble(kind: str, vae: Any, modules: dict[str, nn.Module], out: Path) -> Path:
    """Write ``out`` so that ``from_pretrained(out)`` needs nothing but diffusers."""
    pipeline_class: Any = PixArtSigmaPipeline if kind == "image" else LattePipeline
    pipe = pipeline_class(
        tokenizer=make_tokenizer(),
        text_encoder=modules["text_encoder"],
        vae=vae,
        transformer=modules["transformer"],
        scheduler=make_scheduler(),
    )
    if out.exists():
        shutil.rmtree(out)
    pipe.to(torch.float16).save_pretrained(out, max_shard_size=_SHARD)
    pipe.to(torch.float32)
    _name_tokenizer_class(out)
    _store_half_run_full(out / "text_encoder" / "config.json")
    for part in ("transformer", "vae"):
        _forget_origin(out / part / "config.json")
    return out


def _name_tokenizer_class(out: Path) -> None:
    """transformers 5 writes an internal class name; others want the public one."""
    index = out / "model_index.json"
    content = json.loads(index.read_text())
    content["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    index.write_text(json.dumps(content, indent=2) + "\n")
    config = out / "tokenizer" / "tokenizer_config.json"
    content = json.loads(config.read_text())
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.write_text(json.dumps(content, indent=2) + "\n")


def _store_half_run_full(config: Path) -> None:
    """transformers loads in the dtype that the config names: name float32, as diffusers does."""
    content = json.loads(config.read_text())
    content["dtype"] = "float32"
    config.write_text(json.dumps(content, indent=2) + "\n")


def _forget_origin(config: Path) -> None:
    """The directory that a part was last loaded from is nobody's business."""
    content = json.loads(config.read_text())
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2) + "\n")
