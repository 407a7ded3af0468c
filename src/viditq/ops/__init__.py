"""Operations on raw tensors, one folder each.

``reference.py`` is the definition in plain torch (of ``round_tcq4`` in Numba, since there columns
come one after the other); it runs everywhere and is what faster implementations are compared with.
``triton.py`` is for any CUDA chip, ``hopper.py`` for sm_90; ``cuda.py`` is, in their place, what
torch itself can do there.
``__init__.py`` checks arguments and registers the op with
``torch.library``, so that device dispatch, ``torch.compile(fullgraph=True)`` and CUDA graphs work.
Ops know shapes and bits but no :class:`~viditq.formats.Format`, plan or module.

Shapes: M tokens (rows), K features in, N features out.
"""

from viditq.ops.attention import attention, gains_by_kernel
from viditq.ops.fp8_linear import fp8_linear, quantize_rows_fp8
from viditq.ops.gelu_quantize import gelu_quantize
from viditq.ops.hadamard import block_hadamard
from viditq.ops.int4_linear import int4_linear
from viditq.ops.int8_linear import int8_linear
from viditq.ops.joint_linear import joint_linear
from viditq.ops.norm_quantize import norm_quantize
from viditq.ops.norm_rotate import Stream, norm_rotate
from viditq.ops.pack import pack_int4, pack_int6, unpack_int4, unpack_int6
from viditq.ops.quantize_rows import balance_rows, quantize_rows
from viditq.ops.registration import BACKENDS, fastest_backend, use_backend
from viditq.ops.round_columns import round_columns
from viditq.ops.round_tcq4 import round_tcq4
from viditq.ops.unpack_tcq4 import unpack_tcq4, window_values

__all__ = [
    "BACKENDS",
    "Stream",
    "attention",
    "balance_rows",
    "block_hadamard",
    "fastest_backend",
    "fp8_linear",
    "gains_by_kernel",
    "gelu_quantize",
    "int4_linear",
    "int8_linear",
    "joint_linear",
    "norm_quantize",
    "norm_rotate",
    "pack_int4",
    "pack_int6",
    "quantize_rows",
    "quantize_rows_fp8",
    "round_columns",
    "round_tcq4",
    "unpack_int4",
    "unpack_int6",
    "unpack_tcq4",
    "use_backend",
    "window_values",
]
