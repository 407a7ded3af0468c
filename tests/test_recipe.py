"""Recipes resolve as written, methods have the bits asked for, and nothing unknown passes."""

from itertools import pairwise

import pytest

from checks import refuses
from viditq.errors import PlanError
from viditq.plan import ROLES, LayerPlan
from viditq.recipe import (
    Recipe,
    Refine,
    Rule,
    list_methods,
    list_presets,
    load_ladder,
    load_recipe,
)

NAMES = {
    "blocks.0.to_q": "self_attn.qkv",
    "blocks.0.to_out": "self_attn.out",
    "blocks.0.cross_k": "cross_attn.kv",
    "blocks.0.up": "ffn.up",
    "blocks.1.up": "ffn.up",
    "blocks.1.down": "ffn.down",
}


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

    @pytest.mark.parametrize("name", list_presets())
    def test_a_preset_does_what_its_name_says_to_every_role(self, name):
        recipe = load_recipe(name)
        assert recipe.name == name
        resolved = recipe.resolve({role: role for role in ROLES})
        assert set(resolved) == set(ROLES)
        for candidates in resolved.values():
            for layer in candidates:
                assert layer.weight == f"int{name[1]}"
                assert layer.activation == f"int{name[3]}"
                assert layer.granularity == "token"
                assert not layer.simulated
        assert any(p.smooth is not None and p.hadamard for p in resolved["ffn.up"])

    def test_refined_and_trellis_coded_are_w4a8_otherwise(self):
        plain, refined, coded = map(load_recipe, ("w4a8", "w4a8-refined", "w4a8-tcq"))
        assert (plain.refine, coded.refine) == (None, None)
        assert refined.refine == Refine(updates=1000, samples=1024, batch=128)
        assert refined.default == plain.default
        changed = {"weight": "tcq4", "clip": None}  # rounding finds its scale
        assert coded.default == plain.default.model_copy(update=changed)
        both = load_recipe("w4a8-tcq-refined")
        assert both.default == coded.default
        assert both.refine == Refine(updates=800, samples=4096, batch=256)

    @pytest.mark.parametrize("bits", list_presets())
    @pytest.mark.parametrize("method", [m for m in list_methods() if m != "fp8"])
    def test_a_method_has_the_bits_that_are_asked_for(self, method, bits):
        recipe = load_recipe(f"{bits}-{method}")
        assert recipe.name == f"{bits}-{method}"
        for candidates in recipe.resolve({role: role for role in ROLES}).values():
            for layer in candidates:
                assert (layer.weight, layer.activation) == (f"int{bits[1]}", f"int{bits[3]}")

    def test_fp8_has_its_own_bits(self):
        (layer,) = load_recipe("w8a8-fp8").resolve({"a": "ffn.up"})["a"]
        assert (layer.weight, layer.activation) == ("fp8", "fp8")
        with refuses(PlanError, "fp8", "w4a8-fp8"):
            load_recipe("w4a8-fp8")

    def test_the_methods_are_those_of_the_field(self):
        """Each has the property that its paper is known for."""
        defining = {
            "naive": {"granularity": "tensor", "rounding": "nearest", "smooth": None},
            "dynamic": {"granularity": "token", "rounding": "nearest", "smooth": None},
            "smoothquant": {"smooth": 0.5, "profile": "max", "hadamard": 0},
            "quarot": {"smooth": None, "hadamard": 4096, "rounding": "gptq"},
            "qdit": {"group": 128, "zero_point": True, "smooth": None},
            "ptq4dit": {"granularity": "tensor", "profile": "salience", "smooth": 0.5},
            "qdiffusion": {"granularity": "tensor", "rounding": "gptq", "clip": True},
            "svdquant": {"rank": 4, "group": 64, "profile": "max"},
            "fp8": {"weight": "fp8"},
            "centered": {"center": True, "profile": "rms", "smooth": 0.5, "hadamard": 128},
            "grouped": {"group": 64, "rounding": "two_sided", "zero_point": False},
        }
        assert set(defining) == set(list_methods())
        for method, fields in defining.items():
            layer = load_recipe(f"w8a8-{method}").resolve({"a": "ffn.up"})["a"][0]
            assert {name: getattr(layer, name) for name in fields} == fields

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


class TestLadder:
    def test_each_step_changes_the_one_before(self):
        ladder = load_ladder("paper", "w4a8")
        assert [recipe.name for recipe in ladder[:3]] == [
            "w4a8-1-static-tensor",
            "w4a8-2-dynamic-token",
            "w4a8-3-scaling",
        ]
        layers = [recipe.resolve({"a": "ffn.up"})["a"] for recipe in ladder]
        assert layers[0] == load_recipe("w4a8-naive").resolve({"a": "ffn.up"})["a"]
        assert layers[1] == load_recipe("w4a8-dynamic").resolve({"a": "ffn.up"})["a"]
        assert layers[2] == load_recipe("w4a8-smoothquant").resolve({"a": "ffn.up"})["a"]
        assert layers[-1] == load_recipe("w4a8").resolve({"a": "ffn.up"})["a"]
        assert all(before != after for before, after in pairwise(layers))

    def test_a_file_of_a_few_lines(self, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text("[[step]]\nname = 'a'\n[[step]]\nname = 'b'\nclip = true\n")
        ladder = load_ladder(path, "w8a8")
        assert [recipe.name for recipe in ladder] == ["w8a8-1-a", "w8a8-2-b"]
        assert [r.resolve({"x": "ffn.up"})["x"][0].clip for r in ladder] == [False, True]

    @pytest.mark.parametrize(
        "text", ["", "step = 3", "[[step]]\nclip = true", "[step]\nname = 'a'"]
    )
    def test_what_is_no_ladder(self, tmp_path, text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        with refuses(PlanError, "mine.toml", "[[step]]"):
            load_ladder(path, "w8a8")

    def test_mistakes(self, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text("[[step]]\nname = 'a'\nclipp = true\n")
        with refuses(PlanError, "mine.toml", "clipp", "unknown field"):
            load_ladder(path, "w8a8")
        with refuses(PlanError, "'steps'", "paper"):
            load_ladder("steps", "w8a8")
        with refuses(PlanError, "w5a8"):
            load_ladder("paper", "w5a8")
