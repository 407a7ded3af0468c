"""Which layers of a model a plan names, and empty quantized layers in their places.

Replacing reads and writes no numbers; a checkpoint or the converter fills the layers.
"""

from torch import nn

from viditq.errors import PlanError
from viditq.models import LayerInfo, adapter_for
from viditq.nn.fp8 import Fp8Linear
from viditq.nn.linear import QuantLinear
from viditq.nn.simulated import SimulatedLinear
from viditq.plan import LayerPlan, Plan

__all__ = ["empty_like", "planned_layers", "replace_"]


def empty_like(linear: nn.Linear, plan: LayerPlan) -> QuantLinear:
    """An empty layer of the plan's kind, with the shape, device and dtype of ``linear``."""
    kind = QuantLinear
    if plan.simulated:
        kind = SimulatedLinear
    elif plan.weight == "fp8":
        kind = Fp8Linear
    return kind(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        plan,
        linear.weight.device,
        linear.weight.dtype,
    )


def replace_(model: nn.Module, plan: Plan) -> nn.Module:
    """Put empty quantized layers in the planned places, to be filled from a checkpoint.

    Args:
        model: the float model, usually on the meta device.
        plan: of the checkpoint; it says which tensors each layer has.
    """
    for info in planned_layers(model, plan).values():
        linear = model.get_submodule(info.name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(info.name, empty_like(linear, plan.layers[info.name]))
    return model


def planned_layers(model: nn.Module, plan: Plan) -> dict[str, LayerInfo]:
    """The model's layers that ``plan`` names; :class:`PlanError` if it was made for others."""
    adapter = adapter_for(model)
    if plan.model != adapter.name:
        raise PlanError(f"The plan was made for {plan.model!r}, the model is {adapter.name!r}.")
    layers = adapter.layers(model)
    if unknown := set(plan.layers) - set(layers):
        raise PlanError(
            f"The plan names the layer {min(unknown)!r}, which {type(model).__name__} does not "
            f"have; was it made for another model?"
        )
    return {name: info for name, info in layers.items() if name in plan.layers}
