"""STDiT begins from the parts of Latte that mean the same in it."""

import pytest
import torch
from diffusers import LatteTransformer3DModel

from viditq.models.stdit import STDiTTransformer3DModel
from viditq.zoo.train.models import make_text_encoder, make_transformer
from viditq.zoo.train.warm_start import begin_from, copy_latte_

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "in_channels": 4,
    "out_channels": 8,
    "sample_size": 8,
    "patch_size": 2,
    "video_length": 4,
    "caption_channels": 16,
}


def networks(mlp_ratio=4.0):
    torch.manual_seed(0)
    latte = LatteTransformer3DModel(
        cross_attention_dim=32,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        **SIZES,
    )
    for parameter in latte.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    stdit = STDiTTransformer3DModel(caption_length=7, mlp_ratio=mlp_ratio, **SIZES)
    copy_latte_(stdit, latte)
    return latte.eval(), stdit.eval()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 4, 4, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(2, 7, 16, generator=generator),
        "timestep": torch.tensor([300, 800]),
        "return_dict": False,
    }


@torch.no_grad()
def test_the_same_but_for_attention_over_time():
    """Without that, and without the second feed-forward, which STDiT does not have."""
    latte, stdit = networks()
    expected = latte(**inputs(), enable_temporal_attentions=False)[0]
    for parameter in stdit.transformer_blocks[0].temporal_attn.to_out.parameters():
        parameter.zero_()
    torch.testing.assert_close(stdit(**inputs())[0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_over_time_is_right_on_average():
    """For tokens of mean 0 and size 1 under the mean modulation; its gate as near as it can be."""
    latte, stdit = networks()
    times = torch.arange(0, 1000, 50)
    modulation = latte.adaln_single(times, hidden_dtype=torch.float32)[0].unflatten(1, (6, -1))
    temporal, block = latte.temporal_transformer_blocks[0], stdit.transformer_blocks[0]
    shift, scale = (modulation + temporal.scale_shift_table).mean(0)[:2]
    source, ours = temporal.attn1, block.temporal_attn
    x = torch.nn.functional.layer_norm(torch.randn(3, 4, 32), (32,), eps=0)
    read = x * (1 + scale) + shift
    expected = torch.cat([source.to_q(read), source.to_k(read), source.to_v(read)], dim=-1)
    torch.testing.assert_close(ours.to_qkv(x), expected, rtol=1e-4, atol=1e-5)

    wanted = (modulation + temporal.scale_shift_table)[:, 2]
    gate = (modulation + block.scale_shift_table)[:, 2]
    ratio = ours.to_out.bias / source.to_out[0].bias
    torch.testing.assert_close(ours.to_out.weight, ratio[:, None] * source.to_out[0].weight)
    error = (ratio * gate - wanted).square().sum(0)
    for other in (0.0, 1.0, 0.9 * ratio, 1.1 * ratio):
        assert bool((error <= (other * gate - wanted).square().sum(0)).all())


@torch.no_grad()
def test_the_largest_units_are_kept():
    latte, stdit = networks(mlp_ratio=3.0)
    inner, outer = (latte.transformer_blocks[0].ff.net[i] for i in (0, 2))
    size = inner.proj.weight.norm(dim=1) * outer.weight.norm(dim=0)
    ours = stdit.transformer_blocks[0].ff
    made = ours.net[0].proj.weight.norm(dim=1) * ours.net[2].weight.norm(dim=0)
    torch.testing.assert_close(made, size.sort(descending=True).values[:96])


@pytest.mark.parametrize("source", ["video", "stdit"])
@torch.no_grad()
def test_begins_from_a_directory(source, tmp_path):
    trained, text_encoder = make_transformer(source), make_text_encoder()
    trained.save_pretrained(tmp_path / "transformer")
    text_encoder.save_pretrained(tmp_path / "text_encoder")
    stdit, text = begin_from(tmp_path, make_transformer("stdit"), make_text_encoder())
    torch.testing.assert_close(text.state_dict(), text_encoder.state_dict())
    assert torch.equal(stdit.adaln_single.linear.weight, trained.adaln_single.linear.weight)
    if source == "video":
        # its end token, then padding
        empty = torch.tensor([[1] + [0] * 15])
        expected = text_encoder(empty, attention_mask=(empty == 1).long())[0][0]
        torch.testing.assert_close(stdit.null_caption, expected)
