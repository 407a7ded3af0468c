"""The pipeline classes of what is bundled, by name: diffusers', and Open-Sora's, which is viditq's.

Open-Sora's class lives a layer above this package, with the code that loads and quantizes pipelines
of any kind; it is imported when it is asked for, and nothing else of that layer is used here.
"""

import json
from pathlib import Path
from typing import Any

__all__ = ["OPEN_SORA", "pipeline_class", "stored_class"]

OPEN_SORA = "OpenSoraPipeline"


def pipeline_class(name: str) -> Any:
    """The class called ``name``."""
    if name == OPEN_SORA:
        from viditq.pipelines.opensora import OpenSoraPipeline

        return OpenSoraPipeline
    import diffusers

    return getattr(diffusers, name)


def stored_class(directory: Path) -> Any:
    """The class of the pipeline in ``directory``."""
    index = json.loads((directory / "model_index.json").read_text())
    return pipeline_class(index["_class_name"])
