"""Blocks with random quantized layers, denoisers with recorded inputs, and a count of ops."""

from collections import Counter

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_flux import (
    FluxPosEmbed,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from viditq import checkpoint
from viditq.calibration import move
from viditq.models import basic_block, flux, wan
from viditq.nn import QuantLinear, empty_like
from viditq.plan import LayerPlan
from viditq.quantizers import pack

B, S, T, C, HEADS = 2, 6, 5, 32, 2
PLAN = LayerPlan(smooth=0.5, hadamard=16)
FLUX_BLOCKS = {"double": FluxTransformerBlock, "single": FluxSingleTransformerBlock}


def random_layer(linear: nn.Linear, plan: LayerPlan, smooth: torch.Tensor) -> QuantLinear:
    layer, fmt = empty_like(linear, plan), plan.weight_format
    shape = (linear.out_features, linear.in_features)
    layer.weight.data = pack(torch.randint(fmt.qmin, fmt.qmax + 1, shape, dtype=torch.int8), fmt)
    layer.scale.data = (torch.rand(shape[0]) + 0.5) / fmt.qmax / shape[1] ** 0.5
    if layer.bias is not None:
        layer.bias.data = torch.randn(shape[0]) / 10
    if layer.smooth is not None:
        layer.smooth.data = smooth.clone()
    if layer.center is not None:  # the same for all who read one input, as ``smooth`` is
        layer.center.data = smooth.log().to(layer.center.dtype)
    if layer.input_scale is not None:
        layer.input_scale.data = torch.tensor(0.02)
    return layer


def quantize_layers_(block, shared_inputs, plan, plans=None, wanted=lambda name: True):
    """Random quantized layers in ``block``; readers of one input are smoothed alike.

    ``plans`` has those of layers, by name, that are not to have ``plan``; None leaves one float.
    """
    first = {name: names[0] for names in shared_inputs for name in names}
    smooths = {}
    linears = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    for name, linear in linears.items():
        smooth = smooths.setdefault(first.get(name, name), torch.rand(linear.in_features) + 0.5)
        if wanted(name) and (own := (plans or {}).get(name, plan)):
            block.set_submodule(name, random_layer(linear, own, smooth))
    return block.requires_grad_(False)


@pytest.fixture
def make_block():
    """A block, by ``make_block(plan, plans={name: another plan}, **options)``; None is float."""

    def make(plan=PLAN, plans=None, cross=True, **options):
        torch.manual_seed(1)
        settings = {
            "norm_type": "ada_norm_single",
            "activation_fn": "gelu-approximate",
            "cross_attention_dim": C if cross else None,
            "attention_bias": True,
            "norm_elementwise_affine": False,
            "norm_eps": 1e-6,
        }
        block = BasicTransformerBlock(C, HEADS, C // HEADS, **(settings | options)).eval()
        return quantize_layers_(block, basic_block.SHARED_INPUTS, plan, plans)

    return make


@pytest.fixture
def make_wan_block():
    """A block of Wan, as ``make_block`` makes them."""

    def make(plan=PLAN, plans=None, **options):
        torch.manual_seed(1)
        settings = {"dim": C, "ffn_dim": 3 * C, "num_heads": HEADS, "cross_attn_norm": True}
        block = WanTransformerBlock(**(settings | options)).eval()
        for module in block.modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is not None:
                module.weight.data = torch.rand(C) + 0.5
                if isinstance(module, nn.LayerNorm):
                    module.bias.data = torch.randn(C) / 10
        return quantize_layers_(block, wan.SHARED_INPUTS, plan, plans)

    return make


@pytest.fixture
def make_flux():
    """A ``double`` or ``single`` block of FLUX, by ``make_flux(kind, plan, plans)`` likewise."""

    def make(kind, plan=PLAN, plans=None):
        torch.manual_seed(1)
        block = FLUX_BLOCKS[kind](C, HEADS, C // HEADS).eval()
        for name, parameter in block.named_parameters():
            if name.startswith("norm"):
                parameter.data = torch.randn(parameter.shape) / 4
            elif "norm" in name:
                parameter.data = torch.rand(parameter.shape) + 0.5
        return quantize_layers_(
            block, flux.SHARED_INPUTS, plan, plans, lambda name: not name.startswith("norm")
        )

    return make


@pytest.fixture
def inputs():
    """Arguments of a block: two captions, the first with two tokens of padding."""
    mask = torch.zeros(B, 1, T)
    mask[0, :, 3:] = -10000.0
    return {
        "hidden_states": torch.randn(B, S, C),
        "encoder_hidden_states": torch.randn(B, T, C),
        "encoder_attention_mask": mask,
        "timestep": torch.randn(B, 6 * C) / 2,
    }


@pytest.fixture
def flux_inputs():
    """Arguments of a block of FLUX."""
    positions = torch.arange(3.0 * (T + S)).view(T + S, 3)
    return {
        "hidden_states": torch.randn(B, S, C),
        "encoder_hidden_states": torch.randn(B, T, C),
        "temb": torch.randn(B, C),
        "image_rotary_emb": FluxPosEmbed(100, [4, 6, 6])(positions),
    }


class CountOps(TorchDispatchMode):
    """Counts the ops of viditq, under their names, and what waits for the device, as ``sync``."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if func.namespace == "viditq":
            self.counts[name] += 1
        if name in ("_local_scalar_dense", "nonzero", "equal"):
            self.counts["sync"] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def count_ops():
    """``count_ops(f, **arguments)``: how often each op of viditq ran in one call."""

    def count(function, **arguments):
        with torch.no_grad(), CountOps() as mode:
            function(**arguments)
        return dict(mode.counts)

    return count


@pytest.fixture
def denoiser(quantized):
    """A quantized transformer, as loaded on the CPU, by ``denoiser(kind, preset, dtype)``."""

    def load(kind, preset, dtype=None):
        return checkpoint.load(quantized(kind, preset) / "transformer", dtype=dtype)

    return load


@pytest.fixture
def outputs(recorded):
    """What a transformer makes of the recorded calls of its kind, fp32."""

    def run(model, kind, dtype=torch.float32):
        with torch.no_grad():
            calls = [_cast(move(call.arguments, "cpu"), dtype) for call in recorded(kind)]
            made = [model(**{**call, "return_dict": False})[0] for call in calls]
            return torch.cat([each.float() for each in made])

    return run


def _cast(value, dtype):
    if isinstance(value, dict):
        return {key: _cast(each, dtype) for key, each in value.items()}
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if is_float else value
