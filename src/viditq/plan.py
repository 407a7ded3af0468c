"""What is done to each layer of one model: the *plan*, which is stored inside the checkpoint.

A plan is what a recipe (:mod:`viditq.recipe`) resolves to. Nothing here touches a tensor. Unknown
keys are errors.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from viditq.errors import PlanError
from viditq.formats import Format, format_named

__all__ = [
    "ROLES",
    "ActivationFormat",
    "Alpha",
    "Block",
    "Granularity",
    "Group",
    "LayerPlan",
    "Plan",
    "Profile",
    "Rank",
    "Rounding",
    "Value",
    "WeightFormat",
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

WeightFormat = Literal["int8", "int6", "int4", "tcq4", "fp8"]
ActivationFormat = Literal["int8", "int6", "int4", "fp8"]
Granularity = Literal["token", "tensor"]
Profile = Literal["static", "max", "salience", "rms"]
Rounding = Literal["nearest", "gptq", "two_sided"]
Alpha = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
Block = Annotated[int, Field(ge=0, le=4096, strict=True)]
Group = Annotated[int, Field(ge=0, le=65536, strict=True)]
Rank = Annotated[int, Field(ge=0, le=1024, strict=True)]


class Value(BaseModel):
    """A frozen value without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerPlan(Value):
    """How one linear layer is quantized.

    Attributes:
        weight: format of the weight, one scale per output channel; ``tcq4`` is int4's size, and
            trellis-coded.
        activation: format of the input; ``fp8`` goes with an ``fp8`` weight only.
        granularity: ``token`` (dynamic, one scale per row) or ``tensor`` (static, one scale in
            all, from calibration; without balancing, the naive baseline).
        group: input channels that share a scale, of the weight and of a token's activations
            alike; 0 for all of them.
        zero_point: whether weight and activations have zero points (asymmetric quantization).
        smooth: migration strength α of the per-channel smoothing vector, 0 (balance the weight
            alone) to 1 (balance the activation alone); ``None`` for no smoothing.
        profile: what a channel's magnitude is for smoothing, see :mod:`viditq.balancing.scaling`.
        center: take each channel's mean over the calibration tokens off the input before anything
            else; what the layer makes of the means goes into its bias.
        hadamard: block size of the Hadamard rotation, a power of two; 0 for none.
        rank: of a branch ``x · downᵀ · upᵀ`` in bf16 beside the integers; 0 for none.
        rounding: ``nearest``; ``gptq`` (second-order in the layer's input); ``two_sided``
            (second-order in its input and in what the model makes of its output).
        clip: search the scale for the smallest error instead of taking the largest value; of the
            weight, and of static activations.
        bias_correction: fold the mean output error on the calibration set into the bias.
    """

    weight: WeightFormat = "int8"
    activation: ActivationFormat = "int8"
    granularity: Granularity = "token"
    group: Group = 0
    zero_point: bool = False
    smooth: Alpha | None = None
    profile: Profile = "static"
    center: bool = False
    hadamard: Block = 0
    rank: Rank = 0
    rounding: Rounding = "nearest"
    clip: bool = False
    bias_correction: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> "LayerPlan":
        if self.hadamard & (self.hadamard - 1):
            raise ValueError(f"hadamard must be 0 or a power of two, not {self.hadamard}")
        if (self.weight == "fp8") != (self.activation == "fp8"):
            raise ValueError("fp8 weights and fp8 activations go together")
        if self.weight == "fp8" and (
            self.rounding != "nearest"
            or self.granularity != "token"
            or self.group
            or self.zero_point
            or self.rank
            or self.clip
        ):
            raise ValueError(
                "fp8 is rounded to nearest, per channel and token, not clipped, without a branch"
            )
        if self.weight == "tcq4" and (
            self.rounding == "nearest" or self.group or self.zero_point or self.rank or self.clip
        ):
            raise ValueError(
                "tcq4 is rounded by gptq or two_sided, which also find its scale: no clip, group, "
                "zero point or branch"
            )
        if self.group and self.granularity == "tensor":
            raise ValueError("a static scale per tensor has no group")
        if self.center and self.granularity == "tensor":
            raise ValueError("center goes with a scale per token")
        if self.center and self.smooth is not None and self.profile != "rms":
            raise ValueError("what is centered is smoothed by the rms profile")
        if self.rounding == "two_sided" and (self.zero_point or self.rank):
            raise ValueError("two_sided rounds symmetric weights, without zero point or branch")
        return self

    @property
    def balance(self) -> tuple[float | None, str, bool, int]:
        """What all readers of one input must agree on: smoothing, its profile, centering, the
        rotation."""
        return self.smooth, self.profile, self.center, self.hadamard

    @property
    def simulated(self) -> bool:
        """Whether the layer computes with floats on the codes' grid: no integer kernel can."""
        return bool(self.group or self.zero_point or self.rank)

    @property
    def weight_format(self) -> Format:
        return format_named(self.weight)

    @property
    def activation_format(self) -> Format:
        return format_named(self.activation)


class Plan(Value):
    """The resolved choice for every quantized layer of one model.

    ``layers`` maps the layer's qualified name to its :class:`LayerPlan`; layers not named stay
    float. The file form groups layers that share a choice.
    """

    model: str
    recipe: str
    layers: dict[str, LayerPlan]

    @property
    def caveats(self) -> list[str]:
        """What of it is not computed as it is called, a sentence each."""
        plans = self.layers.values()
        said = []
        if simulated := sum(plan.simulated for plan in plans):
            said.append(
                f"Simulated with floats: {simulated} layers, since no integer kernel has groups, "
                f"zero points or low-rank branches."
            )
        narrow = {plan.activation_format.bits for plan in plans if not plan.simulated} - {8}
        said += [f"Activations of {bits} bits run in 8-bit kernels." for bits in sorted(narrow)]
        return said

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
