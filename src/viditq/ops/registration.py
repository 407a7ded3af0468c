"""Making a function an operator of torch.

The reference runs on every device that has no faster implementation, and under every dispatch mode;
the shape function is what ``torch.compile`` and the meta device use. Defined through the library
interface rather than ``torch.library.custom_op``, whose per-call checks cost as much as a small
layer.
"""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["register_op"]

_LIBRARY = torch.library.Library("viditq", "DEF")


def register_op(
    schema: str, reference: Callable[..., Any], shape: Callable[..., Any]
) -> Callable[..., Any]:
    """Define ``viditq::<name>``.

    Args:
        schema: name and signature in torch's schema language; the op must not write its inputs.
        reference: the definition in plain torch.
        shape: the same signature, returning empty tensors.

    Returns:
        The operator.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"viditq::{name}", shape, lib=_LIBRARY)
    return getattr(torch.ops.viditq, name).default
