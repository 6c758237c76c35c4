"""DreamBooth (Ruiz et al. 2023): fine-tune the denoiser itself on a rare token plus the class noun."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from finetune.base import BasePipeline
from finetune.method import Method, MethodConfig, ParameterGroup, Requirements, require_same_keys


class DreamBoothConfig(MethodConfig):
    """Full fine-tuning; the prior that protects the class is set under `prior`."""

    kind: Literal["dreambooth"] = "dreambooth"
    """Name of the method."""
    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate of the denoiser; 5e-6 is the paper's for Stable Diffusion."""
    identifier: str = Field("sks", min_length=1)
    """Rare token that stands before the class noun; best one that the base knows nothing about."""
    train_text_encoder: bool = False
    """Fine-tune the text encoders too: closer likeness, more drift, more memory."""
    text_encoder_learning_rate: float | None = Field(None, gt=0)
    """Learning rate of the text encoders; null takes the denoiser's."""


@final
class DreamBooth(Method):
    """Trains every weight of the denoiser, and of the text encoders when asked."""

    config_class = DreamBoothConfig
    config: DreamBoothConfig

    def __init__(self, config: DreamBoothConfig) -> None:
        super().__init__(config)
        self._original: dict[str, Tensor] = {}

    def requirements(self) -> Requirements:
        """A full pipeline is shipped."""
        components = ("unet", "text_encoder") if self.config.train_text_encoder else ("unet",)
        return Requirements(
            families=("sd",), artifact_format="pipeline", trainable_components=components
        )

    def subject_phrase(self, class_noun: str) -> str:
        """Rare token plus class noun: "sks dog"."""
        return f"{self.config.identifier} {class_noun}"

    def _modules(self, base: BasePipeline) -> dict[str, nn.Module]:
        modules = {base.family.denoiser_name: base.denoiser}
        if self.config.train_text_encoder:
            modules.update(base.components.text_encoders)
        return modules

    def _parameters(self, base: BasePipeline) -> dict[str, nn.Parameter]:
        return {
            f"{component}.{name}": parameter
            for component, module in self._modules(base).items()
            for name, parameter in module.named_parameters()
        }

    def prepare(self, base: BasePipeline) -> None:
        """Keep the frozen weights aside and train float32 copies of them."""
        base.forget_prompts()
        for name, parameter in self._parameters(base).items():
            self._original[name] = parameter.data
            parameter.data = parameter.data.float().clone()
            parameter.requires_grad_(True)

    def parameter_groups(self, base: BasePipeline) -> list[ParameterGroup]:
        """One group per network."""
        config, groups = self.config, []
        for component, module in self._modules(base).items():
            is_denoiser = component == base.family.denoiser_name
            learning_rate = config.learning_rate
            if not is_denoiser and config.text_encoder_learning_rate is not None:
                learning_rate = config.text_encoder_learning_rate
            parameters = {f"{component}.{name}": p for name, p in module.named_parameters()}
            groups.append(ParameterGroup(component, parameters, learning_rate, config.weight_decay))
        return groups

    @contextlib.contextmanager
    def frozen(self, base: BasePipeline) -> Iterator[None]:
        """Point the parameters at the weights kept aside; nothing is copied."""
        parameters = self._parameters(base)
        tuned = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self._original[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = tuned[name]

    def detach(self, base: BasePipeline) -> None:
        """Put the kept weights back; nothing happens if `prepare` has not been called."""
        parameters = self._parameters(base)
        for name, original in self._original.items():
            parameters[name].requires_grad_(False).grad = None
            parameters[name].data = original
        self._original.clear()
        base.forget_prompts()

    def state_dict(self, base: BasePipeline) -> dict[str, Tensor]:
        """Every weight of the trained networks."""
        return {name: p.detach() for name, p in self._parameters(base).items()}

    @torch.no_grad()
    def load_state_dict(self, base: BasePipeline, state: dict[str, Tensor]) -> None:
        """Copy `state` into the trained networks."""
        parameters = self._parameters(base)
        require_same_keys(state, dict(parameters), "DreamBooth state")
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
