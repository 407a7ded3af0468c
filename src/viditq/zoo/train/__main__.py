"""Command line of the training: one stage a call, in this order.

    python -m viditq.zoo.train judge --minutes 1.5
    python -m viditq.zoo.train vae --minutes 3
    python -m viditq.zoo.train image --minutes 12
    python -m viditq.zoo.train video --minutes 12
    python -m viditq.zoo.train stdit --minutes 7 --start .train/shapes-video

Everything is drawn and trained on one device. ``--work`` holds checkpoints: a stage that finds its
own continues from it. Results are WORK/judge, WORK/vae, WORK/shapes-image, WORK/shapes-video,
WORK/shapes-stdit. ``stdit`` may begin from the parts of ``shapes-video`` that fit it.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from viditq.zoo.judge import Judge
from viditq.zoo.train.assemble import assemble
from viditq.zoo.train.autoencoder import reconstruct, train_autoencoder
from viditq.zoo.train.diffusion import train_diffusion
from viditq.zoo.train.reading import judge_accuracy, train_judge


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "viditq.zoo.train", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("stage", choices=["judge", "vae", "image", "video", "stdit"])
    parser.add_argument("--work", type=Path, default=Path(".train"))
    parser.add_argument("--minutes", type=float, required=True, help="wall clock of this call")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=160_000, help="bank of judge and vae")
    parser.add_argument("--clips", type=int, default=20_000, help="bank of judge and vae")
    parser.add_argument("--scenes", type=int, default=600_000, help="bank of image, video, stdit")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rate", type=float, default=8e-4, help="peak rate of the same")
    parser.add_argument("--start", type=Path, help="pipeline directory to begin from")
    parser.add_argument("--hold", action="store_true", help="do not anneal: a later call continues")
    return parser.parse_args()


def main() -> None:
    options = _arguments()
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("high")
    bank = {"images": options.images, "clips": options.clips, "batch": options.batch}
    if options.stage == "judge":
        train_judge(options.work, options.minutes, device, **bank)
        return
    if options.stage == "vae":
        train_autoencoder(options.work, options.minutes, device, **bank)
        return
    kind = "image" if options.stage == "image" else "video"
    vae: Any = AutoencoderKL.from_pretrained(options.work / "vae", dtype=torch.float32)
    vae.to(device)
    if (options.work / "judge").exists():
        judge = Judge.load(options.work / "judge", device)
        seen = judge_accuracy(
            judge,
            kind,
            min(1024, options.scenes),
            device,
            through=lambda x: reconstruct(vae, x),
        )
        print(f"judge on {kind}s through the vae:", seen, flush=True)
    modules = train_diffusion(
        options.stage,
        vae,
        options.work,
        options.minutes,
        device,
        scenes=options.scenes,
        batch=options.batch,
        peak_rate=options.rate,
        anneal=not options.hold,
        start=options.start,
    )
    out = assemble(options.stage, vae, modules, options.work / f"shapes-{options.stage}")
    print(f"wrote {out}", flush=True)


if __name__ == "__main__":
    main()
