"""LoRA (Hu et al. 2022): low-rank updates beside frozen projections, through PEFT."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Literal, final

from peft import (
    LoraConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from torch import Tensor

from finetune.base import BasePipeline
from finetune.errors import ConfigError
from finetune.method import require_same_keys
from methods._networks import NetworkMethod, NetworkMethodConfig

_TEXT_PREFIX = "text_model."
"""Other tools expect it behind `text_encoder.`, whether or not the installed CLIP class nests."""


class LoRAMethodConfig(NetworkMethodConfig):
    """Low-rank adapters on the denoiser, and on the text encoders when asked."""

    kind: Literal["lora"] = "lora"
    """Name of the method."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of the adapters."""
    rank: int = Field(8, gt=0)
    """Rank r of the update B·A; size and capacity grow with it."""
    alpha: float | None = Field(None, gt=0)
    """The update is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank)); null means alpha = rank, which
    every loader understands."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of zeroing an adapter's input while training."""
    target_modules: tuple[str, ...] | None = None
    """Endings of the module names that get an adapter; null takes the family's attention layers."""
    use_rslora: bool = False
    """Scale by 1 / sqrt(rank) (Kalajdzievski 2023), so that high ranks keep learning."""
    use_dora: bool = False
    """Learn the magnitude apart from the direction (Liu et al. 2024); slower."""


@final
class LoRA(NetworkMethod):
    """Trains adapters; the base's own weights are never written."""

    config_class = LoRAMethodConfig
    artifact_format = "lora"
    config: LoRAMethodConfig

    def _peft_config(self, base: BasePipeline, component: str) -> LoraConfig:
        config = self.config
        chosen = config.target_modules if component == base.family.denoiser_name else None
        return LoraConfig(
            r=config.rank,
            lora_alpha=config.rank if config.alpha is None else config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=list(chosen or base.family.adapter_targets(component)),
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
        )

    def prepare(self, base: BasePipeline) -> None:
        """Put adapters beside the target modules; they begin as no-ops (B = 0)."""
        base.forget_prompts()
        for component, module in self.networks(base).items():
            try:
                inject_adapter_in_model(self._peft_config(base, component), module)
            except ValueError as error:
                raise ConfigError(f"method.target_modules: {error}") from error
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()

    @contextlib.contextmanager
    def frozen(self, base: BasePipeline) -> Iterator[None]:
        """Switch the adapters off."""
        layers = [
            layer
            for module in self.networks(base).values()
            for layer in module.modules()
            if isinstance(layer, BaseTunerLayer)
        ]
        trainable = [parameter for parameter in base.trainable_parameters().values()]
        try:
            for layer in layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            for parameter in trainable:
                parameter.requires_grad_(True)

    def detach(self, base: BasePipeline) -> None:
        """Put every wrapped module back where it was."""
        for module in self.networks(base).values():
            for name, layer in list(module.named_modules()):
                if isinstance(layer, BaseTunerLayer):
                    parent_name, _, child = name.rpartition(".")
                    setattr(module.get_submodule(parent_name), child, layer.get_base_layer())
            if "peft_config" in vars(module):
                del module.peft_config
            module.requires_grad_(False)
        base.forget_prompts()

    def state_dict(self, base: BasePipeline) -> dict[str, Tensor]:
        """Adapter weights under the keys that diffusers, and ComfyUI's text side, read."""
        state = {}
        for component, module in self.networks(base).items():
            prefix = _TEXT_PREFIX if component in base.components.text_encoders else ""
            for name, value in get_peft_model_state_dict(module).items():
                state[f"{component}.{prefix}{name.removeprefix(prefix)}"] = value.detach()
        return state

    def load_state_dict(self, base: BasePipeline, state: dict[str, Tensor]) -> None:
        """Copy `state` into the adapters."""
        require_same_keys(state, self.state_dict(base), "LoRA")
        for component, module in self.networks(base).items():
            nested = any(name.startswith(_TEXT_PREFIX) for name, _ in module.named_modules())
            prefix = (
                _TEXT_PREFIX if component in base.components.text_encoders and not nested else ""
            )
            own = {
                key.removeprefix(f"{component}.").removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(f"{component}.")
            }
            set_peft_model_state_dict(module, own)

    def artifact_metadata(self, base: BasePipeline) -> dict[str, str]:
        """The adapters' configuration, without which a loader assumes alpha = rank."""
        settings: dict[str, Any] = {}
        for component in self.networks(base):
            for name, value in self._peft_config(base, component).to_dict().items():
                plain = sorted(value) if isinstance(value, set) else value
                settings[f"{component}.{name}"] = plain
            # diffusers leaves adapters in training mode when it loads them, so dropout would stay on.
            settings[f"{component}.lora_dropout"] = 0.0
        return {
            "lora_adapter_metadata": json.dumps(settings, indent=2, sort_keys=True, default=str)
        }
