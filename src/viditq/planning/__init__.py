"""From a recipe to a plan."""

from viditq.planning.choose import candidates_for, make_plan

__all__ = ["candidates_for", "make_plan"]
