"""Writes trained parts as a stock pipeline directory, in half precision."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from viditq.zoo.classes import OPEN_SORA, pipeline_class
from viditq.zoo.text import make_tokenizer
from viditq.zoo.train.models import make_scheduler

__all__ = ["assemble"]

_SHARD = "12MB"
_CLASSES = {"image": "PixArtSigmaPipeline", "video": "LattePipeline", "stdit": OPEN_SORA}
# Open-Sora guides three of four channels; these latents have no channel that wants none.
_OPTIONS = {"stdit": {"guided_channels": 4}}


def assemble(stage: str, vae: Any, modules: dict[str, nn.Module], out: Path) -> Path:
    """Write ``out`` so that the pipeline class's ``from_pretrained(out)`` needs nothing else."""
    pipe = pipeline_class(_CLASSES[stage])(
        tokenizer=make_tokenizer(),
        text_encoder=modules["text_encoder"],
        vae=vae,
        transformer=modules["transformer"],
        scheduler=make_scheduler(),
        **_OPTIONS.get(stage, {}),
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
