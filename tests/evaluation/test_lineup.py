"""Who takes part in a contest, and what each is set against."""

import pytest

from checks import refuses
from viditq.errors import PlanError
from viditq.evaluation import ladder_lineup, shootout_lineup
from viditq.recipe import list_methods

MINE = '[default]\ngranularity = "token"\nsmooth = 0.25\n'


def names(lineup):
    return [recipe.name for recipe in lineup.recipes]


def test_all_methods_that_exist_at_the_bits():
    lineup = shootout_lineup("w4a8")
    there = [f"w4a8-{method}" for method in list_methods() if method != "fp8"]
    assert names(lineup) == ["w4a8", *there]
    [sentence] = lineup.absent
    assert "fp8" in sentence and "w4a8-fp8" in sentence
    assert names(shootout_lineup("w8a8")) == ["w8a8", *(f"w8a8-{m}" for m in list_methods())]


def test_methods_keep_the_order_in_which_they_are_named_and_ours_is_first():
    lineup = shootout_lineup("w4a8", "quarot, naive,w8a8-smoothquant,w4a8,naive")
    assert names(lineup) == ["w4a8", "w4a8-quarot", "w4a8-naive", "w8a8-smoothquant"]
    assert lineup.recipes[1].default.weight == "int4"
    assert lineup.absent == ()


def test_files(tmp_path):
    (tmp_path / "open.toml").write_text(MINE)
    (tmp_path / "fixed.toml").write_text(MINE + 'weight = "int8"\nactivation = "int8"\n')
    lineup = shootout_lineup("w6a6", f"{tmp_path / 'open.toml'},{tmp_path / 'fixed.toml'}")
    assert names(lineup) == ["w6a6", "w6a6-open", "fixed"]
    assert [recipe.default.weight for recipe in lineup.recipes] == ["int6", "int6", "int8"]


def test_what_a_shootout_is_set_against():
    lineup = shootout_lineup("w4a8", "naive,quarot")
    against = {name: lineup.over(name) for name in [*names(lineup), "float_bf16"]}
    assert against == {
        "w4a8": None,
        "w4a8-naive": "w4a8",
        "w4a8-quarot": "w4a8",
        "float_bf16": "w4a8",
    }


def test_each_step_of_a_ladder_is_set_against_the_one_before():
    lineup = ladder_lineup("paper", "w4a8")
    steps = names(lineup)
    assert steps[:3] == ["w4a8-1-static-tensor", "w4a8-2-dynamic-token", "w4a8-3-scaling"]
    assert [lineup.over(name) for name in steps] == [None, *steps[:-1]]
    assert lineup.over("float_bf16") is None


@pytest.mark.parametrize(
    ("bits", "methods", "facts"),
    [
        ("w4a8", "naive,frobnicate", ["frobnicate"]),
        ("w4a8", "fp8", ["w4a8-fp8"]),  # named, it is an error
        ("w3a3", "all", ["w3a3", "w4a8"]),
        ("w8a8-naive", "all", ["w8a8-naive"]),
        ("w4a8", "", ["naive", "w4a8"]),
        ("w4a8", "w4a8", ["naive"]),
    ],
)
def test_what_does_not_exist(bits, methods, facts):
    with refuses(PlanError, *facts):
        shootout_lineup(bits, methods)


def test_two_files_of_one_name(tmp_path):
    for folder, content in (("a", MINE), ("b", MINE.replace("0.25", "0.5"))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.toml").write_text(content)
    with refuses(PlanError, "w4a8-mine", "rename"):
        shootout_lineup("w4a8", f"{tmp_path / 'a/mine.toml'},{tmp_path / 'b/mine.toml'}")


def test_ladders_that_do_not_exist():
    with refuses(PlanError, "nowhere", "paper"):
        ladder_lineup("nowhere", "w4a8")
    with refuses(PlanError, "w3a3"):
        ladder_lineup("paper", "w3a3")
