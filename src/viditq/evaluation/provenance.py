"""What a number was made with: versions, hardware, commit, time."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

__all__ = ["commit", "hardware", "now", "versions"]

_PACKAGES = (
    "viditq",
    "torch",
    "triton",
    "torchao",
    "diffusers",
    "transformers",
    "numpy",
    "scikit-image",
    "torchmetrics",
)


def versions() -> dict[str, str]:
    """Python's version and those of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str) -> dict[str, str]:
    """The processor, its cores that this process may use, and the accelerator if one computes."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"cpu": _processor(), "cores": f"{cores} cores", "system": platform.system()}
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def commit() -> str | None:
    """Commit of the checkout that viditq runs from, ``-dirty`` when changed; None elsewhere."""
    package = Path(__file__).resolve().parents[1]
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top, "src", "viditq") != package:
        return None
    head = _git(package, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    return head + ("-dirty" if _git(package, "status", "--porcelain", "--", ".") else "")


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
