"""Planning: of a recipe's candidates each input gets the one with the smallest output error."""

import pytest
import torch

import tiny
from checks import refuses
from synthetic import statistics, tokens
from viditq.convert import balance_for, group_layers, linear_named, quantize_readers
from viditq.errors import CalibrationError, PipelineError, PlanError
from viditq.models import adapter_for
from viditq.plan import LayerPlan
from viditq.planning import make_plan
from viditq.recipe import Recipe, list_presets, load_recipe


@pytest.fixture(params=["pixart", "latte", "odd"])
def model(request):
    return {
        "pixart": lambda: tiny.pixart(layers=1),
        "latte": tiny.latte,
        # 3 × 12: no multiple of 128 nor of 8.
        "odd": lambda: tiny.pixart(heads=3, head_dim=12, layers=1, caption=20),
    }[request.param]().transformer


@pytest.fixture
def stats(model):
    layers = adapter_for(model).layers(model).values()
    by_group = {info.group: statistics(tokens(info.in_features, 60)) for info in layers}
    return {info.name: by_group[info.group] for info in layers}


def recipe(**fields) -> Recipe:
    return Recipe.model_validate({"name": "mine", **fields})


def test_without_candidates_the_plan_is_the_recipe_and_needs_no_statistics(model):
    plan = make_plan(model, recipe(default={"weight": "int4", "hadamard": 64}), {})
    adapter = adapter_for(model)
    assert (plan.model, plan.recipe) == (adapter.name, "mine")
    assert list(plan.layers) == list(adapter.layers(model))
    assert set(plan.layers.values()) == {LayerPlan(weight="int4", hadamard=64)}


def test_the_chosen_candidate_has_the_smallest_error(model, stats):
    """Every candidate is carried out here too, with the layer that would run."""
    search = recipe(default={"weight": "int4", "smooth": ["none", 0.25, 0.75], "hadamard": [0, 64]})
    plan = make_plan(model, search, stats)
    infos = adapter_for(model).layers(model)
    options = search.resolve({"any": "ffn.up"})["any"]
    assert len(options) == 6
    spread = []
    for name, group in group_layers(infos.values()).items():
        linears, x = [linear_named(model, info.name) for info in group], stats[name].rows

        def error(option, linears=linears, x=x, name=name):
            plans = [option] * len(linears)
            balance = balance_for(plans, linears, stats[name])
            layers = quantize_readers(linears, plans, balance, stats[name])
            pairs = [(layer(x), linear(x)) for layer, linear in zip(layers, linears, strict=True)]
            return sum(((y - ref).norm() / ref.norm()).square().item() for y, ref in pairs)

        errors = [error(option) for option in options]
        assert error(plan.layers[name]) == pytest.approx(min(errors))
        spread.append(max(errors) / min(errors))
    assert max(spread) > 1.5  # there was something to choose


def test_with_gradients_an_error_counts_as_what_the_model_makes_of_it(model, stats):
    """A layer whose output nobody looks at has no say in the balance of the input it shares."""
    infos = adapter_for(model).layers(model)
    group = next(g for g in group_layers(infos.values()).values() if len(g) == 3)
    search = recipe(default={"weight": "int4", "smooth": [0.0, 0.5, 1.0], "hadamard": [0, 64]})
    chosen = []
    for heard in group:
        gradients = {
            info.name: torch.eye(info.out_features) * (info is heard or info not in group)
            for info in infos.values()
        }
        plan = make_plan(model, search, stats, gradients)
        chosen.append(plan.layers[group[0].name])
        x = stats[heard.name].rows
        errors = {}
        for option in search.resolve({"any": "ffn.up"})["any"]:
            linears = [linear_named(model, info.name) for info in group]
            balance = balance_for([option] * 3, linears, stats[heard.name])
            readers = quantize_readers(linears, [option] * 3, balance, stats[heard.name])
            at = group.index(heard)
            errors[option] = (readers[at](x) - linears[at](x)).square().sum().item()
        assert errors[chosen[-1]] == pytest.approx(min(errors.values()))


def test_readers_of_one_input_get_one_balance(model, stats):
    search = recipe(
        default={"smooth": ["none", 0.5], "hadamard": [0, 64]},
        rule=[{"layers": ["*.to_v"], "weight": "int4"}],
    )
    plan = make_plan(model, search, stats)
    for group in group_layers(adapter_for(model).layers(model).values()).values():
        own = [plan.layers[info.name] for info in group]
        assert len({(p.smooth, p.hadamard) for p in own}) == 1
        assert [p.weight for p in own] == [
            "int4" if info.name.endswith("to_v") else "int8" for info in group
        ]


def test_only_a_balance_that_all_readers_allow_is_taken(model, stats):
    search = recipe(
        default={"smooth": ["none", 0.25, 0.5]},
        rule=[{"layers": ["*.to_v"], "smooth": [0.5, 0.75]}],
    )
    plan = make_plan(model, search, stats)
    assert {p.smooth for n, p in plan.layers.items() if n.endswith((".to_k", ".to_v"))} == {0.5}


def test_layers_that_stay_float_are_not_in_the_plan(model, stats):
    search = recipe(
        default={"smooth": [0.25, 0.5]}, rule=[{"roles": ["cross_attn.*"], "float": True}]
    )
    plan = make_plan(model, search, stats)
    infos = adapter_for(model).layers(model)
    assert set(plan.layers) == {n for n, i in infos.items() if "cross" not in i.role}


def test_trellis_coding_balances_as_four_bits_do(model, stats):
    plain = make_plan(model, load_recipe("w4a8"), stats)
    coded = make_plan(model, load_recipe("w4a8-tcq"), stats)
    assert {layer.weight for layer in coded.layers.values()} == {"tcq4"}
    assert {n: p.balance for n, p in coded.layers.items()} == {
        n: p.balance for n, p in plain.layers.items()
    }


@pytest.mark.parametrize("preset", list_presets())
def test_presets_plan_every_layer(preset):
    model = tiny.pixart(layers=1).transformer
    infos = adapter_for(model).layers(model)
    by_group = {i.group: statistics(tokens(i.in_features, 60)) for i in infos.values()}
    stats = {info.name: by_group[info.group] for info in infos.values()}
    plan = make_plan(model, load_recipe(preset), stats)
    assert list(plan.layers) == list(infos)
    assert plan.recipe == preset


def test_planning_changes_nothing(model, stats):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    make_plan(model, load_recipe("w8a8"), stats)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_progress(model, stats):
    shown = []

    def track(items, description, total=None):
        shown.append((description, total))
        yield from items

    make_plan(model, recipe(), {}, track=track)
    groups = {info.group for info in adapter_for(model).layers(model).values()}
    assert shown == [("plan", len(groups))]


class TestMistakes:
    def test_readers_of_one_input_with_nothing_in_common(self, model, stats):
        search = recipe(default={"smooth": 0.25}, rule=[{"layers": ["*.to_v"], "smooth": 0.5}])
        with refuses(PlanError, "same input"):
            make_plan(model, search, stats)

    def test_everything_float(self, model, stats):
        with refuses(PlanError, "'mine'", "float"):
            make_plan(model, recipe(rule=[{"float": True}]), stats)

    def test_statistics_of_another_model(self, model, stats):
        first = next(iter(stats))
        search = recipe(default={"smooth": [0.25, 0.5]})
        with refuses(CalibrationError, first, "7 channels"):
            make_plan(model, search, stats | {first: statistics(tokens(7))})

    def test_nan_in_a_weight(self, model, stats):
        name = list(stats)[3]
        model.get_submodule(name).weight.data[0, 0] = torch.nan
        with refuses(PipelineError, name, "NaN"):
            make_plan(model, recipe(), stats)
