"""Statistics are those of every token that reached the layer, however the work was cut up."""

import pytest
import torch

import tiny
from checks import refuses
from viditq import pipelines
from viditq.calibration import CalibrationSet, model_fingerprint, move, observe
from viditq.errors import CalibrationError
from viditq.models import adapter_for


@pytest.fixture(scope="module", params=["image", "video"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(floats, kind):
    return pipelines.load(floats[kind]).transformer


@pytest.fixture(scope="module")
def calls(recorded, kind) -> CalibrationSet:
    return recorded(kind)


@pytest.fixture(scope="module")
def stats(model, calls, tmp_path_factory):
    return observe(model, calls, tmp_path_factory.mktemp("stats") / "s", rows=60)


def assert_same(stats, other) -> None:
    assert list(stats) == list(other)
    for name in stats:
        for field, tensor in vars(stats[name]).items():
            assert torch.equal(tensor, getattr(other[name], field)), (name, field)


@torch.inference_mode()
def tokens(model, calls, name: str) -> dict[int, torch.Tensor]:
    """All valid tokens that reach the layer, by step: the long way."""
    seen: list[torch.Tensor] = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_pre_hook(
        lambda module, arguments: seen.append(arguments[0].clone())
    )
    by_step: dict[int, list[torch.Tensor]] = {}
    for call in calls:
        model(**move(call.arguments, "cpu"))
        x, mask = seen.pop(), call.arguments.get("encoder_attention_mask")
        valid = x[mask.bool()] if "attn2.to_k" in name and mask is not None else x
        by_step.setdefault(call.step, []).append(valid.reshape(-1, layer.in_features))
    handle.remove()
    return {step: torch.cat(parts).double() for step, parts in by_step.items()}


def test_every_layer_has_statistics_and_readers_of_one_input_share_them(model, stats):
    layers = adapter_for(model).layers(model)
    assert list(stats) == list(layers)
    files = {name: stats._files[name] for name in layers}
    for a in layers.values():
        for b in layers.values():
            assert (files[a.name] == files[b.name]) == (a.group == b.group)


# One that reads tokens, one that reads captions or frames, one after an activation function.
@pytest.mark.parametrize("suffix", ["0.attn1.to_q", "0.attn2.to_k", "0.ff.net.2"])
def test_they_are_those_of_all_tokens(model, calls, stats, suffix):
    name = f"transformer_blocks.{suffix}"
    by_step, layer = tokens(model, calls, name), stats[name]
    x = torch.cat(list(by_step.values()))
    assert layer.count.tolist() == [len(x)]
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(layer.mean.double(), x.mean(0), **tolerance)
    torch.testing.assert_close(layer.second_moment.double(), x.T @ x / len(x), **tolerance)
    amax = torch.stack([by_step[step].abs().amax(0) for step in stats.steps])
    torch.testing.assert_close(layer.step_amax.double(), amax, **tolerance)


def test_padding_of_captions_does_not_count(model, calls, stats, kind):
    """PixArt pads every caption to one length; Latte cuts the padding off before the model."""
    counted = stats["transformer_blocks.0.attn2.to_k"].count.item()
    captions = [call.arguments["encoder_hidden_states"] for call in calls]
    tokens = sum(c.shape[0] * c.shape[1] for c in captions)
    if kind == "image":
        assert counted < tokens / 2
    else:
        assert counted == tokens * model.config.video_length


def test_rows_are_tokens_of_their_step_spread_evenly(model, calls, stats):
    name = "transformer_blocks.0.ff.net.0.proj"
    by_step, layer = tokens(model, calls, name), stats[name]
    assert len(layer.rows) == len(layer.row_steps) == 60
    assert layer.row_steps.unique(return_counts=True)[1].tolist() == [20, 20, 20]
    for row, step in zip(layer.rows, layer.row_steps.tolist(), strict=True):
        distance = (by_step[step] - row).abs().amax(1).min()
        assert distance < 1e-5


def test_both_guidance_branches_are_seen(recorded, kind):
    """The second half of a recorded batch is conditioned, the first is not: they differ."""
    call = next(iter(recorded(kind)))
    captions = call.arguments["encoder_hidden_states"]
    assert len(captions) == 2
    assert not torch.equal(captions[0], captions[1])


def test_a_bound_on_memory_means_more_passes_and_equal_statistics(model, calls, stats, tmp_path):
    passes: list[str] = []

    def track(items, description, total=None):
        passes.append(description)
        yield from items

    small = observe(model, calls, tmp_path / "s", rows=60, memory_bytes=1, track=track)
    inputs = {info.group for info in adapter_for(model).layers(model).values()}
    assert passes == [f"observe {i + 1}/{len(inputs)}" for i in range(len(inputs))]
    assert_same(small, stats)


def test_the_bound_holds_for_what_fits(model, calls, tmp_path):
    """Two inputs of 32 channels with 60 rows: 4 · 32 · (32 + 60) bytes each."""
    passes: list[str] = []

    def track(items, description, total=None):
        passes.append(description)
        yield from items

    bound = 2 * 4 * 32 * (32 + 60)
    observe(model, calls, tmp_path / "s", rows=60, memory_bytes=bound, track=track)
    infos = {i.group: i for i in adapter_for(model).layers(model).values() if i.name == i.group}
    narrow = sum(info.in_features == 32 for info in infos.values())
    assert narrow / 2 <= len(passes) < len(infos)


class Killed(BaseException):
    """As Ctrl-C and SIGTERM: nothing may catch it."""


def test_interrupted_and_resumed_it_is_the_same(model, calls, stats, tmp_path):
    seen = 0

    def killer(items, description, total=None):
        nonlocal seen
        for item in items:
            seen += 1
            if seen == 2 * len(calls) + 2:  # in the middle of the third pass
                raise Killed
            yield item

    settings = {"rows": 60, "memory_bytes": 1}
    with pytest.raises(Killed):
        observe(model, calls, tmp_path / "s", **settings, track=killer)
    done = sorted((tmp_path / "s").glob("*.safetensors"))
    assert len(done) == 2
    written = [file.stat().st_mtime_ns for file in done]
    assert not model.transformer_blocks[0].attn1.to_q._forward_pre_hooks
    again = observe(model, calls, tmp_path / "s", **settings)
    assert [file.stat().st_mtime_ns for file in done] == written
    assert_same(again, stats)


def test_finished_statistics_are_not_made_again(model, calls, stats):
    def never(items, description, total=None):
        raise AssertionError("a pass over the calibration set")

    assert_same(observe(model, calls, stats.folder, rows=60, track=never), stats)


def test_statistics_of_another_set_are_refused(model, calls, stats, tmp_path):
    with refuses(CalibrationError, str(stats.folder)):
        observe(model, calls, stats.folder, rows=30)
    other = CalibrationSet(calls.folder)
    other.info = other.info.model_copy(update={"seed": 5})
    with refuses(CalibrationError, str(stats.folder)):
        observe(model, other, stats.folder, rows=60)


def test_a_set_of_another_model_is_refused(calls, kind, tmp_path):
    torch.manual_seed(1)
    other = {"image": tiny.pixart, "video": tiny.latte}[kind](layers=3).transformer
    with refuses(CalibrationError, str(calls.folder), "another model", calls.info.source):
        observe(other, calls, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_the_model_is_left_as_it_was(model, calls, tmp_path):
    before = model_fingerprint(model)
    observe(model, calls, tmp_path / "s", rows=1)
    assert model_fingerprint(model) == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_input_that_is_not_finite(floats, calls, kind, tmp_path):
    model = pipelines.load(floats[kind]).transformer
    calls_on_bad = CalibrationSet(calls.folder)
    block = model.transformer_blocks[0]
    block.scale_shift_table.data[1, 3] = torch.inf
    calls_on_bad.info = replace_model(calls_on_bad.info, model)
    with refuses(CalibrationError, "transformer_blocks.0.attn1.to_q", "not finite"):
        observe(model, calls_on_bad, tmp_path / "s")
    assert not list((tmp_path / "s").glob("*.safetensors"))


def replace_model(info, model):
    return info.model_copy(update={"model": model_fingerprint(model)})


class TestFingerprint:
    def test_same_weights_same_hash(self):
        assert model_fingerprint(tiny.pixart().transformer) == model_fingerprint(
            tiny.pixart().transformer
        )

    @pytest.mark.parametrize("change", ["one weight", "a sign", "a name", "a layer less"])
    def test_other_weights_other_hash(self, change):
        model = tiny.pixart().transformer
        before = model_fingerprint(model)
        if change == "one weight":
            model.transformer_blocks[1].ff.net[2].weight.data[3, 5] += 0.5
        elif change == "a sign":
            model.proj_out.weight.data *= -1
        elif change == "a name":
            model.another = model.proj_out
            del model.proj_out
        else:
            del model.transformer_blocks[1]
        assert model_fingerprint(model) != before
