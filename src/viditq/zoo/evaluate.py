"""How well a bundled pipeline follows its captions: sample held-out captions, let the judge read.

    python -m viditq.zoo.evaluate shapes-image --num 256
    python -m viditq.zoo.evaluate shapes-video --num 256 --sheet sheet.png
    python -m viditq.zoo.evaluate path/to/shapes-image --kind image --judge path/to/judge

Prints the share of samples that show what the caption says, per attribute, with its 95 % interval
(Wilson). Also ``judge``: the judge's own accuracy on fresh rendered scenes and on the same scenes
through the pipeline's autoencoder, which bounds what samples can reach.

It samples through the pipelines' own classes and knows no quantization.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from viditq.zoo.batches import random_batch
from viditq.zoo.catalog import BUNDLED, bundled_path, held_out_prompts, kind_of
from viditq.zoo.classes import OPEN_SORA, stored_class
from viditq.zoo.draw import FRAMES, render
from viditq.zoo.judge import Judge, accuracy

__all__ = ["contact_sheet", "judge_on_rendered", "load", "sample", "wilson"]


def load(directory: str | Path, device: str = "cpu") -> Any:
    """The pipeline in ``directory``, in float32, without a progress bar."""
    stored = stored_class(Path(directory))
    pipe = stored.from_pretrained(str(directory), dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(
    pipe: Any,
    kind: str,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 4.5,
    batch_size: int = 16,
) -> Tensor:
    """Images (N, 64, 64, 3) or clips (N, 8, 64, 64, 3) in 0..1; sample i has seed ``seed`` + i."""
    options: dict = {}
    if kind == "image":
        options = {"use_resolution_binning": False, "clean_caption": False}
    elif type(pipe).__name__ != OPEN_SORA:
        options = {"video_length": FRAMES, "height": None, "width": None}
        options |= {"decode_chunk_size": FRAMES, "clean_caption": False}
    made = []
    for start in range(0, len(prompts), batch_size):
        part = list(prompts[start : start + batch_size])
        output = pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(part))],
            output_type="pt",
            **options,
        )
        made.append((output.images if kind == "image" else output.frames).float().cpu())
    return torch.cat(made).movedim(-3, -1).clamp(0, 1)


def judge_on_rendered(judge: Judge, kind: str, number: int, vae: Any = None) -> dict[str, float]:
    """The judge's accuracy on fresh scenes, through the autoencoder if one is given."""
    generator = torch.Generator().manual_seed(77)
    batch = random_batch(kind, number, generator, everything=True)
    device = next(judge.net.parameters()).device
    readings = []
    for start in range(0, number, 64):
        clips = render(batch[start : start + 64], generator).to(device)
        if vae is not None:
            with torch.no_grad():
                latents = vae.encode(clips.flatten(0, 1) * 2 - 1).latent_dist.mode()
                clips = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).view_as(clips)
        samples = clips.movedim(-3, -1)
        readings += judge.read(samples if kind == "video" else samples[:, 0])
    return accuracy(readings, [scene.caption() for scene in batch.scenes()])


def wilson(share: float, number: int) -> tuple[float, float]:
    """The 95 % interval of a share of ``number`` trials."""
    z = 1.96
    middle = share + z * z / (2 * number)
    spread = z * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    scale = 1 + z * z / number
    return (middle - spread) / scale, (middle + spread) / scale


def contact_sheet(samples: Tensor, path: str | Path, columns: int = 8) -> None:
    """A PNG of images (N, H, W, 3), ``columns`` a row, or of clips, one a row."""
    from PIL import Image

    if samples.ndim == 5:
        samples, columns = samples.flatten(0, 1), samples.shape[1]
    number, height, width, _ = samples.shape
    columns = min(columns, number)
    rows = number // columns
    grid = samples[: rows * columns].view(rows, columns, height, width, 3).transpose(1, 2)
    pixels = (grid.reshape(rows * height, columns * width, 3) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        "viditq.zoo.evaluate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("pipeline", help=f"{', '.join(BUNDLED)} or a directory")
    parser.add_argument("--kind", choices=["image", "video"], help="of a directory")
    parser.add_argument("--judge", type=Path, help="a judge's directory, else the bundled one")
    parser.add_argument("--num", type=int, default=256, help="held-out captions")
    parser.add_argument(
        "--rendered", type=int, default=0, help="scenes to test the judge itself on"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sheet", type=Path, help="write a PNG of the first samples")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    bundled = options.pipeline in BUNDLED
    kind = options.kind or (kind_of(options.pipeline) if bundled else None)
    if kind is None:
        parser.error("--kind is needed for a directory")
    directory = bundled_path(options.pipeline) if bundled else Path(options.pipeline)
    judge = Judge.load(options.judge, options.device)
    pipe = load(directory, options.device)
    result: dict = {"pipeline": options.pipeline, "num": options.num, "steps": options.steps}
    result |= {"guidance": options.guidance, "seed": options.seed}
    if options.rendered:
        result["judge_on_rendered"] = judge_on_rendered(judge, kind, options.rendered)
        result["judge_through_vae"] = judge_on_rendered(judge, kind, options.rendered, pipe.vae)
    prompts = held_out_prompts(f"shapes-{kind}", options.num)
    start = time.perf_counter()
    samples = sample(
        pipe,
        kind,
        prompts,
        seed=options.seed,
        steps=options.steps,
        guidance=options.guidance,
        batch_size=options.batch_size,
    )
    result["seconds_per_sample"] = (time.perf_counter() - start) / options.num
    result["accuracy"] = accuracy(judge.read(samples), prompts)
    lines = []
    for key in ("judge_on_rendered", "judge_through_vae", "accuracy"):
        for name, share in result.get(key, {}).items():
            number = options.num if key == "accuracy" else options.rendered
            low, high = wilson(share, number)
            lines.append(f"{key:18} {name:11} {share:7.2%}  [{low:.1%}, {high:.1%}]")
    seconds = result["seconds_per_sample"]
    lines.append(f"{seconds:.2f} s per sample, batches of {options.batch_size}")
    sys.stdout.write("\n".join(lines) + "\n")
    if options.sheet:
        contact_sheet(samples[: 64 if kind == "image" else 16], options.sheet)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
