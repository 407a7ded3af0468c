"""Recipes: what is to be done to a model's layers, as rules that people write.

A *recipe* is a TOML file of a few lines: defaults and rules by role. ``Recipe.resolve`` turns it
into candidates for every layer of a model; planning picks one each; the result is a plan. A
*method* of the literature is a recipe that leaves the bits open: ``w4a8-quarot`` is QuaRot with
4-bit weights and 8-bit activations, and ``w4a8`` alone is viditq's own. A *ladder* is a list of
recipes, each of which changes something in the one before. Nothing here touches a tensor. Unknown
keys are errors.
"""

import fnmatch
import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from viditq.errors import PlanError
from viditq.plan import (
    ROLES,
    ActivationFormat,
    Alpha,
    Block,
    Granularity,
    Group,
    LayerPlan,
    Profile,
    Rank,
    Rounding,
    Value,
    WeightFormat,
    validation_sentence,
)

__all__ = [
    "Recipe",
    "Refine",
    "Rule",
    "Search",
    "list_ladders",
    "list_methods",
    "list_presets",
    "load_ladder",
    "load_recipe",
]

BITS = re.compile(r"w([468])a([468])")
Smooth = Alpha | Literal["none"]
T = TypeVar("T")
Some = Annotated[list[T], Field(min_length=1)]


class Search(Value):
    """Like :class:`~viditq.plan.LayerPlan`, but some fields may list candidates to choose from.

    ``smooth = "none"`` stands for no smoothing.
    """

    weight: WeightFormat | None = None
    activation: ActivationFormat | None = None
    granularity: Granularity | None = None
    group: Group | Some[Group] | None = None
    zero_point: bool | None = None
    smooth: Smooth | Some[Smooth] | None = None
    profile: Profile | Some[Profile] | None = None
    center: bool | None = None
    hadamard: Block | Some[Block] | None = None
    rank: Rank | Some[Rank] | None = None
    rounding: Rounding | None = None
    clip: bool | None = None
    bias_correction: bool | None = None


class Rule(Search):
    """A :class:`Search` for the layers whose role and name match; later rules win.

    ``roles`` and ``layers`` are shell patterns (``ffn.*``, ``transformer_blocks.0.*``). ``float``
    keeps the matching layers in floating point, or takes back that an earlier rule did so.
    """

    roles: Some[str] = Field(default=["*"])
    layers: Some[str] = Field(default=["*"])
    float: bool | None = None

    @model_validator(mode="after")
    def _roles_exist(self) -> "Rule":
        for pattern in self.roles:
            if not fnmatch.filter(ROLES, pattern):
                raise ValueError(f"no role matches {pattern!r}; roles are {', '.join(ROLES)}")
        return self

    def matches(self, name: str, role: str) -> bool:
        return any(fnmatch.fnmatchcase(role, p) for p in self.roles) and any(
            fnmatch.fnmatchcase(name, p) for p in self.layers
        )


class Refine(Value):
    """How the quantized model learns from the float one (:mod:`viditq.refining`).

    Attributes:
        updates: of codes, scales, smoothing, biases and what stayed float.
        samples: sampling trajectories of the float model to learn from.
        batch: samples that an update learns from.
    """

    updates: int = Field(default=1000, ge=1, strict=True)
    samples: int = Field(default=1024, ge=1, strict=True)
    batch: int = Field(default=128, ge=1, strict=True)


class Recipe(Value):
    """Rules by role that resolve to candidates for each layer of any model."""

    name: str
    default: Search = Search()
    rule: list[Rule] = Field(default=[])
    refine: Refine | None = None

    def resolve(self, roles: Mapping[str, str]) -> dict[str, list[LayerPlan]]:
        """Candidates for every layer that is to be quantized.

        Args:
            roles: role of each layer, by qualified name.
        """
        resolved: dict[str, list[LayerPlan]] = {}
        for rule in self.rule:
            for pattern in rule.layers:
                if not fnmatch.filter(roles, pattern):
                    raise PlanError(
                        f"Recipe {self.name}: no layer of the model matches {pattern!r}; layers "
                        f"are called like {next(iter(roles), '')}."
                    )
        for name, role in roles.items():
            fields = _given(self.default)
            keep_float = False
            for rule in self.rule:
                if rule.matches(name, role):
                    keep_float = keep_float if rule.float is None else rule.float
                    fields |= _given(rule)
            if not keep_float:
                resolved[name] = _candidates(fields, f"Recipe {self.name!r}, layer {name!r}")
        return resolved

    @property
    def needs_gradients(self) -> bool:
        """Whether a layer may be rounded two-sidedly."""
        return any(search.rounding == "two_sided" for search in (self.default, *self.rule))

    def at(self, bits: str) -> "Recipe":
        """This method with weights and activations of ``bits``, like ``w4a8``.

        A method that is made for a format of its own (fp8) can only have its bits.
        """
        numbers = BITS.fullmatch(bits)
        if numbers is None:
            raise PlanError(f"Bits are given like w4a8, with 4, 6 or 8 each, not {bits!r}.")
        name = f"{bits}-{self.name}"
        own = self.default.weight, self.default.activation
        if own == (None, None):
            formats = {"weight": f"int{numbers[1]}", "activation": f"int{numbers[2]}"}
            default = self.default.model_copy(update=formats)
            return self.model_copy(update={"name": name, "default": default})
        if own != (f"fp{numbers[1]}", f"fp{numbers[2]}"):
            raise PlanError(
                f"{self.name} has {own[0]} weights and {own[1]} activations; there is no {name}."
            )
        return self.model_copy(update={"name": name})


def _given(search: Search) -> dict[str, Any]:
    """The fields of a plan that ``search`` says something about."""
    return search.model_dump(exclude_none=True, include=set(Search.model_fields))


def _candidates(fields: dict[str, Any], where: str) -> list[LayerPlan]:
    """Every combination of the listed values, in the order they are written."""
    choices = {k: v if isinstance(v, list) else [v] for k, v in fields.items()}
    choices["smooth"] = [None if a == "none" else a for a in choices.get("smooth", [None])]
    try:
        return [LayerPlan(**dict(zip(choices, c, strict=True))) for c in product(*choices.values())]
    except ValidationError as error:
        raise PlanError(f"{where}: {validation_sentence(error)}") from None


def list_presets() -> list[str]:
    """Names of viditq's own recipes, one for each pair of bits."""
    return [name for name in _names(_recipes()) if BITS.fullmatch(name)]


def list_methods() -> list[str]:
    """Names of the methods of the literature; ``w4a8-NAME`` is one of them at these bits."""
    return _names(_recipes() / "methods")


def list_ladders() -> list[str]:
    """Names of the ladders that come with viditq."""
    return _names(_recipes() / "ladders")


def load_recipe(source: str | Path) -> Recipe:
    """The recipe called ``source``, or in the TOML file ``source``.

    Names are those of :func:`list_presets`, ``w4a8-tcq``, ``w4a8-refined``, ``w4a8-tcq-refined``,
    and ``BITS-METHOD`` with one of :func:`list_methods`.
    """
    name, own = str(source), _names(_recipes())
    bits, _, method = name.partition("-")
    if name in own:
        return _recipe(_read(_recipes() / f"{name}.toml", name), name, name)
    if method in list_methods() and BITS.fullmatch(bits):
        file = _recipes() / "methods" / f"{method}.toml"
        return _recipe(_read(file, method), method, name).at(bits)
    if Path(source).suffix == ".toml" and Path(source).is_file():
        return _recipe(_read(Path(source), name), Path(source).stem, name)
    raise PlanError(
        f"No recipe {name!r}: give one of {', '.join(own)}, bits with a "
        f"method (w4a8-{', -'.join(list_methods())}), or a .toml file."
    )


def load_ladder(source: str | Path, bits: str) -> list[Recipe]:
    """The recipes of the ladder called ``source``, or in the TOML file ``source``, at ``bits``.

    A step says what it changes in the one before; the recipes are called ``BITS-NUMBER-NAME``.
    """
    if str(source) in list_ladders():
        file = _recipes() / "ladders" / f"{source}.toml"
    elif Path(source).suffix == ".toml" and Path(source).is_file():
        file = Path(source)
    else:
        raise PlanError(
            f"No ladder {str(source)!r}: give one of {', '.join(list_ladders())} or a .toml file."
        )
    steps = _read(file, str(source)).get("step")
    if not isinstance(steps, list) or not all(isinstance(s, dict) and "name" in s for s in steps):
        raise PlanError(f"Ladder {source}: a ladder is a list of [[step]], each with a name.")
    default: dict[str, Any] = {}
    ladder = []
    for number, step in enumerate(steps, 1):
        default |= {key: value for key, value in step.items() if key != "name"}
        name = f"{number}-{step['name']}"
        ladder.append(_recipe({"default": default}, name, str(source)).at(bits))
    return ladder


def _recipes() -> Traversable:
    return resources.files("viditq") / "recipes"


def _names(folder: Traversable) -> list[str]:
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def _read(file: Traversable | Path, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except ValueError as error:  # also what is no UTF-8
        raise PlanError(f"Recipe {source}: not valid TOML ({error}).") from None


def _recipe(fields: dict[str, Any], name: str, source: str) -> Recipe:
    if "name" in fields:
        raise PlanError(f"Recipe {source}: name: unknown field; a recipe is called as its file is.")
    try:
        return Recipe(name=name, **fields)
    except ValidationError as error:
        raise PlanError(f"Recipe {source}: {validation_sentence(error)}") from None
