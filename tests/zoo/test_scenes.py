"""Captions say scenes, and held-out captions are never trained on."""

from itertools import islice

import pytest
import torch

from viditq.errors import InputError, PipelineError
from viditq.zoo import BUNDLED, calibration_prompts, held_out_prompts
from viditq.zoo.batches import SceneBatch, random_batch
from viditq.zoo.catalog import kind_of
from viditq.zoo.scenes import ATTRIBUTES, KINDS, Scene, held_out_combinations, sample_scenes
from viditq.zoo.text import TOKENS, caption_table, make_tokenizer


def test_a_caption():
    scene = Scene(
        "star", "red", "small", "plain", "checkerboard", "blue", position=None, motion="left"
    )
    assert scene.caption() == "a small red star moving left over a blue checkerboard"


@pytest.mark.parametrize("kind", KINDS)
def test_captions_parse_back(kind):
    for scene in islice(sample_scenes(kind, held_out=False, seed=3), 500):
        assert Scene.parse(scene.caption()).attributes() == scene.attributes()


@pytest.mark.parametrize(
    "caption", ["", "a cat", "a small red star over a blue checkerboard", "a red star orbiting"]
)
def test_other_sentences_are_refused(caption):
    with pytest.raises(ValueError, match="caption"):
        Scene.parse(caption)


def test_scenes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="vanish"):
        Scene("star", "red", "small", "plain", "dots", "red", motion="left")
    with pytest.raises(ValueError, match="either"):
        Scene("star", "red", "small", "plain", "dots", "blue")
    with pytest.raises(ValueError, match="'pear'"):
        Scene("pear", "red", "small", "plain", "dots", "blue", motion="left")


@pytest.mark.parametrize("name", BUNDLED)
def test_prompts_are_seeded_distinct_and_disjoint(name):
    held_out = held_out_prompts(name, 256)
    assert held_out == held_out_prompts(name, 256)
    assert len(set(held_out)) == 256
    assert all(Scene.parse(caption).held_out for caption in held_out)
    calibration = calibration_prompts(name, 256)
    assert not any(Scene.parse(caption).held_out for caption in calibration)
    assert held_out_prompts(name, 4, seed=1) != held_out[:4]


def test_every_value_is_held_out_somewhere():
    for column, name in enumerate(("shape", "colour", "pattern", "background")):
        values = {combination[column] for combination in held_out_combinations()}
        assert values == set(ATTRIBUTES["image"][name])


def test_mistakes():
    with pytest.raises(PipelineError, match="shapes-image"):
        held_out_prompts("shapes")
    with pytest.raises(InputError, match="between 1 and"):
        held_out_prompts("shapes-image", 0)
    assert kind_of("shapes-video-stress") == "video"


@pytest.mark.parametrize("kind", KINDS)
def test_random_batches_stay_on_the_training_side(kind):
    batch = random_batch(kind, 300, torch.Generator().manual_seed(0))
    assert len(batch) == 300
    scenes = batch.scenes()
    assert not any(scene.held_out for scene in scenes)
    assert torch.equal(SceneBatch.of(scenes).indices, batch.indices)
    everything = random_batch(kind, 300, torch.Generator().manual_seed(0), everything=True)
    assert any(scene.held_out for scene in everything.scenes())


def test_caption_table_is_what_the_tokenizer_makes():
    ids, lengths = caption_table("image")
    batch = random_batch("image", 64, torch.Generator().manual_seed(0))
    tokens = make_tokenizer()(
        [scene.caption() for scene in batch.scenes()],
        padding="max_length",
        max_length=TOKENS,
        return_tensors="pt",
    )
    assert torch.equal(ids[batch.numbers()], tokens.input_ids)
    assert torch.equal(lengths[batch.numbers()], tokens.attention_mask.sum(1))
    assert ids[-1].tolist() == make_tokenizer()("").input_ids + [0] * (TOKENS - 1)
    assert lengths.max() < TOKENS
