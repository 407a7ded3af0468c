"""What the code of the authors itself computed, recorded with the random weights it computed with.

``models/opensora-1.0.safetensors`` was made with hpcaitech/Open-Sora v1.0.0, in fp32 on the CPU: a
network of two blocks (``config`` in the file's metadata has the arguments of ``STDiT``), its
outputs on two captions, one of them padded, and two samples of its scheduler ``iddpm``, 4 steps
with guidance 4, of which the noise was kept. Of what that code imports only xformers' attention was
replaced, by a softmax within each caption; its accelerated kernels were off.

``models/opensora-1.2.safetensors`` was made in the same way with v1.2.0: a ``STDiT3``, once with
the first frame of one video given, and two samples of its scheduler ``rflow``, 4 steps with
guidance 4 for 17 frames of 40×64 pixels at 24 frames per second. The decoder in time of its
autoencoder is in ``models/opensora-1.2-vae.safetensors``, with latents that it decoded to 23
frames; the image autoencoder behind it gave back what it got.

``models/latte-class.safetensors`` was made with Vchitect/Latte (commit b27c24a), in fp32 on the
CPU: a network of two pairs of blocks (``config`` has the arguments of ``Latte``), its outputs for a
class and for none, those of the same weights without the table of classes (``extras`` 1), and two
samples of its diffusion, 4 steps with guidance 4, of which the noise was kept. Videos are
(B, T, C, H, W) there.
"""

import json
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from viditq.models.latte_class_checkpoint import latte_class_from
from viditq.models.opensora_checkpoint import stdit3_from, stdit_from

FOLDER = Path(__file__).parent / "models"


LATTE = "latte-class"


def _file(version):
    return FOLDER / f"{version if version == LATTE else f'opensora-{version}'}.safetensors"


@cache
def recorded(version="1.0"):
    """Tensors by name: ``weights.…``, ``call.…`` and ``sample.…``."""
    return load_file(_file(version))


def config(version="1.0"):
    """The arguments that upstream's class was given."""
    with safe_open(_file(version), "pt") as file:
        return json.loads(file.metadata()["config"])


def weights(version="1.0"):
    """The weights as a checkpoint of upstream has them."""
    found = {name.partition("."): tensor for name, tensor in recorded(version).items()}
    return {name: tensor for (what, _, name), tensor in found.items() if what == "weights"}


def assert_same(found, expected):
    """As near as sums in another order leave a network's outputs: 1e-5 of the largest of them.

    The processor decides on the order; 1.4e-5 of values up to 3 was seen on one other than the one
    that recorded.
    """
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * largest)


def options():
    """What of the configuration of 1.0 does not follow from the weights."""
    given = config()
    frames, size, _ = given["input_size"]
    return {
        "num_attention_heads": given["num_heads"],
        "sample_size": size,
        "video_length": frames,
        "spatial_interpolation_scale": given["space_scale"],
        "temporal_interpolation_scale": given["time_scale"],
    }


def stdit():
    """Our network with the weights of theirs."""
    return stdit_from(weights(), "the record", **options())


def stdit3():
    """The network of 1.2, likewise."""
    given = config("1.2")
    sizes = {"num_attention_heads": given["num_heads"], "base_size": given["input_sq_size"]}
    return stdit3_from(weights("1.2"), "the record", **sizes)


def latte_class(*, classes=True):
    """Latte for classes, likewise; or with the same weights but the table of classes."""
    table = "y_embedder.embedding_table.weight"
    kept = {name: tensor for name, tensor in weights(LATTE).items() if classes or name != table}
    return latte_class_from(kept, "the record", num_attention_heads=config(LATTE)["num_heads"])
