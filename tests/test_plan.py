"""Plans come back from their file form, and nothing unknown or impossible passes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from checks import refuses
from viditq.errors import PlanError
from viditq.plan import LayerPlan, Plan

NAMES = {
    "blocks.0.to_q": "self_attn.qkv",
    "blocks.0.to_out": "self_attn.out",
    "blocks.0.cross_k": "cross_attn.kv",
    "blocks.0.up": "ffn.up",
    "blocks.1.up": "ffn.up",
    "blocks.1.down": "ffn.down",
}

layer_plans = st.builds(
    LayerPlan,
    weight=st.sampled_from(["int8", "int6", "int4"]),
    granularity=st.sampled_from(["token", "tensor"]),
    activation=st.sampled_from(["int8", "int6", "int4"]),
    smooth=st.none() | st.floats(0, 1),
    profile=st.sampled_from(["static", "max", "salience", "rms"]),
    hadamard=st.sampled_from([0, 2, 64, 128, 4096]),
    rounding=st.sampled_from(["nearest", "gptq", "two_sided"]),
    clip=st.booleans(),
    bias_correction=st.booleans(),
) | st.builds(
    LayerPlan,
    center=st.just(True),
    smooth=st.none() | st.floats(0, 1),
    profile=st.just("rms"),
    hadamard=st.sampled_from([0, 64]),
)
plans = st.builds(
    Plan,
    model=st.just("pixart"),
    recipe=st.text(max_size=5),
    layers=st.dictionaries(st.sampled_from(sorted(NAMES)), layer_plans),
)


class TestPlan:
    @given(plans)
    def test_file_form_round_trip(self, plan):
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan

    def test_file_form_says_each_choice_once(self):
        a, b = LayerPlan(weight="int4"), LayerPlan(weight="int8")
        plan = Plan(model="m", recipe="r", layers={"x": a, "y": b, "z": a})
        groups = plan.to_json()["groups"]
        assert [g["layers"] for g in groups] == [["x", "z"], ["y"]]

    def test_is_frozen(self):
        with pytest.raises(ValueError, match="frozen"):
            LayerPlan().weight = "int4"

    @pytest.mark.parametrize(
        ("fields", "facts"),
        [
            ({"weight": "int3"}, ("weight", "int4", "'int3'")),
            ({"activation": "int5"}, ("activation", "'int5'")),
            ({"activation": "fp8"}, ("fp8", "together")),
            ({"weight": "fp8", "activation": "fp8", "clip": True}, ("fp8", "clipped")),
            ({"granularity": "tensor", "group": 64}, ("static", "group")),
            ({"granularity": "tensor", "center": True}, ("center", "per token")),
            ({"center": True, "smooth": 0.5}, ("centered", "rms")),
            ({"rank": 4, "rounding": "two_sided"}, ("two_sided",)),
            ({"rank": -1}, ("rank", "-1")),
            ({"profile": "mean"}, ("profile", "'mean'")),
            ({"smooth": 1.5}, ("smooth", "1.5")),
            ({"smooth": float("nan")}, ("smooth",)),
            ({"hadamard": 96}, ("power of two", "96")),
            ({"hadamard": -4}, ("hadamard", "-4")),
            ({"hadamard": 8192}, ("hadamard", "8192")),
            ({"granularity": "group"}, ("granularity", "'group'")),
            ({"rounding": "up"}, ("rounding", "'up'")),
            ({"group_size": 64}, ("group_size", "unknown field", "64")),
        ],
    )
    def test_impossible_fields(self, fields, facts):
        data = {"model": "m", "recipe": "r", "groups": [{**fields, "layers": ["a"]}]}
        with refuses(PlanError, "plan.json", *facts):
            Plan.from_json(data, where="plan.json")

    @pytest.mark.parametrize(
        "broken",
        [
            [],
            None,
            {},
            {"model": "m", "recipe": "r"},
            {"model": "m", "recipe": "r", "groups": 3},
            {"model": "m", "recipe": "r", "groups": ["abc"]},
            {"model": "m", "recipe": "r", "groups": [{}]},
            {"model": "m", "recipe": "r", "groups": [{"layers": 3}]},
            {"model": "m", "recipe": "r", "groups": [{"layers": "abc"}]},
            {"model": "m", "recipe": "r", "groups": [{"layers": [1]}]},
            {"model": "m", "recipe": "r", "groups": [{"layers": [["a"]]}]},
            {"recipe": "r", "groups": []},
            {"model": 3, "recipe": "r", "groups": []},
        ],
        ids=repr,
    )
    def test_malformed_files(self, broken):
        with refuses(PlanError, "plan.json"):
            Plan.from_json(broken, where="plan.json")

    def test_says_what_is_not_computed_as_it_is_called(self):
        def caveats(**fields):
            plan = LayerPlan(weight="int4", **fields)
            return Plan(model="m", recipe="r", layers={"a": LayerPlan(), "b": plan}).caveats

        assert caveats() == []
        assert caveats(activation="int4") == ["Activations of 4 bits run in 8-bit kernels."]
        for fields in ({"group": 64}, {"zero_point": True}, {"rank": 4, "activation": "int6"}):
            (said,) = caveats(**fields)
            assert said.startswith("Simulated with floats: 1 ")

    def test_unknown_field_at_the_top(self):
        data = {"model": "m", "recipe": "r", "groups": [], "groupes": []}
        with refuses(PlanError, "'groupes'"):
            Plan.from_json(data)

    def test_a_layer_planned_twice(self):
        group = {"layers": ["a"]}
        with refuses(PlanError, "'a'", "twice"):
            Plan.from_json({"model": "m", "recipe": "r", "groups": [group, group]})


@pytest.mark.parametrize(
    "fields",
    [
        {"rounding": "nearest"},
        *({"rounding": "gptq", **other} for other in ({"clip": True}, {"group": 32}, {"rank": 4})),
        {"rounding": "gptq", "zero_point": True},
    ],
)
def test_trellis_codes_have_one_way_of_rounding(fields):
    LayerPlan(weight="tcq4", rounding="gptq")
    with pytest.raises(ValidationError, match="tcq4 is rounded by gptq or two_sided"):
        LayerPlan(weight="tcq4", **fields)
