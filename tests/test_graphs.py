"""CUDA graphs of whole transformers: what is replayed is what would be computed."""

import copy
import pickle

import pytest
import torch
from torch import nn

import tiny
from viditq import capture_, release_
from viditq.errors import InputError
from viditq.graphs import is_captured


class Twice(nn.Module):
    """A forward that counts its calls in Python."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x, *, scale=1.0, return_dict=True):
        self.calls += 1
        y = self.linear(x) * scale
        return {"sample": y} if return_dict else (y,)


@pytest.fixture
def module():
    return Twice().requires_grad_(False)


def test_on_a_cpu_nothing_changes(module):
    x = torch.randn(2, 4)
    expected = module(x)["sample"]
    capture_(module)
    capture_(module)
    with torch.no_grad():
        assert torch.equal(module(x)["sample"], expected)
        assert torch.equal(module(x, scale=2.0, return_dict=False)[0], module.linear(x) * 2.0)
    assert module.calls == 3
    assert not is_captured(module)
    release_(module)
    release_(module)
    assert "forward" not in vars(module)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_captured_for_itself(module, copied):
    capture_(module)
    other = copied(module)
    other.linear.weight.data.zero_()
    x = torch.ones(1, 4)
    assert torch.equal(other(x)["sample"], other.linear.bias[None])
    assert not torch.equal(module(x)["sample"], other(x)["sample"])
    assert (module.calls, other.calls) == (1, 2)


def test_what_something_else_has_wrapped(module):
    module.forward = lambda x: x
    with pytest.raises(InputError, match="Twice has a forward that something else has wrapped"):
        capture_(module)


@pytest.mark.gpu
class TestOnCuda:
    @pytest.fixture
    def module(self, module):
        return module.cuda()

    def test_python_runs_only_when_a_kind_of_input_is_new(self, module):
        capture_(module)
        with torch.no_grad():
            for rows in (2, 3, 2, 3):
                for scale in (1.0, 2.0):
                    x = torch.randn(rows, 4, device="cuda")
                    y = module(x, scale=scale)["sample"]
                    torch.testing.assert_close(y, module.linear(x) * scale)
            assert module.calls == 4 * 3  # two to warm up, one recorded
        assert is_captured(module)
        with torch.inference_mode():
            module(torch.randn(2, 4, device="cuda"), scale=1.0)
        assert module.calls == 4 * 3

    def test_results_stay_when_the_graph_runs_again(self, module):
        capture_(module)
        with torch.no_grad():
            x = torch.randn(2, 4, device="cuda")
            first = module(x)["sample"]
            kept = first.clone()
            module(x + 1)
        assert torch.equal(first, kept)

    def test_what_changes_is_recorded_anew(self, module):
        capture_(module)
        x = torch.randn(2, 4, device="cuda")
        with torch.no_grad():
            before = module(x)["sample"]
            module.linear.weight.data = torch.zeros_like(module.linear.weight)
            assert torch.equal(module(x)["sample"], module.linear.bias.expand(2, 4))
            module.linear = nn.Linear(4, 4).cuda()
            torch.testing.assert_close(module(x)["sample"], module.linear(x))
            handle = module.linear.register_forward_hook(lambda m, args, y: y + 1)
            torch.testing.assert_close(module(x)["sample"], module.linear(x))
            after = module(x)["sample"]
            handle.remove()
            torch.testing.assert_close(module(x)["sample"], after - 1)
        assert not torch.equal(before, after)

    def test_calls_with_gradients(self, module):
        module.requires_grad_(True)
        capture_(module)
        module(torch.randn(2, 4, device="cuda"))["sample"].sum().backward()
        assert module.linear.weight.grad is not None
        assert module.calls == 1

    def test_what_cannot_be_captured(self, module, caplog):
        module.linear.register_forward_hook(lambda m, args, y: y * y.sum().item())
        x = torch.randn(2, 4, device="cuda")
        with torch.no_grad():
            expected = module(x)["sample"]
            capture_(module)
            torch.testing.assert_close(module(x)["sample"], expected)
        assert "Twice runs without a CUDA graph" in caplog.text
        assert torch.randn(4, device="cuda").isfinite().all()  # the generator is usable again

    def test_a_quantized_transformer(self):
        from viditq import fuse_
        from viditq.bench.random_models import quantize_random_
        from viditq.plan import LayerPlan

        model = tiny.pixart(layers=2).transformer.to("cuda", torch.bfloat16)
        quantize_random_(model, LayerPlan(smooth=0.5, hadamard=16))
        fuse_(model)

        def inputs(seed):
            torch.manual_seed(seed)
            return {
                "hidden_states": torch.randn(2, 4, 8, 8, device="cuda").bfloat16(),
                "encoder_hidden_states": torch.randn(2, 5, 16, device="cuda").bfloat16(),
                "encoder_attention_mask": torch.ones(2, 5, device="cuda"),
                "timestep": torch.tensor([500, 500], device="cuda"),
                "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            }

        with torch.inference_mode():
            expected = [model(**inputs(seed)).sample for seed in (0, 1)]
            capture_(model)
            for seed in (0, 1):
                assert torch.equal(model(**inputs(seed)).sample, expected[seed])
            assert len(model.forward.graphs) == 1
