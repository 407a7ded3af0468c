"""Every family can be quantized, saved and loaded, and computes nearly what it did in float.

So can classes without adapter: who loads the checkpoint guesses what who saved it guessed.
"""

import pytest
import torch
from torch import nn

from tiny_transformers import CASES, WITHOUT_ADAPTER
from viditq import checkpoint
from viditq.calibration import (
    CalibrationInfo,
    CalibrationSet,
    model_fingerprint,
    observe,
    observe_gradients,
)
from viditq.convert import quantize_
from viditq.diagnostics import sqnr_db
from viditq.models import adapter_for
from viditq.nn import QuantLinear
from viditq.planning import make_plan
from viditq.recipe import load_recipe

STEPS = (0, 1, 2)
# Of the output, on a call that calibration has not seen.
LEAST_SQNR_DB = 30.0
# What it costs at least when the first layer gives nothing but its bias.
LOSS_DB = 10.0


def recorded(model, case, folder) -> CalibrationSet:
    """A calibration set of calls made by hand."""
    info = CalibrationInfo(
        source="random",
        model=model_fingerprint(model),
        prompts=("a red star",),
        num_steps=len(STEPS),
        steps=STEPS,
        guidance=1.0,
        seed=0,
    )
    calls = CalibrationSet.create(folder, info)
    calls.write_prompt(0, [(step, case.inputs(seed=step)) for step in STEPS])
    return calls


@torch.no_grad()
def loud(model: nn.Module) -> nn.Module:
    """``model`` with weights twice as large: as they are drawn, blocks hardly change their input,
    and a wrong one would not show."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight *= 2
    return model


@torch.inference_mode()
def output(model, inputs) -> torch.Tensor:
    return model(**inputs)[0]


@pytest.mark.parametrize("name", [*CASES, *WITHOUT_ADAPTER])
def test_quantized_saved_and_loaded(name, tmp_path):
    case = (CASES | WITHOUT_ADAPTER)[name]
    model, inputs = loud(case.model()), case.inputs(seed=len(STEPS))
    reference = output(model, inputs)
    calls = recorded(model, case, tmp_path / "recorded")
    stats = observe(model, calls, tmp_path / "stats")
    gradients = observe_gradients(model, calls, tmp_path / "gradients")
    plan = make_plan(model, load_recipe("w8a8"), stats, gradients)
    assert plan.model == (f"guessed:{name}" if name in WITHOUT_ADAPTER else name.split(",")[0])
    layers = adapter_for(model).layers(model)
    diagnostics = quantize_(model, plan, stats, gradients)
    assert set(diagnostics) == set(layers)
    assert {n for n, m in model.named_modules() if isinstance(m, QuantLinear)} == set(layers)
    quantized = output(model, inputs)
    sqnr = sqnr_db(quantized, reference)
    assert sqnr is not None
    assert sqnr > LEAST_SQNR_DB
    folder = checkpoint.save(model, tmp_path / "saved", plan, diagnostics=diagnostics)
    loaded = checkpoint.load(folder)
    assert torch.equal(output(loaded, inputs), quantized)
    summary = checkpoint.inspect(folder)
    assert (summary.transformer, summary.plan) == (type(model).__name__, plan)
    loaded.get_submodule(next(iter(layers))).scale.zero_()
    without = sqnr_db(output(loaded, inputs), reference)
    assert without is not None
    assert without < sqnr - LOSS_DB
