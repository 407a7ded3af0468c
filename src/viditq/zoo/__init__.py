"""Small pipelines that come with the package, really trained, and all that measures them."""

from viditq.zoo.catalog import BUNDLED, bundled_path, calibration_prompts, held_out_prompts

__all__ = ["BUNDLED", "bundled_path", "calibration_prompts", "held_out_prompts"]
