"""Full-size transformers with random weights, and their quantization without calibration data.

A model is made without storage, then filled on the device, so that it never exists twice.
Quantization rounds to the nearest code and balances with a random vector: numbers that say nothing
about quality, in modules that compute exactly what those of a calibrated model compute. The layers
stand for the same function as the float ones, so outputs can be compared.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from viditq.balancing import Balance, random_signs, rotation_block
from viditq.convert import group_layers, linear_named
from viditq.errors import PipelineError
from viditq.formats import TCQ4
from viditq.models import LayerInfo, adapter_for, loaded_dtype, transformer_class
from viditq.nn import CENTER_DTYPE, QuantLinear, empty_like
from viditq.ops import fastest_backend
from viditq.ops.quantize_rows import balance_rows
from viditq.plan import LayerPlan
from viditq.quantizers import levels, minmax_scale, pack, round_nearest

__all__ = [
    "attention_kernels",
    "block_linears",
    "build",
    "largest_inputs",
    "quantize_random_",
    "quantized_at_random",
]

WEIGHT_GAIN = 0.7
"""A layer's output is 0.7 times as large as its input: std 0.02 for 1152 features in."""

STD = {"scale_shift_table": 0.5, "bias": 0.1}
"""With modulation gates or biases near zero a wrong block would not show in the output."""


def build(
    transformer: str, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """A transformer with random weights, the same at every time on one device.

    Norms are the identity; what diffusers keeps in fp32 (``_keep_in_fp32_modules``) is fp32.
    """
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = transformer_class(transformer)(**config)
    generator = torch.Generator(device).manual_seed(0)
    for prefix, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            own = loaded_dtype(model, f"{prefix}.{name}", dtype)
            value = torch.empty(parameter.shape, dtype=own, device=device)
            if "Norm" in type(module).__name__:
                value.fill_(1.0 if name == "weight" else 0.0)
            else:
                std = STD.get(name) or WEIGHT_GAIN / value[0].numel() ** 0.5
                value.normal_(0.0, std, generator=generator)
            setattr(module, name, nn.Parameter(value, requires_grad=False))
    return model.to(device).eval()


def block_linears(model: nn.Module) -> dict[str, LayerInfo]:
    """The layers that viditq quantizes; none without an adapter, known or guessed."""
    try:
        return adapter_for(model).layers(model)
    except PipelineError:
        return {}


def quantize_random_(
    model: nn.Module, plan: LayerPlan, amax: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Quantize every block linear of ``model`` in place, all alike.

    Args:
        model: of a family with adapter, on any device.
        plan: ``smooth`` only says whether there is a smoothing vector.
        amax: () largest magnitude of each layer's balanced input, for static scales, as
            :func:`largest_inputs` finds it for this plan.
    """
    infos = adapter_for(model).layers(model)
    for name, balance in _random_balances(model, infos, plan).items():
        largest = None if amax is None else amax.get(name)
        linear = linear_named(model, name)
        model.set_submodule(name, _quantized(linear, plan, balance, largest))
    return model


def quantized_at_random(linear: nn.Linear, plan: LayerPlan, x: Tensor) -> QuantLinear:
    """One layer, quantized as :func:`quantize_random_` does, for inputs ``x`` (M, K)."""
    balance = _random_balance(linear.in_features, plan, 0, linear.weight.device)
    return _quantized(linear, plan, balance, _largest(x, balance))


def _random_balances(
    model: nn.Module, infos: Mapping[str, LayerInfo], plan: LayerPlan
) -> dict[str, Balance]:
    """Of the layers ``infos`` of ``model``, by name; readers of one input share theirs."""
    balances: dict[str, Balance] = {}
    for number, group in enumerate(group_layers(infos.values()).values()):
        device = linear_named(model, group[0].name).weight.device
        balance = _random_balance(group[0].in_features, plan, number, device)
        balances |= dict.fromkeys([info.name for info in group], balance)
    return balances


def _random_balance(features: int, plan: LayerPlan, seed: int, device: torch.device) -> Balance:
    block, smooth, center = rotation_block(features, plan.hadamard), None, None
    generator = torch.Generator().manual_seed(seed)
    if plan.smooth is not None:
        smooth = (0.25 * torch.randn(features, generator=generator)).exp()
    if plan.center:
        center = 0.25 * torch.randn(features, generator=generator)
        center = center.to(device, CENTER_DTYPE).float()
    if block:
        signs = random_signs(features, seed)
        smooth = signs if smooth is None else smooth * signs
    return Balance(None if smooth is None else smooth.to(device), block, center)


def _quantized(
    linear: nn.Linear, plan: LayerPlan, balance: Balance, amax: Tensor | None
) -> QuantLinear:
    weight = balance.weight(linear.weight.detach().float())
    quantized, fmt = empty_like(linear, plan), plan.weight_format
    if fmt is TCQ4:  # random codes are as good as a search for them
        codes = torch.randint(-8, 8, weight.shape, dtype=torch.int8, device=weight.device)
        scale = weight.std(1) / levels(codes, fmt).float().std()
    else:
        scale = minmax_scale(weight, fmt)
        codes = round_nearest(weight, scale, fmt)
    quantized.weight.data, quantized.scale.data = pack(codes, fmt), scale
    if quantized.bias is not None:
        bias = torch.zeros_like(quantized.bias) if linear.bias is None else linear.bias.data
        if balance.center is not None:
            bias = bias + (linear.weight.detach() @ balance.center.to(bias.dtype))
        quantized.bias.data = bias
    if quantized.smooth is not None:
        assert balance.smooth is not None
        quantized.smooth.data = balance.smooth.clone()
    if quantized.center is not None:
        assert balance.center is not None
        quantized.center.data = balance.center.to(CENTER_DTYPE)
    if quantized.input_scale is not None:
        assert amax is not None
        quantized.input_scale.data = amax / plan.activation_format.qmax
    return quantized


def largest_inputs(model: nn.Module, plan: LayerPlan, call: Callable[[], Any]) -> dict[str, Tensor]:
    """() fp32 largest magnitude of each block linear's input, balanced as ``plan`` wants it.

    Args:
        model: in floating point.
        plan: that :func:`quantize_random_` will be given.
        call: runs the model.
    """
    seen: dict[str, Tensor] = {}

    def note(name: str, balance: Balance) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            amax = _largest(arguments[0], balance)
            seen[name] = torch.maximum(amax, seen[name]) if name in seen else amax

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(note(name, balance))
        for name, balance in _random_balances(model, block_linears(model), plan).items()
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _largest(x: Tensor, balance: Balance) -> Tensor:
    """(…, K) float -> () fp32, the largest magnitude of it balanced."""
    return balance_rows(x, balance.smooth, balance.hadamard, balance.center).abs().amax()


@contextmanager
def attention_kernels() -> Iterator[set[str]]:
    """Collect which kernels attention takes inside the block, ours and torch's.

    None are seen where it falls back to plain matrix products.
    """
    found: set[str] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = func.overloadpacket.__name__
            if name == "attention" and fastest_backend(args[0].device) == "hopper":
                found.add("viditq")
            if "scaled_dot_product" in name:
                found.add(name.removeprefix("_scaled_dot_product_").removesuffix("_attention"))
            return func(*args, **(kwargs or {}))

    with Watch():
        yield found
