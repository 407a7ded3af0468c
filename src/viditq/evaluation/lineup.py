"""Which recipes a contest is between, and what each is set against.

A *shootout* sets every method against viditq's own recipe of the same bits. A *ladder* is a list of
recipes, each set against the one before, so that the gain of every step is seen. This module only
reads recipes: what does not exist is refused here, before anything is computed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from viditq.errors import PlanError
from viditq.recipe import Recipe, list_methods, list_presets, load_ladder, load_recipe

__all__ = ["Lineup", "ladder_lineup", "shootout_lineup"]


@dataclass(frozen=True)
class Lineup:
    """The recipes of a contest.

    Attributes:
        kind: ``shootout`` or ``ladder``.
        bits: like ``w4a8``.
        recipes: in order; viditq's own is the first of a shootout.
        absent: one sentence for each method that does not exist at these bits.
    """

    kind: Literal["shootout", "ladder"]
    bits: str
    recipes: tuple[Recipe, ...]
    absent: tuple[str, ...] = ()

    def over(self, name: str) -> str | None:
        """What the recipe ``name`` is set against; None for viditq's own and for the first step."""
        names = [recipe.name for recipe in self.recipes]
        if self.kind == "shootout":
            return names[0] if name != names[0] else None
        place = names.index(name) if name in names else 0
        return names[place - 1] if place else None


def shootout_lineup(bits: str, methods: str = "all") -> Lineup:
    """viditq's own recipe for ``bits`` and the methods to set against it.

    Args:
        bits: like ``w4a8``.
        methods: names of methods, other recipes (``w8a8-smoothquant``) and TOML files of one's
            own, with commas; ``all`` stands for every method that exists at these bits. A file that
            leaves the bits open gets these.

    Raises PlanError for an unknown name, and for a method that was named but does not exist at
    these bits.
    """
    if bits not in list_presets():
        raise PlanError(f"viditq has no recipe for {bits!r}; it has {', '.join(list_presets())}.")
    found = {bits: load_recipe(bits)}
    absent = []
    for word in filter(None, (word.strip() for word in methods.split(","))):
        if word != "all":
            recipe = _named(word, bits)
            if found.setdefault(recipe.name, recipe) != recipe:
                raise PlanError(f"Two recipes are called {recipe.name}; rename one.")
            continue
        for method in list_methods():
            try:
                recipe = load_recipe(f"{bits}-{method}")
            except PlanError as error:
                absent.append(str(error))
            else:
                found[recipe.name] = recipe
    if len(found) == 1:
        raise PlanError(f"Nothing is set against {bits}: name some of {', '.join(list_methods())}.")
    return Lineup("shootout", bits, tuple(found.values()), tuple(absent))


def ladder_lineup(ladder: str | Path, bits: str) -> Lineup:
    """The steps of a ladder, by its name or TOML file, at ``bits``; PlanError as for recipes."""
    return Lineup("ladder", bits, tuple(load_ladder(ladder, bits)))


def _named(word: str, bits: str) -> Recipe:
    if word in list_methods():
        return load_recipe(f"{bits}-{word}")
    recipe = load_recipe(word)
    own = recipe.default.weight, recipe.default.activation
    return recipe.at(bits) if own == (None, None) else recipe
