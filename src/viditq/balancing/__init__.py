"""Channel balancing: smoothing vectors and rotations that leave the layer's output unchanged."""

from viditq.balancing.balance import Balance, make_balance
from viditq.balancing.rotation import random_signs, rotation_block
from viditq.balancing.scaling import salience_profile, smooth_scale, static_profile

__all__ = [
    "Balance",
    "make_balance",
    "random_signs",
    "rotation_block",
    "salience_profile",
    "smooth_scale",
    "static_profile",
]
