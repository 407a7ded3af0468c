"""Facts about pipelines, found by class."""

import pytest
from diffusers import DiffusionPipeline, ModelMixin

import tiny
from checks import refuses
from viditq import pipelines
from viditq.errors import PipelineError
from viditq.models import transformer_class
from viditq.pipelines.families import FAMILIES, family_named


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_a_class(name):
    facts = FAMILIES[name]
    assert facts.pipeline == name
    assert issubclass(facts.pipeline_class, DiffusionPipeline)
    assert facts.pipeline_class.__name__ == name
    assert issubclass(transformer_class(facts.adapter.transformer), ModelMixin)
    assert facts.kind in ("image", "video")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (tiny.pixart, "image"),
        (tiny.latte, "video"),
        (tiny.latte_of_classes, "video"),
        (tiny.opensora, "video"),
        (tiny.opensora12, "video"),
    ],
)
def test_of_a_loaded_pipeline(make, kind):
    assert pipelines.family(make()).kind == kind


def test_a_pipeline_without_transformer():
    class StableDiffusionPipeline:
        unet = None

    with refuses(PipelineError, "StableDiffusionPipeline", "U-Net"):
        pipelines.family(StableDiffusionPipeline())


def test_names():
    assert family_named("LattePipeline").kind == "video"
    with refuses(PipelineError, "NoPipeline"):
        family_named("NoPipeline")
    with refuses(PipelineError, "NoPipeline", "is not supported"):
        family_named("NoPipeline", "PixArtTransformer2DModel")
