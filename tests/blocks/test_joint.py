"""Joint weights are stored once, whatever happens to the layers in between."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from viditq import checkpoint, pipelines
from viditq.blocks import fuse_
from viditq.blocks.joint import joined
from viditq.nn import QuantLinear
from viditq.plan import LayerPlan

SHAPES = {"weights": [(3, 8), (5, 8), (1, 8)], "scales": [(3,), (5,), (1,)], "one": [(4, 2)]}


@pytest.fixture(params=SHAPES)
def parts(request):
    shapes = SHAPES[request.param]
    return [nn.Parameter(torch.randn(shape), requires_grad=False) for shape in shapes]


def storages(tensors) -> dict[int, int]:
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def test_is_the_concatenation_and_shares_its_memory(parts):
    expected, values = torch.cat(parts), [part.clone() for part in parts]
    whole = joined(parts)
    assert torch.equal(whole, expected)
    assert len(storages([whole, *parts])) == 1
    assert all(torch.equal(part, value) for part, value in zip(parts, values, strict=True))
    assert joined(parts).data_ptr() == whole.data_ptr()
    parts[0].data.fill_(7)
    assert (whole[: len(parts[0])] == 7).all()


def test_parts_that_were_taken_apart_are_put_together_again(parts):
    joined(parts)
    parts[0].data = parts[0].data + 1
    assert torch.equal(joined(parts), torch.cat(parts))
    assert len(storages(parts)) == 1


def test_some_of_the_parts(parts):
    joined(parts)
    assert torch.equal(joined(parts[1:] or parts), torch.cat(parts[1:] or parts))
    assert len(storages(parts)) == 1


def test_parts_in_another_order_are_not_taken_for_joint(parts):
    joined(parts)
    assert torch.equal(joined(parts[::-1]), torch.cat(parts[::-1]))


def test_neighbours_in_allocations_of_their_own_are_not_joint():
    """As a caching allocator may place them; here two tensors that see a buffer's halves."""
    buffer = bytearray(range(32))
    halves = [torch.frombuffer(buffer, dtype=torch.uint8, count=16, offset=o) for o in (0, 16)]
    assert halves[0].data_ptr() + 16 == halves[1].data_ptr()
    assert torch.equal(joined(halves), torch.arange(32, dtype=torch.uint8))
    assert len(storages(halves)) == 1


def test_first_use_by_a_sampler_leaves_ordinary_tensors(parts):
    with torch.inference_mode():
        joined(parts)
    assert not any(part.is_inference() or part.data.is_inference() for part in parts)


def test_parameters_made_by_a_sampler():
    with torch.inference_mode():
        parts = [nn.Parameter(torch.randn(2, 3), requires_grad=False) for _ in range(2)]
        assert torch.equal(joined(parts), torch.cat(parts))
    assert torch.equal(joined(parts), torch.cat(parts))


@pytest.mark.parametrize("preset", ["w8a8", "w6a6", "w4a8"])
@pytest.mark.parametrize("kind", ["image", "video"])
class TestCheckpoint:
    def test_saving_a_fused_model_changes_nothing(
        self, denoiser, outputs, quantized, tmp_path, kind, preset
    ):
        model = denoiser(kind, preset)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        fuse_(model)
        fused = outputs(model, kind)
        model.save_pretrained(tmp_path, max_shard_size="20KB")
        stored = {}
        for file in tmp_path.glob("*.safetensors"):
            stored |= load_file(file)
        original = load_file(quantized(kind, preset) / "transformer" / checkpoint.WEIGHTS)
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        assert set(stored) == set(before) == set(original)
        assert all(torch.equal(stored[name], original[name]) for name in stored)
        again = checkpoint.load(tmp_path, fuse=True)
        assert torch.equal(outputs(again, kind), fused)

    def test_memory_stays_the_same(self, denoiser, outputs, kind, preset):
        model = denoiser(kind, preset)
        layers = [m for m in model.modules() if isinstance(m, QuantLinear)]

        def size():
            return sum(storages(p for layer in layers for p in layer.parameters()).values())

        before = sum(p.nbytes for layer in layers for p in layer.parameters())
        fuse_(model)
        outputs(model, kind)
        assert size() == before


def test_layers_are_laid_side_by_side_when_a_block_is_fused(make_block):
    block = make_block(plans={"attn1.to_k": LayerPlan(weight="int4", smooth=0.5, hadamard=16)})
    layers = [block.attn1.to_q, block.attn1.to_k, block.attn1.to_v]
    values = [layer.weight.clone() for layer in layers]
    assert len(storages(layer.weight for layer in layers)) == 3
    fuse_(block)
    assert len(storages([layers[0].weight, layers[2].weight])) == 1  # of one format
    assert len(storages([layers[0].scale, layers[2].scale])) == 1
    assert len(storages(layer.weight for layer in layers)) == 2
    assert all(torch.equal(layer.weight, v) for layer, v in zip(layers, values, strict=True))
    assert len(storages([block.attn2.to_k.bias, block.attn2.to_v.bias])) == 1


def test_loading_fuses_only_when_asked_on_the_cpu(quantized):
    source = quantized("image", "w8a8")

    def is_fused(model):
        return "Fused" in repr(model)

    assert not is_fused(checkpoint.load(source / "transformer"))
    assert is_fused(checkpoint.load(source / "transformer", fuse=True))
    assert not is_fused(pipelines.load(source).transformer)
    pipe = pipelines.load(source, fuse=True)
    assert is_fused(pipe.transformer)
    samples = pipelines.generate(pipe, ["a red star"], [0], steps=2)
    expected = pipelines.generate(pipelines.load(source), ["a red star"], [0], steps=2)
    assert (samples - expected).abs().mean() <= 1e-3
