"""Training shows the video transformers what their pipelines will show them."""

import pytest
import torch
from diffusers import LattePipeline

from viditq.pipelines.opensora import OpenSoraPipeline
from viditq.zoo.draw import FRAMES
from viditq.zoo.text import TOKENS, make_tokenizer
from viditq.zoo.train.diffusion import _encode_text, latte_context, open_sora_context
from viditq.zoo.train.models import make_scheduler, make_text_encoder, make_transformer, make_vae
from viditq.zoo.train.stability import centre_keys

PROMPTS = [
    "a small striped red star moving left over a blue checkerboard",
    "a white ring growing over green dots",
]


def pipeline(pipeline_class, stage):
    torch.manual_seed(0)
    transformer = make_transformer(stage)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    text_encoder = make_text_encoder().eval()
    return pipeline_class(
        make_tokenizer(), text_encoder, make_vae(), transformer.eval(), make_scheduler()
    )


@pytest.fixture(scope="module")
def pipe():
    return pipeline(LattePipeline, "video")


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


@pytest.mark.parametrize("number", [1, 2])
@torch.no_grad()
def test_same_prediction_as_the_pipeline_of_open_sora(number):
    """One call of the transformer by the pipeline, empty captions first, and as in training."""
    pipe = pipeline(OpenSoraPipeline, "stdit")
    latents = torch.randn(number, 4, FRAMES, 16, 16, generator=torch.Generator().manual_seed(1))
    calls = []

    def watch(module, args, options, output):
        # the pipeline guides in place
        calls.append((args, options, output[0].clone()))

    hook = pipe.transformer.register_forward_hook(watch, with_kwargs=True)
    pipe(PROMPTS[:number], num_inference_steps=1, latents=latents, output_type="latent")
    hook.remove()
    (((seen,), options, expected),) = calls
    assert len(seen) == 2 * number

    words = pipe.tokenizer(
        PROMPTS[:number] * 2, padding="max_length", max_length=TOKENS, return_tensors="pt"
    )
    length = words.attention_mask.sum(1)
    # a dropped caption's own tokens do not matter
    dropped = torch.arange(2 * number) < number
    ids = words.input_ids.masked_fill(dropped[:, None], 0)
    context = _encode_text(pipe.text_encoder, ids, words.attention_mask.bool())
    null_caption = pipe.transformer.null_caption
    context, mask = open_sora_context(context, null_caption, length, dropped)
    made = pipe.transformer(
        seen,
        encoder_hidden_states=context,
        encoder_attention_mask=mask,
        timestep=options["timestep"],
        return_dict=False,
    )[0]
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-4 * float(expected.std()))
    empty, conditional = expected.chunk(2)
    assert not torch.allclose(empty, conditional, rtol=0.1)


@pytest.mark.parametrize("stage", ["video", "stdit"])
def test_a_training_step_never_waits_for_the_device(stage):
    """The meta device has shapes but no numbers: what needs a number to go on fails there."""
    with torch.device("meta"):
        transformer, text_encoder = make_transformer(stage), make_text_encoder()
        ids = torch.zeros(2, TOKENS, dtype=torch.int64)
        length, dropped = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
        context = _encode_text(text_encoder, ids, torch.arange(TOKENS) < length[:, None])
        if stage == "stdit":
            context, mask = open_sora_context(context, transformer.null_caption, length, dropped)
        else:
            context, mask = latte_context(context, length, length, dropped, dropped)
            mask = mask[:, None].repeat_interleave(FRAMES, dim=0)
        centre_keys(transformer)
        made = transformer(
            torch.zeros(2, 4, FRAMES, 16, 16),
            encoder_hidden_states=context,
            encoder_attention_mask=mask,
            timestep=torch.zeros(2, dtype=torch.int64),
            return_dict=False,
        )[0]
        made.sum().backward()
    assert transformer.proj_out.weight.grad.shape == transformer.proj_out.weight.shape
