"""Quantized pipelines against their float pipeline: same seeds, same noise, one set of numbers.

For each pipeline in turn the samples are made and stored; then all are measured against the float
samples. Two runs of the float pipeline itself are part of it: fp32, the reference, and bf16, the
yardstick, because a difference smaller than the one that half precision makes is one that nobody
would have asked about.

The work happens in a hidden folder beside ``out`` that keeps its samples when the run is stopped,
so the same call goes on where it was; ``out`` itself appears when all is done:

    out/comparison.json         the numbers (results.Comparison)
    out/samples/NAME/NNNN.*     the samples of each pipeline: ``float``, ``float_bf16``, quantized
    out/layers/NAME.json        the diagnostics that each quantized checkpoint carries
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from viditq import checkpoint, pipelines
from viditq.errors import InputError, PipelineError
from viditq.evaluation import provenance
from viditq.evaluation.measure import FLOAT, Reader, mean_fields, measure
from viditq.evaluation.results import COMPARISON_FILE, Comparison, FloatResult, Provenance, Result
from viditq.evaluation.samples import SampleStore
from viditq.evaluation.sampling import Settings, Source, sample
from viditq.files import check_replaceable, replace_directory
from viditq.progress import Track, quiet
from viditq.prompts import hash_prompts
from viditq.zoo import catalog
from viditq.zoo.judge import Judge

__all__ = [
    "FLOAT_BF16",
    "compare",
    "float_sources",
    "make_samples",
    "partial_folder",
    "plan_samples",
]

FLOAT_BF16 = "float_bf16"


def compare(
    float_source: str | Path,
    quantized_sources: Sequence[str | Path],
    prompts: Sequence[str] | None = None,
    *,
    num: int = 32,
    out: str | Path,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 4.5,
    device: str = "cpu",
    batch_size: int = 8,
    bf16: bool = True,
    overwrite: bool = False,
    command: str | None = None,
    judge: Reader | None = None,
    track: Track = quiet,
) -> Comparison:
    """Make samples with all pipelines at the same seeds, measure them, and write ``out``.

    Args:
        float_source: Bundled name, directory in diffusers layout, or hub id.
        quantized_sources: One or more directories that ``quantize`` wrote, with distinct names.
        prompts: Sample ``i`` has prompt ``i``, starting again when they are fewer than ``num``;
            None takes captions that the bundled pipelines were never trained on.
        num: Samples per pipeline, 1 or more.
        out: Directory to write; new, empty, or with ``overwrite`` an earlier comparison, whose
            samples are used again where nothing that made them has changed.
        seed: Sample ``i`` has seed ``seed + i``.
        steps: Denoising steps, 1 or more.
        guidance: Classifier-free guidance scale; 1 switches it off.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        batch_size: Samples made together. It does not change their noise.
        bf16: Also run the float pipeline in bf16.
        overwrite: Whether ``out`` may replace an earlier comparison.
        command: The command line, for the record.
        judge: Reads samples and gives features; None takes the bundled one.
        track: Shows progress.

    Raises InputError, PipelineError or CheckpointError before any sample is made when the sources
    do not fit together.
    """
    out = Path(out).resolve()
    check_replaceable(out, marker=COMPARISON_FILE, overwrite=overwrite)
    sources = float_sources(float_source, bf16=bf16)
    float_path = sources[FLOAT].path
    paths = _quantized_paths(float_path, quantized_sources)
    summaries = {name: checkpoint.inspect(path) for name, path in paths.items()}
    bundled = _bundled(float_source)
    settings = plan_samples(
        float_source,
        prompts,
        num=num,
        seed=seed,
        steps=steps,
        guidance=guidance,
        device=device,
        batch_size=batch_size,
    )
    sources |= {name: Source(path) for name, path in paths.items()}

    work = partial_folder(out)
    stores = {
        name: make_samples(out, name, source, settings, track) for name, source in sources.items()
    }
    rows = measure(
        stores,
        settings.prompts,
        settings.seeds,
        judge or Judge.load(),
        read=bundled is not None,
        track=track,
    )

    def result(name: str, source: str, bits: float, size: int, float_size: int) -> Result:
        return Result(
            name=name,
            source=source,
            weight_bits=bits,
            size_bytes=size,
            float_size_bytes=float_size,
            **mean_fields(rows[name]),
        )

    float_size = next(iter(summaries.values())).float_size_bytes
    comparison = Comparison(
        pipeline=bundled or Path(float_source).name,
        kind="video" if stores[FLOAT].read(0).ndim == 4 else "image",
        float_=FloatResult(name=FLOAT, source=str(float_source), **mean_fields(rows[FLOAT])),
        float_bf16=result(FLOAT_BF16, str(float_source), 16.0, float_size, float_size)
        if bf16
        else None,
        results=tuple(
            result(name, str(source), *_sizes(summary))
            for source, (name, summary) in zip(quantized_sources, summaries.items(), strict=True)
        ),
        provenance=Provenance(
            created=provenance.now(),
            command=command,
            commit=provenance.commit(),
            versions=provenance.versions(),
            hardware=provenance.hardware(device),
            prompts_hash=hash_prompts(settings.prompts),
            num=num,
            seed=seed,
            steps=steps,
            guidance=guidance,
            device=device,
            batch_size=batch_size,
        ),
    )
    for folder in (work / "samples").iterdir():  # of an earlier, stopped call with other pipelines
        if folder.name not in stores:
            shutil.rmtree(folder)
    _keep_layers(summaries, work / "layers")
    comparison.save(work)
    replace_directory(work, out)
    return comparison.at(out)


def float_sources(float_source: str | Path, *, bf16: bool = True) -> dict[str, Source]:
    """The runs of the float pipeline by name; InputError when it is quantized."""
    path = pipelines.resolve(float_source)
    if checkpoint.is_quantized(path / "transformer"):
        raise InputError(f"{float_source} is quantized; the first pipeline is the float one.")
    sources = {FLOAT: Source(path)}
    return sources | ({FLOAT_BF16: Source(path, torch.bfloat16)} if bf16 else {})


def plan_samples(
    float_source: str | Path,
    prompts: Sequence[str] | None,
    *,
    num: int,
    seed: int,
    steps: int,
    guidance: float,
    device: str,
    batch_size: int,
) -> Settings:
    """The samples that :func:`compare` makes with every pipeline, for these arguments of it."""
    if num < 1 or steps < 1:
        raise InputError(f"num and steps must be 1 or more, not {num} and {steps}.")
    return Settings(
        _prompts(prompts, _bundled(float_source), num),
        [seed + index for index in range(num)],
        steps,
        guidance,
        device,
        batch_size,
    )


def make_samples(
    out: Path, name: str, source: Source, settings: Settings, track: Track = quiet
) -> SampleStore:
    """The samples of one pipeline, where :func:`compare` into ``out`` looks for them."""
    folder, earlier = partial_folder(out) / "samples" / name, out / "samples" / name
    return sample(source, folder, settings, earlier=earlier, track=track)


def partial_folder(out: str | Path) -> Path:
    """Where a comparison for ``out`` keeps its samples until it is complete."""
    out = Path(out).resolve()
    return out.with_name(f".{out.name}.partial")


def _quantized_paths(float_path: Path, sources: Sequence[str | Path]) -> dict[str, Path]:
    if not sources:
        raise InputError("Name at least one quantized directory to compare.")
    wanted = pipelines.read_index(float_path)["_class_name"]
    paths: dict[str, Path] = {}
    for source in sources:
        path = pipelines.resolve(source).resolve()
        if path.name in paths or path.name in (FLOAT, FLOAT_BF16):
            raise InputError(
                f"The name {path.name} stands for two pipelines; results are told apart by the "
                "directory's name, so rename one."
            )
        if (found := pipelines.read_index(path)["_class_name"]) != wanted:
            raise PipelineError(f"{path} is a {found}, the float pipeline a {wanted}.")
        paths[path.name] = path
    return paths


def _bundled(float_source: str | Path) -> str | None:
    return str(float_source) if str(float_source) in catalog.BUNDLED else None


def _prompts(prompts: Sequence[str] | None, bundled: str | None, num: int) -> list[str]:
    if prompts is None:
        if bundled is None:
            raise InputError("Only the bundled pipelines have prompts of their own; give some.")
        prompts = catalog.held_out_prompts(bundled, num)
    if not prompts:
        raise InputError("There are no prompts.")
    return [prompts[index % len(prompts)] for index in range(num)]


def _sizes(summary: checkpoint.CheckpointSummary) -> tuple[float, int, int]:
    return summary.weight_bits, summary.size_bytes, summary.float_size_bytes


def _keep_layers(summaries: Mapping[str, checkpoint.CheckpointSummary], folder: Path) -> None:
    for name, summary in summaries.items():
        if summary.layers:
            checkpoint.write_layers(folder / f"{name}.json", summary.layers)
