"""The pipelines that come with the package, by name, and prompts for them.

Importing this module is cheap: torch and diffusers are only imported to make a stress variant,
which is written on first use into a cache directory (``VIDITQ_CACHE``, else ``~/.cache/viditq``).
"""

import os
from itertools import islice
from pathlib import Path

from viditq.errors import InputError, PipelineError
from viditq.zoo.scenes import sample_scenes

__all__ = [
    "BUNDLED",
    "MOST_PROMPTS",
    "bundled_path",
    "calibration_prompts",
    "held_out_prompts",
    "kind_of",
]

_STRESS = "-stress"
# Each that is in bundled/, and what it makes.
_KINDS = {
    "shapes-image": "image",
    "shapes-video": "video",
    "shapes-stdit": "video",
}
BUNDLED: tuple[str, ...] = (*_KINDS, *(name + _STRESS for name in _KINDS))
MOST_PROMPTS = 4096
"""Distinct captions there are at least, held out and not; asking for more is a mistake."""


def bundled_path(name: str) -> Path:
    """The directory of a bundled pipeline, in diffusers layout."""
    _check(name)
    plain = Path(__file__).parent / "bundled" / name.removesuffix(_STRESS)
    if not (plain / "model_index.json").is_file():
        raise PipelineError(f"The bundled pipeline {plain} is missing; reinstall viditq.")
    if not name.endswith(_STRESS):
        return plain
    from viditq.zoo.stress import VERSION, write_stress

    cache = Path(os.environ.get("VIDITQ_CACHE") or Path.home() / ".cache" / "viditq")
    made = cache / f"{name}-v{VERSION}-{_fingerprint(plain)}"
    if not (made / "model_index.json").is_file():
        write_stress(plain, made)
    return made


def held_out_prompts(name: str, num: int = 256, seed: int = 0) -> list[str]:
    """``num`` distinct captions whose combinations were never trained on."""
    return _prompts(name, num, seed, held_out=True)


def calibration_prompts(name: str, num: int, seed: int = 0) -> list[str]:
    """``num`` distinct captions of the training side: none of them is held out."""
    return _prompts(name, num, seed, held_out=False)


def kind_of(name: str) -> str:
    """ "image" or "video"."""
    _check(name)
    return _KINDS[name.removesuffix(_STRESS)]


def _prompts(name: str, num: int, seed: int, *, held_out: bool) -> list[str]:
    if not 1 <= num <= MOST_PROMPTS:
        raise InputError(f"{num} prompts were asked for; between 1 and {MOST_PROMPTS} are there.")
    scenes = sample_scenes(kind_of(name), held_out=held_out, seed=seed)
    return [scene.caption() for scene in islice(scenes, num)]


def _check(name: str) -> None:
    if name not in BUNDLED:
        raise PipelineError(f"{name!r} is not a bundled pipeline; there are {', '.join(BUNDLED)}.")


def _fingerprint(directory: Path) -> str:
    """Changes when the bundled weights do, so that a stale variant is not used."""
    import hashlib

    digest = hashlib.sha256()
    for file in sorted(directory.rglob("*.safetensors")):
        digest.update(file.relative_to(directory).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
