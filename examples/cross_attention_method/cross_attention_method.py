"""Cross-attention tuning: train only how the denoiser reads the prompt (Kumari et al. 2023, §3.1).

pip install examples/cross_attention_method, and `method.kind: cross_attention` works everywhere.
"""

from typing import Literal, final

import torch

from finetune.method import Method, MethodConfig, ParameterGroup, Requirements, require_same_keys


class CrossAttentionConfig(MethodConfig):
    """Keys and values of the cross-attention layers."""

    kind: Literal["cross_attention"] = "cross_attention"
    learning_rate: float = 1e-4
    identifier: str = "sks"


@final
class CrossAttention(Method):
    """Trains `attn2.to_k` and `attn2.to_v` in place."""

    config_class = CrossAttentionConfig

    def requirements(self):
        return Requirements(families=("sd",), artifact_format="pipeline")

    def subject_phrase(self, class_noun):
        return f"{self.config.identifier} {class_noun}"

    def _parameters(self, base):
        named = base.denoiser.named_parameters()
        return {f"unet.{n}": p for n, p in named if ".attn2.to_k." in n or ".attn2.to_v." in n}

    def prepare(self, base):
        self._original = {n: p.data for n, p in self._parameters(base).items()}
        for parameter in self._parameters(base).values():
            parameter.data = parameter.data.float().clone()
            parameter.requires_grad_(True)

    def parameter_groups(self, base):
        config, parameters = self.config, self._parameters(base)
        return [ParameterGroup("kv", parameters, config.learning_rate, config.weight_decay)]

    def detach(self, base):
        for name, parameter in self._parameters(base).items():
            parameter.requires_grad_(False).grad = None
            parameter.data = self._original[name]

    def state_dict(self, base):
        return {f"unet.{n}": t for n, t in base.denoiser.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, base, state):
        parameters = self._parameters(base)
        require_same_keys({n: state[n] for n in parameters}, dict(parameters), "state")
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
