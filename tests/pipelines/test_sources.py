"""What is no pipeline is refused by its small files; what is one loads as upstream loads it."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

import tiny
from checks import refuses
from viditq import pipelines
from viditq.errors import InputError, PipelineError
from viditq.nn import QuantLinear
from viditq.pipelines.sources import stored_dtype
from viditq.zoo.catalog import BUNDLED


@pytest.fixture
def own(floats, tmp_path):
    """A float pipeline to break."""
    return shutil.copytree(floats["image"], tmp_path / "own")


def write_index(folder, index) -> None:
    folder.mkdir(exist_ok=True)
    text = index if isinstance(index, str) else json.dumps(index)
    (folder / "model_index.json").write_text(text)


class TestResolve:
    def test_a_directory(self, floats):
        assert pipelines.resolve(floats["image"]) == floats["image"]
        assert pipelines.resolve(str(floats["image"])) == floats["image"]

    @pytest.mark.parametrize("name", ["no-such-pipeline", "./no/such", "/no/such", "a/b/c"])
    def test_nothing_there(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with refuses(PipelineError, repr(name), *BUNDLED, "owner/name"):
            pipelines.resolve(name)

    def test_a_file(self, floats):
        file = floats["image"] / "model_index.json"
        with refuses(PipelineError, str(file), "is a file"):
            pipelines.resolve(file)

    def test_a_hub_id_without_network(self):
        with refuses(PipelineError, "'nobody/nothing'", "hub"):
            pipelines.resolve("nobody/nothing")

    def test_a_path_is_never_a_hub_id(self, tmp_path):
        with refuses(PipelineError, "owner/name"):
            pipelines.resolve(tmp_path / "nobody" / "nothing")


class TestIndex:
    @pytest.mark.parametrize("kind", ["image", "video"])
    def test_a_supported_pipeline(self, floats, kind):
        assert pipelines.read_index(floats[kind])["_class_name"].endswith("Pipeline")

    def test_missing(self, tmp_path):
        with refuses(PipelineError, str(tmp_path), "model_index.json"):
            pipelines.read_index(tmp_path)

    @pytest.mark.parametrize(
        "index",
        [
            "{",
            "[]",
            "null",
            "3",
            {},
            {"_class_name": None},
            {"_class_name": ["PixArtSigmaPipeline"]},
            {"_class_name": "PixArtSigmaPipeline", "transformer": None},
            {"_class_name": "PixArtSigmaPipeline", "transformer": []},
            {"_class_name": "PixArtSigmaPipeline", "transformer": ["diffusers", 3]},
        ],
        ids=str,
    )
    def test_malformed(self, tmp_path, index):
        write_index(tmp_path, index)
        with refuses(PipelineError, "model_index.json"):
            pipelines.read_index(tmp_path)

    def test_a_unet(self, tmp_path):
        unet = ["diffusers", "UNet2DConditionModel"]
        write_index(tmp_path, {"_class_name": "StableDiffusionPipeline", "unet": unet})
        with refuses(PipelineError, "StableDiffusionPipeline", "U-Net", "PixArtSigmaPipeline"):
            pipelines.load(tmp_path)

    @pytest.mark.parametrize("family", ["Flux", "Mochi"])  # the second has no adapter
    def test_a_transformer_whose_pipeline_is_not_known(self, tmp_path, family):
        transformer = ["diffusers", f"{family}Transformer2DModel"]
        write_index(tmp_path, {"_class_name": f"{family}Pipeline", "transformer": transformer})
        with refuses(PipelineError, f"{family}Pipeline is not supported", "PixArtSigmaPipeline"):
            pipelines.load(tmp_path)

    def test_a_known_transformer_in_another_pipeline(self, tmp_path):
        transformer = ["diffusers", "PixArtTransformer2DModel"]
        write_index(tmp_path, {"_class_name": "PixArtSigmaPAGPipeline", "transformer": transformer})
        with refuses(PipelineError, "PixArtSigmaPAGPipeline", "PixArtSigmaPipeline"):
            pipelines.load(tmp_path)


class TestDevice:
    def test_cpu(self):
        assert pipelines.resolve_device("cpu") == torch.device("cpu")

    @pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cpu:0:0", "meta", "mps"])
    def test_none_of_that_name(self, name):
        with refuses(InputError, repr(name), "cpu", "cuda"):
            pipelines.resolve_device(name)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
    def test_no_cuda_here(self):
        with refuses(InputError, "CUDA", "--device cpu"):
            pipelines.resolve_device("cuda")


def test_stored_dtype_is_that_of_most_numbers(tmp_path):
    """A model in 16 bits may keep its norms in fp32, which stand first in the file."""
    assert stored_dtype(tmp_path) is None
    wide, narrow = torch.zeros(8), torch.zeros(12, dtype=torch.bfloat16)
    save_file({"a.norm.weight": wide}, tmp_path / "1.safetensors")
    assert stored_dtype(tmp_path) is torch.float32
    tensors = {
        "b.norm.weight": wide,
        "b.weight": narrow,
        "b.codes": torch.zeros(9, dtype=torch.int8),
    }
    save_file(tensors, tmp_path / "2.safetensors")
    assert stored_dtype(tmp_path) is torch.float32
    save_file({"c.weight": narrow}, tmp_path / "3.safetensors")
    assert stored_dtype(tmp_path) is torch.bfloat16


class TestLoad:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("kind", ["image", "video"])
    def test_a_float_pipeline_is_the_stock_one(self, floats, kind, dtype):
        ours, stock = (
            pipelines.load(floats[kind], dtype=dtype),
            DiffusionPipeline.from_pretrained(floats[kind], dtype=dtype),
        )
        assert type(ours) is type(stock)
        for name, part in stock.components.items():
            assert type(ours.components[name]) is type(part)
            if isinstance(part, torch.nn.Module):
                a, b = part.state_dict(), ours.components[name].state_dict()
                assert set(a) == set(b)
                assert all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)

    def test_half_precision_weights_are_widened_exactly(self, tmp_path):
        pipe = tiny.pixart()
        pipe.transformer.half()
        source = tiny.saved(pipe, tmp_path / "half")
        state = pipelines.load(source).transformer.state_dict()
        for name, tensor in pipe.transformer.state_dict().items():
            assert state[name].dtype == torch.float32
            assert torch.equal(state[name], tensor.float())

    def test_a_quantized_pipeline(self, quantized):
        pipe = pipelines.load(quantized("image", "w8a8"))
        assert sum(isinstance(m, QuantLinear) for m in pipe.transformer.modules()) == 20
        assert not pipe.transformer.training

    @pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer", "scheduler"])
    def test_a_part_is_missing(self, own, part):
        shutil.rmtree(own / part)
        with refuses(PipelineError, str(own), "PixArtSigmaPipeline"):
            pipelines.load(own)

    def test_a_part_is_damaged(self, own):
        file = own / "transformer" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
        with refuses(PipelineError, str(own)):
            pipelines.load(own)

    @pytest.mark.parametrize("enabled", [True, False])
    def test_the_users_settings_are_left_alone(self, floats, enabled):
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        for module in (diffusers_logging, transformers_logging):
            (module.enable_progress_bar if enabled else module.disable_progress_bar)()
        levels = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
        try:
            pipelines.load(floats["image"])
            assert diffusers_logging.is_progress_bar_enabled() == enabled
            assert transformers_logging.is_progress_bar_enabled() == enabled
            assert levels == (
                diffusers_logging.get_verbosity(),
                transformers_logging.get_verbosity(),
            )
        finally:
            for module in (diffusers_logging, transformers_logging):
                module.enable_progress_bar()

    def test_nothing_is_printed(self, floats, capfd):
        pipelines.load(floats["image"])
        assert capfd.readouterr() == ("", "")
