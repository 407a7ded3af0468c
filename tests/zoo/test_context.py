"""Training shows the video transformer what the stock pipeline will show it."""

import pytest
import torch
from diffusers import LattePipeline

from viditq.zoo.draw import FRAMES
from viditq.zoo.text import TOKENS, make_tokenizer
from viditq.zoo.train.diffusion import _encode_text, latte_context
from viditq.zoo.train.models import make_scheduler, make_text_encoder, make_transformer, make_vae

PROMPTS = [
    "a small striped red star moving left over a blue checkerboard",
    "a white ring growing over green dots",
]


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    transformer = make_transformer("video")
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    text_encoder = make_text_encoder().eval()
    return LattePipeline(
        make_tokenizer(), text_encoder, make_vae(), transformer.eval(), make_scheduler()
    )


def trained_view(pipe, prompts, beside, dropped, many, latents, times):
    tokens = pipe.tokenizer(prompts, padding="max_length", max_length=TOKENS, return_tensors="pt")
    mask = tokens.attention_mask.bool()
    context = _encode_text(pipe.text_encoder, tokens.input_ids, mask)
    length = mask.sum(1)
    number = len(prompts)
    context, bias = latte_context(
        context,
        length,
        torch.full((number,), beside) if beside else length,
        torch.full((number,), dropped),
        torch.full((number,), many),
    )
    return pipe.transformer(
        latents,
        encoder_hidden_states=context,
        encoder_attention_mask=bias[:, None].repeat_interleave(FRAMES, dim=0),
        timestep=times,
        return_dict=False,
    )[0]


@pytest.mark.parametrize("number", [1, 2])
@torch.no_grad()
def test_same_prediction_as_the_stock_pipeline(pipe, number):
    prompts = PROMPTS[:number]
    prompt, negative = pipe.encode_prompt(prompts, clean_caption=False)
    latents = torch.randn(number, 4, FRAMES, 16, 16, generator=torch.Generator().manual_seed(1))
    times = torch.full((number,), 500)
    many = number > 1
    for stock, texts, dropped in ((prompt, prompts, False), (negative, [""] * number, True)):
        expected = pipe.transformer(
            latents, encoder_hidden_states=stock, timestep=times, return_dict=False
        )[0]
        beside = prompt.shape[1] if dropped else 0
        made = trained_view(pipe, texts, beside, dropped, many, latents, times)
        torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-4 * float(expected.std()))
