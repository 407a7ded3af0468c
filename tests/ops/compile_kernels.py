"""Compiles the Triton kernels for chips that need not be there, and prints what came out as JSON.

A program of its own because ``triton.compile`` does not work where kernels are interpreted, which
is decided for the whole process. To add a kernel, add to :func:`cases`.

    python tests/ops/compile_kernels.py [part of a name]
"""
# ruff: noqa: T201

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

from viditq.ops.tiling import tiling


@dataclass(frozen=True)
class Case:
    """A kernel as a launch would compile it.

    Attributes:
        name: unique.
        kernel: the jitted function.
        arguments: of the kernel by name: Triton's word for the type (``"*bf16"``, ``"i32"``), the
            value of a compile-time argument, or ``None``.
        options: of the launch.
        chips: compute capabilities.
        at_most: upper bounds of :func:`facts`.
        at_least: lower bounds of them.
    """

    name: str
    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]
    chips: tuple[int, ...] = (80, 90)
    at_most: dict[str, int] = field(default_factory=dict)
    at_least: dict[str, int] = field(default_factory=dict)


def cases() -> Iterator[Case]:
    yield from row_kernels()
    yield from head_kernels()
    yield from product_kernels()
    yield from attention_kernels()


def row_kernels() -> Iterator[Case]:
    at_least = {"loads_of_16_bytes": 1, "stores_of_16_bytes": 1}
    rows = {"x": "*bf16", "stride": "i32", "codes": "*i8", "scale": "*fp32", "QMAX": 127}
    rows |= {"static": None, "center": None}
    ops = {
        "quantize_rows": {"M": "i32", "smooth": "*fp32"},
        "gelu_quantize": {
            **{"M": "i32", "smooth": "*fp32", "left": None, "left_stride": "i32"},
            **{"KIND": "gelu_tanh", "GATED": False},
        },
        "norm_quantize": {
            **dict.fromkeys(("weight", "bias")),
            **dict.fromkeys(("gain", "shift"), "*bf16"),
            **dict.fromkeys(("gain_stride", "shift_stride"), "i32"),
            **dict.fromkeys(("rows_per_batch", "programs_per_batch"), "i32"),
            "eps": "fp32",
            "smooth": "*fp32",
            "CENTER": True,
        },
    }
    widths = {
        "quantize_rows": (1152, 4608, 13824),
        "gelu_quantize": (4608, 13824),
        "norm_quantize": (1152, 5120),
    }
    for op, arguments in ops.items():
        kernel = import_module(f"viditq.ops.{op}.triton").kernel
        for features in widths[op]:
            for block, static, center in (
                (0, None, None),
                (128, None, None),
                (128, "*fp32", None),
                (128, None, "*fp32"),
            ):
                vectors = 2 if op == "norm_quantize" or center else 1
                tile = tiling(features, block, vectors=vectors)
                # A few registers too many, beside 112 for values and factors, cost little.
                stack = 48 if features == 13824 else 0
                yield Case(
                    f"{op} K={features} hadamard={block}{' static' if static else ''}"
                    f"{' center' if center else ''}",
                    kernel,
                    {**rows, **arguments, "static": static, "center": center, "TILE": tile},
                    tile.options,
                    (80, 90) if block and features == widths[op][0] else (90,),
                    {"stack_bytes": stack, "barriers": 12, "shared_bytes": 64},
                    at_least,
                )
    tile = tiling(15360, 128, left=3072)
    kernel = import_module("viditq.ops.gelu_quantize.triton").kernel
    yield Case(
        "gelu_quantize K=3072+12288 hadamard=128",
        kernel,
        {**rows, **ops["gelu_quantize"], "left": "*bf16", "TILE": tile},
        tile.options,
        (90,),
        {"stack_bytes": 0, "barriers": 12},
        at_least,
    )


def head_kernels() -> Iterator[Case]:
    from viditq.ops.norm_rotate.triton import blocks, kernel

    tensors = dict.fromkeys(("x", "weight", "out"), "*bf16")
    numbers = dict.fromkeys(("tokens", "x_sample", "x_token", "out_sample", "out_start"), "i32")
    numbers |= dict.fromkeys(("table_sample", "table_token", "table_head"), "i32")
    for name, heads, features, across, per_head, centred in (
        ("FLUX", 24, 128, False, False, False),
        ("Wan-1.3B", 12, 128, True, False, False),
        ("Wan-14B", 40, 128, True, False, False),
        ("LTX", 32, 64, True, True, False),
        ("SD3.5", 24, 64, False, None, False),
        ("CogVideoX-2B", 30, 64, False, None, True),
    ):
        *block, warps = blocks(heads, features)
        table = None if per_head is None else "*fp32"
        given = {**tensors, "bias": "*bf16" if centred else None}
        given |= {"cos": table, "sin": table, "eps": "fp32", **numbers}
        given |= {"H": heads, "D": features, "HEADS": block[0], "WIDTH": block[1]}
        given |= {"NORM": True, "CENTRED": centred, "ACROSS": across}
        given |= {"PER_HEAD": bool(per_head), "PITCH": 2}
        yield Case(
            f"norm_rotate {name}",
            kernel,
            given,
            {"num_warps": warps},
            # No value but the sum goes from warp to warp, and only across heads.
            at_most={"stack_bytes": 0, "shared_bytes": 4 * warps, "barriers": 2 * across},
            at_least={"loads_of_16_bytes": 2, "stores_of_16_bytes": 1},
        )


def product_kernels() -> Iterator[Case]:
    from viditq.ops.int4_linear.triton import BYTES, unpack_kernel
    from viditq.ops.int8_linear import tiles, triton

    sizes = dict.fromkeys(("M", "N", "K", "gate_rows", "gate_stride"), "i32")
    scales = {"x_scale": "*fp32", "scale": "*fp32", "bias": "*bf16", "out": "*bf16"}
    for fused in (False, True):
        follows = dict.fromkeys(("gate", "residual"), "*bf16" if fused else None)
        name = "with gate and residual" if fused else "plain"
        for tile in tiles.TILES[1 if fused else 0 :]:
            rows, columns, warps, stages = tile
            given = {"x": "*i8", "weight": "*i8", **scales, **follows, **sizes}
            given |= {"ONE_SCALE": False, "WHOLE_K": True, "GROUP": triton.GROUP}
            given |= {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": triton.BLOCK_K}
            for chip in (80, 90) if rows == columns else (90,):
                # wgmma multiplies 64 rows or more.
                wgmma = 1 if chip == 90 and rows >= 64 else 0
                yield Case(
                    f"int8_linear {rows}x{columns} {name}",
                    triton.int8_linear_kernel,
                    given,
                    {"num_warps": warps, "num_stages": stages},
                    (chip,),
                    {"stack_bytes": 0},
                    {"tensor_core": 2, "wgmma": wgmma, "loads_of_16_bytes": 1},
                )
        for widths in tiles.HOPPER_WIDTHS:
            yield _hopper_case(widths, fused, name)
    from viditq.ops.round_columns.triton import ROWS, kernel

    for old in (None, "*fp32"):
        sizes = dict.fromkeys(("size", "N", "factor_row", "factor_column", "scale_row"), "i32")
        tensors = dict.fromkeys(("target", "factor", "scale", "codes", "moved"), "*fp32")
        yield Case(
            f"round_columns {'gptq' if old is None else 'descend'}",
            kernel,
            {**tensors, "old": old, **sizes, "LOW": -7, "HIGH": 7, "BLOCK": 128, "ROWS": ROWS},
            {"num_warps": 1},
            at_most={"stack_bytes": 0, "barriers": 1},
        )
    from viditq.ops.unpack_tcq4.triton import kernel as trellis_kernel

    yield Case(
        "unpack tcq4",
        trellis_kernel,
        {"packed": "*u8", "weight": "*i8", "FEATURES": 4608, "BLOCKS": 3, "BYTES": 1024},
        {"num_warps": 4},
        at_most={"stack_bytes": 0, "barriers": 0},
        at_least={"stores_of_16_bytes": 1},
    )
    from viditq.ops.round_tcq4 import triton as trellis_rounding

    pointers = dict.fromkeys(("targets", "across", "moves", "settled"), "*fp32")
    for feedback in (False, True):
        yield Case(
            f"round tcq4, {'with' if feedback else 'without'} feedback",
            trellis_rounding.kernel,
            pointers
            | {"codes": "*i8", "costs": "*fp32", "paths": "*u32"}
            | {"K": "i32", "start": "i32", "end": "i32"}
            | {"FEEDBACK": feedback, "BLOCK": trellis_rounding.BLOCK},
            {"num_warps": 8},
            at_most={"stack_bytes": 0, "registers": 64},
        )
    yield Case(
        "unpack int4",
        unpack_kernel,
        {"packed": "*u8", "codes": "*i8", "total": "i32", "BYTES": BYTES},
        {},
        at_least={"loads_of_16_bytes": 1, "stores_of_16_bytes": 1},
    )


def _hopper_case(widths: tuple[int, int], fused: bool, name: str) -> Case:
    from viditq.ops.int8_linear import hopper

    def box(kind: str, rows: int, columns: int) -> str:
        layout = hopper.layout(rows, columns, gl.int8 if kind == "i8" else gl.bfloat16)
        return f"tensordesc<{kind}[{rows},{columns}],{layout!r}>"

    block_k, stages, skew = hopper.schedule(widths, fused)
    given = {"x": box("i8", hopper.BLOCK_M, block_k), "weight": box("i8", hopper.BOX, block_k)}
    given["out"] = box("bf16", hopper.BLOCK_M, hopper.BOX)
    given["residual"] = given["out"] if fused else None
    given |= {"FIRST": widths[0], "SECOND": widths[1]}
    given |= {"x_scale": "*fp32", "scale": "*fp32", "bias": "*bf16"}
    given |= {"gate": "*bf16" if fused else None, "ONE_SCALE": False, "ONE_GATE": fused}
    given |= dict.fromkeys(("M", "N", "K", "gate_rows", "gate_stride", "wide", "narrow"), "i32")
    given |= {"STAGES": stages, "SKEW": skew, "GROUP": hopper.GROUP}
    return Case(
        f"int8_linear hopper {widths[0]}+{widths[1]} {name}",
        hopper.int8_linear_kernel,
        given,
        {"num_warps": 8},
        (90,),
        {"stack_bytes": 0, "serialized": 0, "shared_bytes": 232_448},
        {"wgmma": 16},
    )


def attention_kernels() -> Iterator[Case]:
    from viditq.ops.attention import hopper
    from viditq.ops.attention.hopper_kernel import LAYOUTS

    names = ("q", "q_rest", "k", "k_rest", "v", "v_rest", "out")
    given = {
        name: f"tensordesc<bf16[1,{tokens},1,{width}],{LAYOUTS[width]!r}>"
        for name, (tokens, width) in zip(names, hopper.boxes(), strict=True)
    }
    given |= dict.fromkeys(("queries", "keys", "heads", "tiles"), "i32")
    given |= {"result": "*bf16", "scale": "fp32", "STAGES": hopper.STAGES}
    for bias in (None, "*bf16"):
        yield Case(
            f"attention hopper{' with bias' if bias else ''}",
            hopper.attention_kernel,
            {**given, "bias": bias},
            {"num_warps": 4},
            (90,),
            # A few registers too many (24 bytes with Triton 3.6) cost less than a warp-group.
            {"stack_bytes": 32 if bias else 0, "serialized": 0, "shared_bytes": 232_448},
            {"wgmma": 36},
        )


def compiled(case: Case, chip: int) -> Any:
    """The compiled kernel, every pointer and stride taken to be divisible by 16."""
    signature, constants, divisible = {}, {}, {}
    for i, parameter in enumerate(case.kernel.params):
        value = case.arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[(i,)] = "constexpr", value
            continue
        signature[parameter.name] = value
        if value[0] in "*i" and not parameter.do_not_specialize:
            divisible[(i,)] = [["tt.divisibility", 16]]
    make = GluonASTSource if isinstance(case.kernel, GluonJITFunction) else ASTSource
    source = make(case.kernel, signature, constants, divisible)
    return triton.compile(source, target=GPUTarget("cuda", chip, 32), options=case.options)


def facts(kernel: Any) -> dict[str, int]:
    """Registers, memory and the widths of accesses of a compiled kernel."""
    ptx = kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        sass = _run(knobs.nvidia.nvdisasm.path, "-c", file.name)
    used = dict(re.findall(r"(REG|STACK):(\d+)", usage))
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], (0x10|16)", ptx)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        chip = re.search(r"\.target (\w+)", ptx)[1]
        assembler = [knobs.nvidia.ptxas.path, "-v", "--gpu-name", chip, file.name]
        told = subprocess.run([*assembler, "-o", "/dev/null"], capture_output=True, text=True)
    return {
        "registers": int(used["REG"]),
        "stack_bytes": int(used["STACK"]),
        "shared_bytes": kernel.metadata.shared,
        "loads_of_16_bytes": ptx.count("ld.global.v4.b32") + len(copies),
        "stores_of_16_bytes": ptx.count("st.global.v4.b32"),
        "instructions": len(re.findall(r"/\*[0-9a-f]{4,}\*/", sass)),
        "shuffles": sass.count(" SHFL."),
        "barriers": sass.count(" BAR.SYNC"),
        "wgmma": ptx.count("wgmma.mma_async"),
        # wgmma that ptxas found it must wait for, one by one
        "serialized": told.stderr.count("are serialized"),
        "tensor_core": len(re.findall(r" (?:[HIQ]G?MMA)\.", sass)),
    }


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(part: str = "") -> None:
    for case in cases():
        for chip in case.chips:
            name = f"{case.name} sm_{chip}"
            if part in name:
                found = facts(compiled(case, chip))
                wanted = {"at_most": case.at_most, "at_least": case.at_least}
                print(json.dumps({"name": name, "facts": found, **wanted}))


if __name__ == "__main__":
    main(*sys.argv[1:])
