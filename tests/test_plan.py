"""Recipes resolve as written, plans come back from their file form, and nothing unknown passes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import refuses
from viditq.errors import PlanError
from viditq.plan import ROLES, LayerPlan, Plan
from viditq.recipe import Recipe, Rule, list_methods, list_presets, load_recipe

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
    activation=st.sampled_from(["int8", "int6"]),
    smooth=st.none() | st.floats(0, 1),
    hadamard=st.sampled_from([0, 2, 64, 128, 4096]),
    rounding=st.sampled_from(["nearest", "gptq"]),
    clip=st.booleans(),
    bias_correction=st.booleans(),
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
            ({"activation": "int4"}, ("activation", "'int4'")),
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

    def test_unknown_field_at_the_top(self):
        data = {"model": "m", "recipe": "r", "groups": [], "groupes": []}
        with refuses(PlanError, "'groupes'"):
            Plan.from_json(data)

    def test_a_layer_planned_twice(self):
        group = {"layers": ["a"]}
        with refuses(PlanError, "'a'", "twice"):
            Plan.from_json({"model": "m", "recipe": "r", "groups": [group, group]})


class TestRecipe:
    def test_defaults_alone(self):
        resolved = Recipe(name="r").resolve(NAMES)
        assert resolved == {name: [LayerPlan()] for name in NAMES}

    def test_candidates_are_every_combination_in_order(self):
        recipe = Recipe.model_validate(
            {"name": "r", "default": {"smooth": ["none", 0.5], "hadamard": [0, 128]}}
        )
        found = [(p.smooth, p.hadamard) for p in recipe.resolve(NAMES)["blocks.0.up"]]
        assert found == [(None, 0), (None, 128), (0.5, 0), (0.5, 128)]

    def test_later_rules_win_field_by_field(self):
        recipe = Recipe.model_validate(
            {
                "name": "r",
                "default": {"weight": "int4", "clip": True, "smooth": 0.5},
                "rule": [
                    {"roles": ["ffn.*"], "weight": "int6", "rounding": "gptq"},
                    {"layers": ["blocks.1.*"], "weight": "int8", "smooth": "none"},
                ],
            }
        )
        resolved = recipe.resolve(NAMES)
        assert resolved["blocks.0.to_q"] == [LayerPlan(weight="int4", clip=True, smooth=0.5)]
        gptq = {"clip": True, "rounding": "gptq"}
        assert resolved["blocks.0.up"] == [LayerPlan(weight="int6", smooth=0.5, **gptq)]
        assert resolved["blocks.1.up"] == [LayerPlan(weight="int8", **gptq)]

    def test_a_rule_needs_role_and_name(self):
        recipe = Recipe.model_validate(
            {"name": "r", "rule": [{"roles": ["ffn.*"], "layers": ["blocks.0.*"], "float": True}]}
        )
        assert set(NAMES) - set(recipe.resolve(NAMES)) == {"blocks.0.up"}

    def test_float_holds_until_a_later_rule_says_otherwise(self):
        rules = [{"roles": ["ffn.*"], "float": True}, {"clip": True}]
        recipe = Recipe.model_validate({"name": "r", "rule": rules})
        assert "blocks.0.up" not in recipe.resolve(NAMES)
        rules.append({"layers": ["blocks.0.*"], "float": False})
        recipe = Recipe.model_validate({"name": "r", "rule": rules})
        assert recipe.resolve(NAMES)["blocks.0.up"] == [LayerPlan(clip=True)]
        assert "blocks.1.up" not in recipe.resolve(NAMES)

    def test_what_no_layer_can_have(self):
        """It is found where the rule meets a layer."""
        recipe = Recipe.model_validate(
            {"name": "r", "rule": [{"roles": ["ffn.up"], "hadamard": [0, 96]}]}
        )
        with refuses(PlanError, "'r'", "blocks.0.up", "power of two", "96"):
            recipe.resolve(NAMES)


class TestLoadRecipe:
    @pytest.fixture
    def write(self, tmp_path):
        def write(text: str | bytes):
            path = tmp_path / "mine.toml"
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            return path

        return write

    def test_presets_of_the_issue(self):
        assert set(list_presets()) >= {"w8a8-naive", "w8a8", "w6a6", "w4a8-naive", "w4a8"}

    @pytest.mark.parametrize("name", list_presets())
    def test_a_preset_does_what_its_name_says_to_every_role(self, name):
        recipe = load_recipe(name)
        assert recipe.name == name
        bits = name.removesuffix("-naive")
        resolved = recipe.resolve({role: role for role in ROLES})
        assert set(resolved) == set(ROLES)
        for candidates in resolved.values():
            for layer in candidates:
                assert layer.weight == f"int{bits[1]}"
                assert layer.activation == f"int{bits[3]}"
                if name.endswith("-naive"):
                    assert layer == LayerPlan(
                        weight=layer.weight, activation=layer.activation, granularity="tensor"
                    )
                else:
                    assert layer.granularity == "token"
        if not name.endswith("-naive"):
            assert any(p.smooth is not None and p.hadamard for p in resolved["ffn.up"])

    def test_a_file(self, write):
        recipe = load_recipe(
            write('[default]\nweight = "int4"\n[[rule]]\nroles = ["ffn.*"]\nfloat = true\n')
        )
        assert recipe.name == "mine"
        assert set(recipe.resolve(NAMES)) == {n for n, r in NAMES.items() if "ffn" not in r}
        assert recipe.resolve(NAMES)["blocks.0.to_q"] == [LayerPlan(weight="int4")]

    def test_an_empty_file_is_all_defaults(self, write):
        assert load_recipe(write("")).resolve(NAMES) == Recipe(name="mine").resolve(NAMES)

    @pytest.mark.parametrize(
        ("text", "facts"),
        [
            ("[default]\nwieght = 'int4'\n", ("default.wieght", "unknown field")),
            ("[defaults]\n", ("defaults", "unknown field")),
            ("[[rule]]\nrole = ['ffn.*']\n", ("rule.0.role", "unknown field")),
            ("[[rule]]\nroles = ['mlp.*']\n", ("'mlp.*'", "ffn.up")),
            ("[default]\nweight = 'int5'\n", ("default.weight", "'int5'")),
            ("[default]\nsmooth = 'some'\n", ("default.smooth", "'some'")),
            ("[default]\nsmooth = [0.5, 2.0]\n", ("default.smooth.1", "less than", "given 2.0")),
            ("[default]\nsmooth = '0.5'\n", ("default.smooth", "'0.5'")),
            ("[default]\nhadamard = 3.5\n", ("default.hadamard", "3.5")),
            ("[default]\nhadamard = true\n", ("default.hadamard", "True")),
            ("[default]\nsmooth = []\n", ("default.smooth",)),
            ("[default]\nhadamard = []\n", ("default.hadamard",)),
            ("[[rule]]\nlayers = []\n", ("rule.0.layers",)),
            ("[[rule]]\nroles = []\n", ("rule.0.roles",)),
            ("name = 'other'\n", ("name",)),
            ("[default\n", ("not valid TOML",)),
            (b"\xff\xfe\x00", ("mine.toml",)),
        ],
        ids=repr,
    )
    def test_mistakes(self, write, text, facts):
        with refuses(PlanError, "mine.toml", *facts):
            load_recipe(write(text))

    def test_no_such_recipe(self, tmp_path):
        for source in ("w3a3", tmp_path, tmp_path / "absent.toml"):
            with refuses(PlanError, str(source), "w4a8", ".toml"):
                load_recipe(source)


def test_a_pattern_that_matches_no_layer_is_refused():
    recipe = Recipe(name="own", rule=[Rule(layers=["transformer_block.0.*"], float=True)])
    with refuses(PlanError, "own", "transformer_block.0.*", "transformer_blocks.0.attn1.to_q"):
        recipe.resolve({"transformer_blocks.0.attn1.to_q": "self_attn.qkv"})
