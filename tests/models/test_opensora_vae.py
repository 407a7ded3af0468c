"""The decoder in time computes what Open-Sora computes."""

import json

import pytest
import torch
from safetensors import safe_open

import upstream
from checks import refuses
from viditq.errors import InputError
from viditq.models.opensora_vae import OpenSoraTemporalDecoder
from viditq.models.opensora_vae_checkpoint import (
    image_autoencoder_weights,
    temporal_decoder_from,
)

VAE = "1.2-vae"


def made(**changed):
    tensors = {**upstream.weights(VAE), **changed}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return temporal_decoder_from(kept, "vae.pth")


@pytest.fixture(scope="module")
def decoder():
    return made()


def decode(decoder):
    with torch.inference_mode():
        return decoder.decode(upstream.recorded(VAE)["decode.latents"], 23)


def test_frames_are_upstreams(decoder):
    expected = upstream.recorded(VAE)["decode.output"]
    assert expected.shape == (2, 4, 23, 3, 2)
    upstream.assert_same(decode(decoder), expected)


def test_latent_frames_are_upstreams(decoder):
    with safe_open(upstream.FOLDER / f"opensora-{VAE}.safetensors", "pt") as file:
        expected = json.loads(file.metadata()["latent_frames"])
    assert {n: decoder.latent_frames(int(n)) for n in expected} == expected


def test_saved_and_loaded_it_is_the_same(decoder, tmp_path):
    decoder.save_pretrained(tmp_path)
    again = OpenSoraTemporalDecoder.from_pretrained(tmp_path)
    assert torch.equal(decode(again), decode(decoder))


def test_a_chunk_does_not_depend_on_what_follows(decoder):
    latents = upstream.recorded(VAE)["decode.latents"].clone()
    before = decoder.decode(latents, 23)
    latents[:, :, 5:] = 0
    assert torch.equal(decoder.decode(latents, 23)[:, :, :17], before[:, :, :17])


def test_weights_of_the_image_autoencoder():
    image = {"spatial_vae.module.decoder.conv_in.bias": torch.ones(3)}
    assert list(image_autoencoder_weights({**upstream.weights(VAE), **image})) == [
        "decoder.conv_in.bias"
    ]


def test_what_encodes_is_left_out(decoder):
    others = ("temporal_vae.encoder.conv_in.conv.weight", "spatial_vae.module.decoder.conv_in.bias")
    also = made(**dict.fromkeys(others, torch.zeros(1)))
    assert torch.equal(decode(also), decode(decoder))


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({"scale": None}, ("no checkpoint of the autoencoder",)),
        ({"temporal_vae.decoder.norm1.bias": None}, ("lacks", "decoder.norm1.bias")),
        ({"temporal_vae.decoder.more": torch.zeros(1)}, ("holds", "decoder.more")),
        ({"temporal_vae.decoder.norm1.bias": torch.zeros(3)}, ("norm1.bias", "(3,)", "(2,)")),
    ],
)
def test_a_tensor_that_is_wrong(changed, facts):
    with refuses(InputError, "vae.pth", *facts):
        made(**changed)
