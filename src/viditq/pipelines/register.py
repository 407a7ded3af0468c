"""Making diffusers load viditq checkpoints by itself.

After :func:`register`, ``DiffusionPipeline.from_pretrained(dir)`` and the transformer's own
``from_pretrained`` read a quantized checkpoint like any other, with diffusers' loader (offloading,
device maps). A checkpoint that lacks tensors is refused; one that holds more than the model has is
not, as :func:`viditq.pipelines.load`, which does not need this, would. Quantizing while loading is
declined: it would have no calibration.
"""

from enum import Enum
from pathlib import Path
from typing import Any

import torch
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from viditq.checkpoint import QUANT_METHOD, open_weights, parse_config, refuse_missing
from viditq.errors import CheckpointError
from viditq.nn import EXACT_TENSORS, FP32_TENSORS, QuantLinear, replace_
from viditq.plan import Plan

__all__ = ["register"]


class _Method(str, Enum):  # noqa: UP042 - diffusers compares its members with plain strings
    VIDITQ = QUANT_METHOD


class ViditqConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a viditq checkpoint, as diffusers passes it around."""

    def __init__(self, **entry: Any) -> None:
        entry["quant_method"] = QUANT_METHOD
        self.config = parse_config(entry, "quantization_config")
        self.quant_method = _Method.VIDITQ  # pyright: ignore[reportAttributeAccessIssue]

    def to_json_string(self, use_diff: bool = True) -> str:  # noqa: ARG002
        return self.config.model_dump_json(exclude_none=True)

    def to_dict(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json", exclude_none=True)


class ViditqQuantizer(DiffusersQuantizer):
    """Puts quantized layers in place before the weights are read."""

    requires_calibration = True
    use_keep_in_fp32_modules = True

    def maybe_update_loaded_keys(
        self, loaded_keys: list[str], checkpoint_files: list[str]
    ) -> list[str]:
        """Those of ``loaded_keys`` that the files hold; an index may name more."""
        self._folder = Path(checkpoint_files[0]).parent
        held: set[str] = set()
        for path in checkpoint_files:
            with open_weights(path) as file:
                held.update(file.keys())
        return [name for name in loaded_keys if name in held]

    def update_missing_keys(
        self,
        model: nn.Module,
        missing_keys: list[str],
        prefix: str,  # noqa: ARG002
    ) -> list[str]:
        """None; where there are any, diffusers would warn and go on."""
        try:
            refuse_missing(self._folder, missing_keys, len(model.state_dict()))
        except CheckpointError:
            self._leave_list()
            raise
        return []

    def check_if_quantized_param(
        self,
        model: nn.Module,
        param_value: Tensor,  # noqa: ARG002
        param_name: str,
        state_dict: dict[str, Any],  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> bool:
        return isinstance(model.get_submodule(param_name.rpartition(".")[0]), QuantLinear)

    def check_quantized_param_shape(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, param_name: str, current_param: Tensor, loaded_param: Tensor
    ) -> bool:
        if current_param.shape != loaded_param.shape:
            self._leave_list()
            raise CheckpointError(
                f"{param_name} has shape {tuple(loaded_param.shape)}, expected "
                f"{tuple(current_param.shape)}."
            )
        return True

    def create_quantized_param(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: nn.Module,
        param_value: Tensor,
        param_name: str,
        target_device: torch.device,
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        layer, _, name = param_name.rpartition(".")
        if name in EXACT_TENSORS:  # diffusers casts floats, fp8 too, to the loading dtype
            param_value = param_value.to(model.get_parameter(param_name).dtype)
        parameter = nn.Parameter(param_value.to(target_device), requires_grad=False)
        model.get_submodule(layer).register_parameter(name, parameter)

    def _process_model_before_weight_loading(
        self,
        model: nn.Module,
        device_map: Any = None,  # noqa: ARG002
        keep_in_fp32_modules: list[str] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        assert isinstance(self.quantization_config, ViditqConfig)
        plan = Plan.from_json(self.quantization_config.config.plan, where="quantization_config")
        replace_(model, plan)
        model.register_to_config(quantization_config=self.quantization_config)  # pyright: ignore
        # diffusers casts every float tensor to the loading dtype but those whose name has a part in
        # this list, and reads the list again while loading.
        self._kept = keep_in_fp32_modules if keep_in_fp32_modules is not None else []
        self._kept.extend(FP32_TENSORS)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:  # noqa: ARG002
        self._leave_list()
        return model

    def _leave_list(self) -> None:
        """Take off the list what was put on it: it may be the model class's own attribute."""
        for name in FP32_TENSORS:
            self._kept.remove(name)

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def register() -> None:
    """Teach diffusers to load checkpoints of viditq; calling it again is harmless."""
    auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = ViditqQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = ViditqConfig
