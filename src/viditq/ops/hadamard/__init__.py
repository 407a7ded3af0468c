"""Block Hadamard rotation of the last dimension."""

from viditq.ops.hadamard.reference import block_hadamard, hadamard_matrix

__all__ = ["block_hadamard", "hadamard_matrix"]
