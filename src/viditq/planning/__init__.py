"""From a recipe to a plan."""

from viditq.planning.choose import make_plan

__all__ = ["make_plan"]
