"""``viditq bench blocks`` and ``denoisers``: full-size transformers with random weights.

Each variant of a model is built anew, so that its memory is its own, run once, compared with the
bf16 model of the same weights, and timed. For blocks the model has one block of each kind; what the
model hands to the block is recorded and handed to it again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from viditq.bench.checks import near
from viditq.bench.models import ModelCase, make_inputs, models_named
from viditq.bench.random_models import attention_kernels, build, largest_inputs
from viditq.bench.record import CannotRun, collect, explain, guarded, origin
from viditq.bench.results import BenchResult, ModelRow, Row
from viditq.bench.timing import clear_memory, compiling, measure, peak_memory, wall_s
from viditq.bench.tune import tune_
from viditq.bench.variants import Variant, prepare_, variants_named
from viditq.graphs import capture_, is_captured
from viditq.ops import fastest_backend, use_backend
from viditq.pipelines.sources import resolve_device
from viditq.plan import LayerPlan
from viditq.progress import Track, quiet

__all__ = ["bench_models"]

COMPILE_S = 240.0
"""A block that compiles for longer is given up."""

DTYPE = torch.bfloat16
DENOISER = "denoiser"

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True)
class _Reference:
    """The bf16 model of a case: what each part is given and gives.

    Attributes:
        arguments: of each part, by name.
        outputs: of each part.
        amax: () largest magnitude of each block linear's balanced input, by static plan.
    """

    arguments: Mapping[str, Arguments]
    outputs: Mapping[str, Tensor]
    amax: Mapping[LayerPlan, Mapping[str, Tensor]]


def bench_models(
    kind: Literal["blocks", "denoisers"],
    device: str = "cuda",
    *,
    models: Sequence[str] = (),
    variants: Sequence[str] = (),
    torchao: bool = False,
    backend: str | None = None,
    budget_s: float = 5.0,
    file: str | Path | None = None,
    command: str | None = None,
    track: Track = quiet,
) -> BenchResult:
    """Time one block of each kind, or one step of the whole transformer, of full-size models.

    Args:
        kind: what to time.
        device: ``cuda`` or ``cpu``.
        models: names in :data:`~viditq.bench.models.MODELS`; those marked so by default.
        variants: names in :data:`~viditq.bench.variants.VARIANTS`; by default all but ``auto``.
        torchao: also the peer's variants.
        backend: of :data:`viditq.ops.BACKENDS`, for ours on CUDA; by default the fastest there.
        budget_s: seconds for the repetitions of one measurement.
        file: JSON to write after every row.
        command: for the record.
        track: shows progress.

    Raises:
        InputError: the device is not there, or a name is unknown.
    """
    where = resolve_device(device)
    cases = models_named(list(models))
    wanted = variants_named(variants, torchao=torchao)

    def measured() -> Iterator[Row]:
        for case in cases:
            bench = _CaseBench(case, kind == "blocks", where, budget_s)
            yield from bench.rows(wanted, track)

    backend = backend or fastest_backend(where)
    with use_backend(backend):
        return collect(kind, measured(), origin(where, command, backend), file=file)


@dataclass
class _CaseBench:
    """One model, as a whole or one block of each kind."""

    case: ModelCase
    blocks: bool
    device: torch.device
    budget_s: float

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.case.blocks) if self.blocks else (DENOISER,)

    def rows(self, variants: Sequence[Variant], track: Track) -> Iterator[ModelRow]:
        """One row per variant and part."""
        try:
            reference = self._run_reference(variants)
        except Exception as error:
            reason = f"the bf16 model does not run: {explain(error)}"
            for variant in variants:
                yield from self._skipped(variant, reason)
            return
        for variant in track(variants, self.case.name, len(variants)):
            yield from self._variant_rows(variant, reference)

    def _build(self) -> nn.Module:
        clear_memory(self.device)
        config = self.case.one_of_each if self.blocks else self.case.config
        return build(self.case.transformer, config, self.device, DTYPE)

    def _module(self, model: nn.Module, part: str) -> nn.Module:
        return model if part == DENOISER else model.get_submodule(f"{part}.0")

    @torch.no_grad()
    def _run_reference(self, variants: Sequence[Variant]) -> _Reference:
        model = self._build()
        arguments: dict[str, Arguments] = {}

        def note(part: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                # Dense, as from the block before; a first block may be given a transposed view.
                arguments[part] = tree_map_only(Tensor, Tensor.contiguous, (args, kwargs))

            return hook

        for part in self.parts:
            self._module(model, part).register_forward_pre_hook(note(part), with_kwargs=True)
        call = partial(model, **make_inputs(self.case, self.device, DTYPE))
        made = call()
        plans = dict.fromkeys(variant.plan for variant in variants)
        amax = {
            plan: largest_inputs(model, plan, call)
            for plan in plans
            if plan is not None and plan.granularity == "tensor"
        }
        outputs = {
            p: _joined(made) if p == DENOISER else _run(self._module(model, p), arguments[p])
            for p in self.parts
        }
        return _Reference(arguments, outputs, amax)

    def _variant_rows(self, variant: Variant, reference: _Reference) -> Iterator[ModelRow]:
        try:
            model = self._build()
            amax = None if variant.plan is None else reference.amax.get(variant.plan)
            prepared = prepare_(model, variant, tuple(self.case.blocks), amax)
            added = self._tune_(model, reference) if variant.tuned else 0
        except Exception as error:
            yield from self._skipped(variant, explain(error))
            return
        for part in self.parts:
            row = partial(
                ModelRow,
                op=variant.name,
                model=self.case.name,
                part=part,
                weight_bytes=prepared.weight_bytes and prepared.weight_bytes + added,
                fused_blocks=prepared.fused_blocks,
            )
            module = self._module(model, part)
            if variant.graph is not False:
                capture_(module)
            yield guarded(row, partial(self._timed, module, part, variant, reference))

    def _tune_(self, model: nn.Module, reference: _Reference) -> int:
        """Tune the model for what is timed; returns the bytes that its weights take more."""

        def run() -> None:
            for part in self.parts:
                _run(self._module(model, part), reference.arguments[part])

        return tune_(model, run).added_bytes

    @torch.no_grad()
    def _timed(
        self, module: nn.Module, part: str, variant: Variant, reference: _Reference
    ) -> dict[str, Any]:
        call = partial(_run, module, reference.arguments[part])
        outputs: list[Tensor] = []
        seconds: list[float] = []

        def first() -> None:
            seconds.append(wall_s(lambda: outputs.append(call()), self.device))

        with compiling(COMPILE_S) if variant.compiled else nullcontext():
            peak_bytes = peak_memory(first, self.device, total=True)
        graph = is_captured(module)
        if variant.graph and not graph:
            raise CannotRun("cannot be captured as a CUDA graph")
        arguments = reference.arguments[part]
        expected = _change(reference.outputs[part], arguments)
        check = near(_change(outputs.pop(), arguments), expected, variant.error)
        kernels: set[str] = set()
        # A graph allocates nothing when it is replayed: its first call has the peak.
        if not graph:
            with nullcontext(kernels) if variant.compiled else attention_kernels() as kernels:
                peak_bytes = peak_memory(call, self.device, total=True)
        return {
            "timing": measure(call, self.device, self.budget_s),
            "check": check,
            "peak_bytes": peak_bytes,
            "first_call_s": seconds[0],
            "attention": tuple(sorted(kernels)),
            "graph": graph,
        }

    def _skipped(self, variant: Variant, reason: str) -> Iterator[ModelRow]:
        for part in self.parts:
            yield ModelRow(op=variant.name, model=self.case.name, part=part, skipped=reason)


def _run(module: nn.Module, arguments: Arguments) -> Tensor:
    """The module's output."""
    args, kwargs = arguments
    return _joined(module(*args, **kwargs))


def _joined(output: Any) -> Tensor:
    """The tensor that a module gave; several end to end."""
    if isinstance(output, Tensor):
        return output
    return output[0] if len(output) == 1 else torch.cat([t.flatten() for t in output])


def _change(output: Tensor, arguments: Arguments) -> Tensor:
    """What a block adds to its first argument, where its mistakes are not hidden by the rest."""
    first = arguments[0][0] if arguments[0] else None
    if isinstance(first, Tensor) and first.shape == output.shape:
        return output.float() - first.float()
    return output
