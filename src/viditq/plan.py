"""What is done to each layer: recipes (rules, written by people) and plans (resolved, per layer).

A *recipe* is a TOML file of a few lines: defaults and rules by role. ``Recipe.resolve`` turns it
into candidates for every layer of a model; planning picks one each; the result is a *plan*, which
is stored inside the checkpoint. Nothing here touches a tensor. Unknown keys are errors.
"""

import fnmatch
import tomllib
from collections.abc import Mapping
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from viditq.errors import PlanError
from viditq.formats import Format, format_named

__all__ = [
    "ROLES",
    "LayerPlan",
    "Plan",
    "Recipe",
    "Rule",
    "Search",
    "list_presets",
    "load_recipe",
    "validation_sentence",
]

ROLES = (
    "self_attn.qkv",
    "self_attn.out",
    "cross_attn.q",
    "cross_attn.kv",
    "cross_attn.out",
    "temporal_attn.qkv",
    "temporal_attn.out",
    "ffn.up",
    "ffn.down",
)

WeightFormat = Literal["int8", "int6", "int4"]
ActivationFormat = Literal["int8", "int6"]
Granularity = Literal["token", "tensor"]
Rounding = Literal["nearest", "gptq"]
Alpha = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
Block = Annotated[int, Field(ge=0, le=4096, strict=True)]
Smooth = Alpha | Literal["none"]
T = TypeVar("T")
Some = Annotated[list[T], Field(min_length=1)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerPlan(_Value):
    """How one linear layer is quantized.

    Attributes:
        weight: format of the weight, one scale per output channel.
        activation: format of the input.
        granularity: ``token`` (dynamic, one scale per row) or ``tensor`` (static, one scale in
            all, from calibration; without balancing, the naive baseline).
        smooth: migration strength α of the per-channel smoothing vector, 0 (balance the weight
            alone) to 1 (balance the activation alone); ``None`` for no smoothing.
        hadamard: block size of the Hadamard rotation, a power of two; 0 for none.
        rounding: ``nearest`` or ``gptq`` (second-order, with the calibration set).
        clip: search the weight scale for the smallest error instead of taking the largest weight.
        bias_correction: fold the mean output error on the calibration set into the bias.
    """

    weight: WeightFormat = "int8"
    activation: ActivationFormat = "int8"
    granularity: Granularity = "token"
    smooth: Alpha | None = None
    hadamard: Block = 0
    rounding: Rounding = "nearest"
    clip: bool = False
    bias_correction: bool = False

    @model_validator(mode="after")
    def _block_is_a_power_of_two(self) -> "LayerPlan":
        if self.hadamard & (self.hadamard - 1):
            raise ValueError(f"hadamard must be 0 or a power of two, not {self.hadamard}")
        return self

    @property
    def weight_format(self) -> Format:
        return format_named(self.weight)

    @property
    def activation_format(self) -> Format:
        return format_named(self.activation)


class Plan(_Value):
    """The resolved choice for every quantized layer of one model.

    ``layers`` maps the layer's qualified name to its :class:`LayerPlan`; layers not named stay
    float. The file form groups layers that share a choice.
    """

    model: str
    recipe: str
    layers: dict[str, LayerPlan]

    def to_json(self) -> dict[str, Any]:
        """The compact form: each distinct choice once, with the layers that have it."""
        groups: dict[LayerPlan, list[str]] = {}
        for name, layer in self.layers.items():
            groups.setdefault(layer, []).append(name)
        return {
            "model": self.model,
            "recipe": self.recipe,
            "groups": [{**layer.model_dump(), "layers": names} for layer, names in groups.items()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "plan") -> "Plan":
        """Read the compact form; :class:`PlanError` names ``where`` and the field that is wrong."""
        try:
            layers: dict[str, LayerPlan] = {}
            for group in data["groups"]:
                if not isinstance(group, Mapping) or not isinstance(group["layers"], list):
                    raise TypeError("a group is an object with a list of layers")
                names = group["layers"]
                layer = LayerPlan(**{k: v for k, v in group.items() if k != "layers"})
                for name in names:
                    if name in layers:
                        raise PlanError(f"{where}: layer {name!r} is planned twice.")
                    layers[name] = layer
            if unknown := set(data) - {"model", "recipe", "groups"}:
                raise PlanError(f"{where}: unknown field {sorted(unknown)[0]!r}.")
            return cls(model=data["model"], recipe=data["recipe"], layers=layers)
        except ValidationError as error:
            raise PlanError(f"{where}: {validation_sentence(error)}") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"{where}: malformed plan ({error!r}).") from None


class Search(_Value):
    """Like :class:`LayerPlan`, but balancing fields may list candidates to choose from."""

    weight: WeightFormat | None = None
    activation: ActivationFormat | None = None
    granularity: Granularity | None = None
    smooth: Smooth | Some[Smooth] | None = None
    hadamard: Block | Some[Block] | None = None
    rounding: Rounding | None = None
    clip: bool | None = None
    bias_correction: bool | None = None


class Rule(Search):
    """A :class:`Search` for the layers whose role and name match; later rules win.

    ``roles`` and ``layers`` are shell patterns (``ffn.*``, ``transformer_blocks.0.*``). ``float``
    keeps the matching layers in floating point, or takes back that an earlier rule did so.
    """

    roles: Some[str] = ["*"]
    layers: Some[str] = ["*"]
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


class Recipe(_Value):
    """Rules by role that resolve to candidates for each layer of any model."""

    name: str
    default: Search = Search()
    rule: list[Rule] = []

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
            fields = self.default.model_dump(exclude_none=True)
            keep_float = False
            for rule in self.rule:
                if rule.matches(name, role):
                    keep_float = keep_float if rule.float is None else rule.float
                    own = rule.model_dump(exclude_none=True)
                    fields |= {k: v for k, v in own.items() if k in Search.model_fields}
            if not keep_float:
                resolved[name] = _candidates(fields, f"Recipe {self.name!r}, layer {name!r}")
        return resolved


def _candidates(fields: dict[str, Any], where: str) -> list[LayerPlan]:
    """Every combination of the listed values, in the order they are written."""
    choices = {k: v if isinstance(v, list) else [v] for k, v in fields.items()}
    choices["smooth"] = [None if a == "none" else a for a in choices.get("smooth", [None])]
    try:
        return [LayerPlan(**dict(zip(choices, c, strict=True))) for c in product(*choices.values())]
    except ValidationError as error:
        raise PlanError(f"{where}: {validation_sentence(error)}") from None


def list_presets() -> list[str]:
    """Names of the recipes that come with viditq."""
    folder = resources.files("viditq") / "recipes"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def load_recipe(source: str | Path) -> Recipe:
    """The preset called ``source``, or the recipe in the TOML file ``source``."""
    if str(source) in list_presets():
        name, file = str(source), resources.files("viditq") / "recipes" / f"{source}.toml"
    elif Path(source).suffix == ".toml" and Path(source).is_file():
        name, file = Path(source).stem, Path(source)
    else:
        raise PlanError(
            f"No recipe {str(source)!r}: give one of {', '.join(list_presets())} or a .toml file."
        )
    try:
        fields = tomllib.loads(file.read_text("utf-8"))
    except ValueError as error:  # also what is no UTF-8
        raise PlanError(f"Recipe {source}: not valid TOML ({error}).") from None
    if "name" in fields:
        raise PlanError(f"Recipe {source}: name: unknown field; a recipe is called as its file is.")
    try:
        return Recipe(name=name, **fields)
    except ValidationError as error:
        raise PlanError(f"Recipe {source}: {validation_sentence(error)}") from None


def validation_sentence(error: ValidationError) -> str:
    """The first complaint of a pydantic error as one sentence."""
    # Where a field has alternatives, each complains: the one that was followed furthest counts, and
    # the names of alternatives, which are no identifiers, are left out of the path.
    first = max(error.errors(), key=lambda complaint: len(complaint["loc"]))
    path = (str(part) for part in first["loc"])
    field = ".".join(part for part in path if part.isidentifier() or part.isdigit())
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        what = "unknown field"
    given = "" if isinstance(first["input"], dict) else f", given {first['input']!r}"
    return f"{field + ': ' if field else ''}{what}{given}."
