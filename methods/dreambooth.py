"""DreamBooth (Ruiz et al. 2023): fine-tune the denoiser itself on a rare token plus the class noun."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from finetune.base import BasePipeline
from finetune.method import require_same_keys
from methods._networks import NetworkMethod, NetworkMethodConfig


class DreamBoothConfig(NetworkMethodConfig):
    """Full fine-tuning; the prior that protects the class is set under `prior`."""

    kind: Literal["dreambooth"] = "dreambooth"
    """Name of the method."""
    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate of the denoiser; 5e-6 is the paper's for Stable Diffusion."""


@final
class DreamBooth(NetworkMethod):
    """Trains every weight of the denoiser, and of the text encoders when asked."""

    config_class = DreamBoothConfig
    artifact_format = "pipeline"
    config: DreamBoothConfig

    def __init__(self, config: DreamBoothConfig) -> None:
        super().__init__(config)
        self._original: dict[str, Tensor] = {}

    def _parameters(self, base: BasePipeline) -> dict[str, nn.Parameter]:
        return {
            f"{component}.{name}": parameter
            for component, module in self.networks(base).items()
            for name, parameter in module.named_parameters()
        }

    def prepare(self, base: BasePipeline) -> None:
        """Keep the frozen weights aside and train float32 copies of them."""
        base.forget_prompts()
        for name, parameter in self._parameters(base).items():
            self._original[name] = parameter.data
            parameter.data = parameter.data.float().clone()
            parameter.requires_grad_(True)

    def _kept(self, name: str, device: torch.device) -> Tensor:
        """The frozen weight, which follows its parameter to another device."""
        original = self._original[name]
        if original.device != device:
            original = self._original[name] = original.to(device)
        return original

    @contextlib.contextmanager
    def frozen(self, base: BasePipeline) -> Iterator[None]:
        """Point the parameters at the weights kept aside; nothing is copied."""
        parameters = self._parameters(base)
        tuned = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self._kept(name, parameter.device)
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = tuned[name]

    def detach(self, base: BasePipeline) -> None:
        """Put the kept weights back; nothing happens if `prepare` has not been called."""
        parameters = self._parameters(base)
        for name in self._original:
            parameter = parameters[name]
            parameter.requires_grad_(False).grad = None
            parameter.data = self._kept(name, parameter.device)
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
