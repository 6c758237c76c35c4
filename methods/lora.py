"""LoRA (Hu et al. 2022): low-rank updates beside frozen projections, through PEFT."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar, final

from peft import (
    LoraConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from torch import Tensor, nn

from finetune.artifact import TEXT_PREFIX, names_module
from finetune.base import BasePipeline
from finetune.errors import ConfigError
from finetune.method import require_same_keys
from methods._networks import NetworkMethod, NetworkMethodConfig

Number = TypeVar("Number", int, float)


MAX_RANK = 4096
"""More than any projection of a base in use has; what a file asks for is bounded by it."""


class LoRAMethodConfig(NetworkMethodConfig):
    """Low-rank adapters on the denoiser, and on the text encoders when asked."""

    kind: Literal["lora"] = "lora"
    """Name of the method."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of the adapters."""
    rank: int = Field(8, gt=0, le=MAX_RANK)
    """Rank r of the update B·A; size and capacity grow with it."""
    alpha: float | None = Field(None, gt=0)
    """The update is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank)); null means alpha = rank, which
    every loader understands."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of zeroing an adapter's input while training."""
    target_modules: tuple[str, ...] | None = None
    """Endings of the denoiser's module names that get an adapter; null takes the family's attention
    layers, an empty list leaves the denoiser alone."""
    text_encoder_target_modules: tuple[str, ...] | None = None
    """The same for the text encoders, where train_text_encoder is on."""
    rank_pattern: dict[str, Annotated[int, Field(gt=0, le=MAX_RANK)]] = {}
    """Endings of module names -> a rank of their own, while alpha stays; `text_encoder.` in front limits
    one to that network."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}
    """The same for alpha."""
    use_rslora: bool = False
    """Scale by 1 / sqrt(rank) (Kalajdzievski 2023), so that high ranks keep learning."""
    use_dora: bool = False
    """Learn the magnitude apart from the direction (Liu et al. 2024); slower."""


def _own_part(pattern: dict[str, Number], component: str, modules: list[str]) -> dict[str, Number]:
    """Entries of `pattern` that name one of a component's `modules`, without the component's name."""
    endings = {key: key.removeprefix(f"{component}.") for key in pattern}
    try:
        return {
            endings[key]: value
            for key, value in pattern.items()
            if any(names_module(endings[key], module) for module in modules)
        }
    except re.error as error:
        raise ConfigError(
            f"method.rank_pattern and alpha_pattern: not a pattern: {error}."
        ) from error


@final
class LoRA(NetworkMethod):
    """Trains adapters; the base's own weights are never written."""

    config_class = LoRAMethodConfig
    artifact_format = "lora"
    config: LoRAMethodConfig

    def _targets(self, base: BasePipeline, component: str) -> list[str]:
        config, is_denoiser = self.config, component == base.family.denoiser_name
        chosen = config.target_modules if is_denoiser else config.text_encoder_target_modules
        return base.family.adapter_targets(component) if chosen is None else list(chosen)

    def _targeted(self, base: BasePipeline, component: str) -> list[str]:
        targets = self._targets(base, component)
        endings = tuple(f".{target}" for target in targets)
        names = (name for name, _ in self.networks(base)[component].named_modules())
        return [name for name in names if name in targets or name.endswith(endings)]

    def _check_targets(self, base: BasePipeline) -> None:
        if not self._adapted(base):
            raise ConfigError(
                "method.target_modules is empty, so there is nothing to train. Name modules, or leave it out "
                "for the family's own."
            )

    def _check_patterns(self, base: BasePipeline) -> None:
        targeted = {name: self._targeted(base, name) for name in self._adapted(base)}
        for field in ("rank_pattern", "alpha_pattern"):
            for key, value in self.config.model_dump()[field].items():
                if not any(_own_part({key: value}, *item) for item in targeted.items()):
                    raise ConfigError(
                        f"method.{field}: '{key}' names no module that gets an adapter. Give the ending of "
                        "a module's name, for instance attn2.to_k."
                    )

    def _check_ranks(self, base: BasePipeline) -> None:
        for component, network in self._adapted(base).items():
            settings = self._peft_config(base, component)
            for name in self._targeted(base, component):
                layer = network.get_submodule(name)
                if not isinstance(layer, nn.Linear):
                    continue
                own = [r for key, r in settings.rank_pattern.items() if names_module(key, name)]
                rank, limit = (own or [settings.r])[0], min(layer.in_features, layer.out_features)
                if rank > limit:
                    raise ConfigError(
                        f"method.rank: {rank} is more than {component}.{name} can have, which is a layer of "
                        f"{layer.in_features} × {layer.out_features}. At most {limit} makes sense there."
                    )

    def _adapted(self, base: BasePipeline) -> dict[str, nn.Module]:
        networks = self.networks(base)
        return {name: module for name, module in networks.items() if self._targets(base, name)}

    def _peft_config(self, base: BasePipeline, component: str) -> LoraConfig:
        config, modules = self.config, self._targeted(base, component)
        return LoraConfig(
            r=config.rank,
            lora_alpha=config.rank if config.alpha is None else config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=self._targets(base, component),
            rank_pattern=_own_part(config.rank_pattern, component, modules),
            alpha_pattern=_own_part(config.alpha_pattern, component, modules),
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
        )

    def prepare(self, base: BasePipeline) -> None:
        """Put adapters beside the target modules; they begin as no-ops (B = 0)."""
        base.forget_prompts()
        self._check_targets(base)
        self._check_patterns(base)
        self._check_ranks(base)
        for component, module in self._adapted(base).items():
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
        for component, module in self._adapted(base).items():
            prefix = TEXT_PREFIX if component in base.components.text_encoders else ""
            for name, value in get_peft_model_state_dict(module).items():
                state[f"{component}.{prefix}{name.removeprefix(prefix)}"] = value.detach()
        return state

    def load_state_dict(self, base: BasePipeline, state: dict[str, Tensor]) -> None:
        """Copy `state` into the adapters."""
        require_same_keys(state, self.state_dict(base), "LoRA")
        for component, module in self._adapted(base).items():
            nested = any(name.startswith(TEXT_PREFIX) for name, _ in module.named_modules())
            prefix = (
                TEXT_PREFIX if component in base.components.text_encoders and not nested else ""
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
        for component in self._adapted(base):
            for name, value in self._peft_config(base, component).to_dict().items():
                plain = sorted(value) if isinstance(value, set) else value
                settings[f"{component}.{name}"] = plain
            # diffusers leaves adapters in training mode when it loads them, so dropout would stay on.
            settings[f"{component}.lora_dropout"] = 0.0
        return {
            "lora_adapter_metadata": json.dumps(settings, indent=2, sort_keys=True, default=str)
        }
