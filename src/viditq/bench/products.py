"""Matrix products: ours, torch's and torchao's, each checked on some rows and then timed.

Every op gets its operands as it would find them in a model: int8 and fp8 products take codes and
scales that a row op has written, so their time is the product's alone; a *layer* (quantize and
multiply, ours and torchao's) takes bf16 activations. All write bf16 and add a bias, but
``torch._int_mm``, which writes int32.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viditq import ops
from viditq.balancing import random_signs, rotation_block
from viditq.bench.checks import near, within_twice
from viditq.bench.peer import quantize_peer_
from viditq.bench.record import CannotRun, guarded
from viditq.bench.results import ProductRow
from viditq.bench.timing import clear_memory, compiling, measure, peak_memory
from viditq.formats import INT4, INT8
from viditq.ops.int8_linear import reference
from viditq.ops.quantize_rows.reference import quantize_rows
from viditq.quantizers import minmax_scale, round_nearest

__all__ = [
    "BF16",
    "FP8",
    "INT4_LINEAR",
    "INT8_LINEAR",
    "PRODUCTS",
    "QUICK_PRODUCTS",
    "Product",
    "product_rows",
]

BF16, FP8 = "bf16 F.linear", "fp8 row-wise _scaled_mm"
INT8_LINEAR, INT4_LINEAR, TCQ4 = "int8_linear", "int4_linear", "unpack_tcq4 + int8_linear"


@dataclass(frozen=True)
class Product:
    """A layer of a model: ``m`` tokens, ``n`` features out, ``k`` features in."""

    name: str
    m: int
    n: int
    k: int


PRODUCTS = (
    Product("PixArt qkv", 8192, 3456, 1152),
    Product("PixArt up", 8192, 4608, 1152),
    Product("PixArt down", 8192, 1152, 4608),
    Product("Wan-14B ffn", 32760, 13824, 5120),
    Product("FLUX mlp", 4608, 12288, 3072),
    Product("FLUX proj", 4608, 3072, 3072),
    Product("Wan-1.3B up", 32760, 8960, 1536),
)
QUICK_PRODUCTS = tuple(p for p in PRODUCTS if p.name in ("PixArt down", "FLUX proj"))

CHECKED_ROWS = 64
PEER_ERROR = 0.01
"""Of a peer's product against fp64 of the same operands; bf16's own rounding is 0.002."""

LAYER_ERROR = 0.1
"""Of a layer that quantizes normal random numbers to 8 bits: 0.01 … 0.04 for int8 and fp8."""

COMPILE_S = 180.0


@dataclass(frozen=True)
class _Candidate:
    """One way to compute a product: ``call`` runs it, ``check`` judges what it returned."""

    call: Callable[[], Any]
    check: Callable[[Any], str]
    compiled: bool = False


def product_rows(product: Product, device: torch.device, *, torchao: bool) -> Iterator[ProductRow]:
    """One row per op that can compute ``product``, or cannot and says why."""
    makers: dict[str, Callable[[_Operands], _Candidate]] = {
        BF16: _bf16,
        INT8_LINEAR: _int8,
        INT4_LINEAR: _int4,
        TCQ4: _tcq4,
        "torch._int_mm": _int_mm,
        FP8: _fp8,
        "quantize_rows + int8_linear": _layer,
    }
    if torchao:
        makers["torchao int8 dynamic, compiled"] = partial(_torchao, kind="int8")
        makers["torchao fp8 row-wise, compiled"] = partial(_torchao, kind="fp8")
    # Made inside the first guarded row, so that shapes too large for the device cost only theirs.
    operands = cache(partial(_Operands, product, device))
    shape = {"case": product.name, "m": product.m, "n": product.n, "k": product.k}
    for name, make in makers.items():
        clear_memory(device)
        yield guarded(partial(ProductRow, op=name, **shape), partial(_timed, make, operands))


@torch.no_grad()
def _timed(
    make: Callable[["_Operands"], _Candidate], make_operands: Callable[[], "_Operands"]
) -> dict[str, Any]:
    operands = make_operands()
    candidate = make(operands)
    with compiling(COMPILE_S) if candidate.compiled else nullcontext():
        result = candidate.call()
    check = candidate.check(result)
    del result
    timing = measure(candidate.call, operands.device)
    product = operands.product
    return {
        "timing": timing,
        "check": check,
        "peak_bytes": peak_memory(candidate.call, operands.device, total=False),
        "tops": 2 * product.m * product.n * product.k / timing.median_ms / 1e9,
    }


class _Operands:
    """Random operands of one product, and the rows on which results are checked."""

    def __init__(self, product: Product, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        m, n, k = product.m, product.n, product.k

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

        self.product, self.device = product, device
        self.x, self.weight, self.bias = normal(m, k), normal(n, k) * 0.02, normal(n) * 0.02
        # Codes as they are in a model, bell-shaped: what a chip draws, and so its clock, depends on
        # how many bits change, and uniform ones would change more than those of the fp8 peer.
        self.x_codes, self.x_scale = quantize_rows(self.x, None, 0, 8)
        weight = self.weight.float()
        self.scale, self.small_scale = minmax_scale(weight, INT8), minmax_scale(weight, INT4)
        self.weight_codes = round_nearest(weight, self.scale, INT8)
        self.small_codes = round_nearest(weight, self.small_scale, INT4)
        self.rows = torch.linspace(0, m - 1, min(m, CHECKED_ROWS), device=device).long()

    def integer_check(self, weight_codes: Tensor, scale: Tensor, y: Tensor) -> str:
        """``y`` (M, N) of codes times codes, scaled, with bias, against fp64 and torch's fp32."""
        x, x_scale = self.x_codes[self.rows], self.x_scale[self.rows]
        exact = x.double() @ weight_codes.double().T
        exact = exact * x_scale.double()[:, None] * scale.double() + self.bias.double()
        torchs = reference.int8_linear(
            x, x_scale, weight_codes, scale, self.bias, None, None, torch.bfloat16
        )
        return within_twice(y[self.rows], torchs, exact)

    def float_check(self, allowed: float, y: Tensor) -> str:
        """``y`` (M, N) of the bf16 layer, against fp64."""
        exact = F.linear(self.x[self.rows].double(), self.weight.double(), self.bias.double())
        return near(y[self.rows], exact, allowed)


def _bf16(o: _Operands) -> _Candidate:
    return _Candidate(lambda: F.linear(o.x, o.weight, o.bias), partial(o.float_check, PEER_ERROR))


def _int8(o: _Operands) -> _Candidate:
    return _Candidate(
        lambda: ops.int8_linear(
            o.x_codes, o.x_scale, o.weight_codes, o.scale, o.bias, torch.bfloat16
        ),
        partial(o.integer_check, o.weight_codes, o.scale),
    )


def _int4(o: _Operands) -> _Candidate:
    packed = ops.pack_int4(o.small_codes)
    return _Candidate(
        lambda: ops.int4_linear(
            o.x_codes, o.x_scale, packed, o.small_scale, o.bias, torch.bfloat16
        ),
        partial(o.integer_check, o.small_codes, o.small_scale),
    )


def _tcq4(o: _Operands) -> _Candidate:
    """Every sequence of codes is one of the trellis, so those of ``int4`` do."""
    packed, k = ops.pack_int4(o.small_codes), o.product.k

    def call() -> Tensor:
        weight = ops.unpack_tcq4(packed, k)
        return ops.int8_linear(o.x_codes, o.x_scale, weight, o.small_scale, o.bias, torch.bfloat16)

    return _Candidate(call, partial(o.integer_check, ops.unpack_tcq4(packed, k), o.small_scale))


def _int_mm(o: _Operands) -> _Candidate:
    _need_cuda(o)

    def check(y: Tensor) -> str:
        exact = o.x_codes[o.rows].double() @ o.weight_codes.double().T
        return near(y[o.rows], exact, 0.0)

    return _Candidate(lambda: torch._int_mm(o.x_codes, o.weight_codes.T), check)


def _fp8(o: _Operands) -> _Candidate:
    """Row-wise scales, fast accumulation: the fastest product that torch itself has."""
    _need_cuda(o)
    x, x_scale = ops.quantize_rows_fp8(o.x)
    weight, scale = ops.quantize_rows_fp8(o.weight)

    def call() -> Tensor:
        return torch._scaled_mm(
            x,
            weight.T,
            x_scale[:, None],
            scale[None],
            bias=o.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

    def check(y: Tensor) -> str:
        exact = x.float()[o.rows].double() @ weight.float().double().T
        exact = exact * x_scale[o.rows, None].double() * scale.double() + o.bias.double()
        return near(y[o.rows], exact, PEER_ERROR)

    return _Candidate(call, check)


def _layer(o: _Operands) -> _Candidate:
    """The whole drop-in layer, balanced: what takes the place of ``F.linear`` in a model."""
    block = rotation_block(o.product.k, 128)
    smooth = random_signs(o.product.k, 0).to(o.device)
    weight = ops.block_hadamard(o.weight.float() * smooth, block)
    scale = minmax_scale(weight, INT8)
    weight = round_nearest(weight, scale, INT8)

    def call() -> Tensor:
        codes, x_scale = ops.quantize_rows(o.x, smooth, block)
        return ops.int8_linear(codes, x_scale, weight, scale, o.bias, torch.bfloat16)

    return _Candidate(call, partial(o.float_check, LAYER_ERROR))


def _torchao(o: _Operands, kind: str) -> _Candidate:
    linear = nn.Linear(o.product.k, o.product.n, device=o.device, dtype=torch.bfloat16)
    linear.weight.data, linear.bias.data = o.weight.clone(), o.bias.clone()
    layer = nn.Sequential(linear)
    quantize_peer_(layer, kind, lambda module, _: isinstance(module, nn.Linear))
    # Each shape compiles anew; after a few, the compiler would give up on this layer.
    torch.compiler.reset()
    layer.compile(dynamic=False)
    return _Candidate(lambda: layer(o.x), partial(o.float_check, LAYER_ERROR), compiled=True)


def _need_cuda(o: _Operands) -> None:
    if o.device.type != "cuda":
        raise CannotRun("compared on a GPU only")
