"""What DreamBooth and LoRA share: both train the denoiser, and the text encoders when asked."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from finetune.base import BasePipeline
from finetune.method import ArtifactFormat, Method, MethodConfig, ParameterGroup, Requirements


class NetworkMethodConfig(MethodConfig):
    """A rare token for the subject, and which networks learn it at which rate."""

    identifier: str = Field("sks", min_length=1)
    """Rare token that stands before the class noun; best one that the base knows nothing about."""
    train_text_encoder: bool = False
    """Train the text encoders too: closer likeness, more drift, more memory."""
    text_encoder_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate on the text encoders; null takes the denoiser's."""


class NetworkMethod(Method):
    """A method that trains parameters inside the base's networks."""

    artifact_format: ClassVar[ArtifactFormat]
    config: NetworkMethodConfig

    def requirements(self) -> Requirements:
        """The denoiser, and the text encoders when asked."""
        roles = ("denoiser", "text_encoders") if self.config.train_text_encoder else ("denoiser",)
        return Requirements(
            families=(), artifact_format=self.artifact_format, trainable_components=roles
        )

    def subject_phrase(self, class_noun: str) -> str:
        """Rare token plus class noun: "sks dog"."""
        return f"{self.config.identifier} {class_noun}"

    def networks(self, base: BasePipeline) -> dict[str, nn.Module]:
        """The networks it trains, by pipeline name; the denoiser first."""
        networks = {base.family.denoiser_name: base.denoiser}
        if self.config.train_text_encoder:
            encoders = base.components.text_encoders
            networks |= {name: encoders[name] for name in base.family.trainable_text_encoders}
        return networks

    def parameter_groups(self, base: BasePipeline) -> list[ParameterGroup]:
        """One group per network that has something to train: what `prepare` made trainable there."""
        config, groups = self.config, []
        for component, network in self.networks(base).items():
            learning_rate = config.learning_rate
            if component != base.family.denoiser_name and config.text_encoder_learning_rate:
                learning_rate = config.text_encoder_learning_rate
            parameters = {
                f"{component}.{name}": parameter
                for name, parameter in network.named_parameters()
                if parameter.requires_grad
            }
            if parameters:
                groups.append(
                    ParameterGroup(component, parameters, learning_rate, config.weight_decay)
                )
        return groups
