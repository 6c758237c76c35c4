"""Options of memory and speed: what each changes, that results stay, and that no trace is left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.base import BaseConfig, check_quantization, load_base
from finetune.checkpoint import load_checkpoint
from finetune.config import build_run_config
from finetune.errors import ConfigError
from finetune.generate import SamplingConfig, generate_latents
from finetune.run import check_settings, prepare_folder, run_training
from finetune.speed import check_speed, checkpointed, compiled, running
from finetune.train import train
from methods import load_method


class Operations(TorchDispatchMode):
    """Names of all that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def learn(
    base: Any, run_values: Any, kind: str = "lora", /, **sections: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and what was learnt, of a whole run."""
    config = build_run_config(run_values(kind, **sections), load_method, "test")
    method = load_method(kind)(config.method)
    prepare_folder(config, resume=False, overwrite=True)
    try:
        result = run_training(base, method, config)
        return result.loss, {k: v.clone() for k, v in method.state_dict(base).items()}
    finally:
        method.detach(base)


def attributes(base: Any) -> list[list[str]]:
    return [sorted(vars(m)) for network in base.modules.values() for m in network.modules()]


@pytest.fixture(params=["sd", "sdxl", "sd3", "flux"])
def source(
    request: pytest.FixtureRequest, tiny_folder: Path, family_folders: Any
) -> dict[str, str]:
    folder = tiny_folder if request.param == "sd" else family_folders(request.param)
    return {"source": str(folder)}


def test_checkpointing_gives_the_same_and_leaves_no_trace(run_values: Any, source: Any) -> None:
    """Bit for bit, dropout of the adapters included."""
    base = load_base(BaseConfig(**source))
    generate_latents(base, ["a dog"], [0], SamplingConfig(num_steps=1, size=16))  # leaves marks
    before = attributes(base)
    settings = {"base": source, "method": {"dropout": 0.2}}
    plain = learn(base, run_values, **settings)
    again = learn(base, run_values, **settings, training={"gradient_checkpointing": True})
    assert plain[0] == again[0]
    for key, value in plain[1].items():
        assert torch.equal(value, again[1][key]), key
    assert attributes(base) == before


def kept_numbers(base: Any) -> int:
    """Numbers that autograd keeps for the backward pass of a step, weights left out."""
    kept: dict[int, int] = {}
    weights = {p.data_ptr() for module in base.modules.values() for p in module.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    latents = torch.randn(2, 4, 8, 8, requires_grad=True)
    conditioning = base.encode_prompts(["a dog", "a cat"])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        base.family.denoise(base.components, latents, torch.tensor([3, 7]), conditioning, None)
    return sum(kept.values())


def test_checkpointing_keeps_less(tiny_base: Any) -> None:
    plain = kept_numbers(tiny_base)
    with checkpointed(tiny_base):
        less = kept_numbers(tiny_base)
    assert less < plain / 2
    assert kept_numbers(tiny_base) == plain


@pytest.mark.parametrize("attention", ["flash", "math"])
def test_attention_runs_by_the_kernel_asked_for(
    tiny_base: Any, run_values: Any, attention: str
) -> None:
    plain = learn(tiny_base, run_values)
    with Operations() as operations:
        loss, _ = learn(tiny_base, run_values, training={"attention": attention})
    flash = "aten::_scaled_dot_product_flash_attention_for_cpu"
    forward_and_back = {flash, f"{flash}_backward"}
    assert (operations.names & forward_and_back == forward_and_back) == (attention == "flash")
    assert loss == pytest.approx(plain[0], rel=1e-4)


@pytest.mark.filterwarnings("ignore")  # of the compiler, which looks at all attributes
@pytest.mark.parametrize("source", ["sd", "flux"], indirect=True)
def test_blocks_are_compiled_and_then_as_before(run_values: Any, source: Any) -> None:
    """By the tracing half of the compiler; what it generates from that is torch's affair."""
    from torch._dynamo.utils import counters

    base = load_base(BaseConfig(**source))
    generate_latents(base, ["a dog"], [0], SamplingConfig(num_steps=1, size=16))  # leaves marks
    before = attributes(base)
    config = build_run_config(run_values("lora", base=source), load_method, "test")
    method = load_method("lora")(config.method)
    blocks = [m for m in base.denoiser.modules() if type(m).__name__ in base.family.repeated_blocks]
    assert len(blocks) >= 2
    method.prepare(base)
    latents = torch.randn(1, *base.family.latent_shape(base.components, 16))
    answers = []
    try:
        for context in (contextlib.nullcontext, lambda: compiled(base, backend="aot_eager")):
            counters.clear()
            with context():
                answers.append(denoised(base, latents))
                traced = sum(counters["stats"].values())
            assert (traced > 0) == (len(answers) == 2)
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-4)
    method.detach(base)
    assert attributes(base) == before


def denoised(base: Any, latents: torch.Tensor) -> torch.Tensor:
    from data_prep.batch import Batch, Moments

    moments = Moments(latents, torch.ones_like(latents))
    batch = Batch(moments, ["a dog"], torch.tensor([False]), [0], 0, [(16, 16)], [(0, 0)])
    timesteps = base.noise_process.timesteps_from_uniform(torch.tensor([0.5]))
    output = base.denoise(latents, timesteps, base.encode_prompts(["a dog"]), batch)
    parameters = list(base.trainable_parameters().values())
    gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None])


def test_what_a_device_cannot_do_is_refused() -> None:
    cpu = torch.device("cpu")
    check_speed(attention="math", compile=False, device=cpu, is_half=False)
    with pytest.raises(ConfigError, match=r"cudnn is no kernel of .*cpu.*flash and math"):
        check_speed(attention="cudnn", compile=False, device=cpu, is_half=True)
    check_speed(attention="cudnn", compile=True, device=torch.device("cuda"), is_half=True)
    with pytest.raises(ConfigError, match="flash is a kernel for half precision"):
        check_speed(attention="flash", compile=False, device=torch.device("cuda"), is_half=False)


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"training\.compile: .* C\+\+ compiler"):
        check_speed(attention="auto", compile=True, device=torch.device("cpu"), is_half=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has what is refused here")
@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"attention": "efficient"}}, r"training\.attention: efficient is no kernel"),
        ({"sampling": {"cpu_offload": True}}, r"sampling\.cpu_offload moves networks"),
        ({"base": {"quantization": "nf4"}}, r"base\.quantization: nf4 needs an NVIDIA GPU"),
    ],
)
def test_settings_are_checked_before_weights_load(
    tiny_base: Any, run_values: Any, sections: dict[str, Any], message: str
) -> None:
    config = build_run_config(run_values("lora", **sections), load_method, "test")
    method = load_method("lora")(config.method)
    with pytest.raises(ConfigError, match=message):
        check_settings(config, tiny_base.family, method)


def test_quantisation_is_refused_where_it_cannot_be(
    tiny_base: Any, run_values: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a machine with a GPU."""
    import importlib.util

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"int8 needs bitsandbytes.*\[quant\]"):
        check_quantization(BaseConfig(quantization="int8"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    (tmp_path / "sd.safetensors").touch()
    with pytest.raises(ConfigError, match="not a single file"):
        check_quantization(BaseConfig(source=str(tmp_path / "sd.safetensors"), quantization="nf4"))
    values = run_values("dreambooth", base={"quantization": "nf4"})
    config = build_run_config(values, load_method, "test")
    method = load_method("dreambooth")(config.method)
    with pytest.raises(ConfigError, match=r"dreambooth trains the base's own weights"):
        check_settings(config, tiny_base.family, method)


def test_networks_at_rest_are_elsewhere_until_called(tiny_folder: Path) -> None:
    """The meta device stands for an accelerator: what is moved there takes no memory."""
    base = load_base(BaseConfig(source=str(tiny_folder)))

    def places() -> dict[str, str]:
        return {name: next(m.parameters()).device.type for name, m in base.modules.items()}

    base.to("meta", resting=["vae", "text_encoder"])
    assert places() == {"text_encoder": "cpu", "vae": "cpu", "unet": "meta"}
    meant = pytest.raises(NotImplementedError, match="meta")  # there is no way back from there
    with meant, base.awake(["vae", "unet"]):
        assert places() == {"text_encoder": "cpu", "vae": "meta", "unet": "meta"}
    assert base.resting == {"vae", "text_encoder"}
    assert base.device.type == "meta"
    base.to("meta")
    assert set(places().values()) == {"meta"}
    assert base.resting == set()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_offloading_frees_the_accelerator_and_changes_nothing(run_values: Any, source: Any) -> None:
    base = load_base(BaseConfig(**source))
    whole = learn(base, run_values, base=source, training={"offload": False})
    rested = learn(base, run_values, base=source, training={"offload": True})
    for key, value in whole[1].items():
        torch.testing.assert_close(value, rested[1][key])
    prompt = ["a dog"]
    plain = generate_latents(base, prompt, [0], SamplingConfig(num_steps=2, size=16))
    offloaded = SamplingConfig(num_steps=2, size=16, cpu_offload=True)
    torch.testing.assert_close(generate_latents(base, prompt, [0], offloaded), plain)
    assert {"vae", *base.components.text_encoders} == base.resting


@contextlib.contextmanager
def widened(base: Any) -> Iterator[set[tuple[int, ...]]]:
    """Shapes of the base's matrices that are copied to float32 meanwhile."""
    shapes = {p.shape for m in base.modules.values() for p in m.parameters() if p.ndim > 1}
    found: set[tuple[int, ...]] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            widens = func is torch.ops.aten._to_copy.default and result.dtype == torch.float32
            if widens and args[0].dtype == torch.bfloat16 and args[0].shape in shapes:
                found.add(tuple(args[0].shape))
            return result

    with Watch():
        yield found


@pytest.mark.parametrize(
    ("kind", "copies"), [("lora", False), ("textual_inversion", False), ("dreambooth", True)]
)
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_no_float32_copy_of_a_half_precision_base(
    tiny_folder: Path, run_values: Any, kind: str, copies: bool
) -> None:
    """Only DreamBooth, which trains all weights, keeps them in float32."""
    base = load_base(BaseConfig(source=str(tiny_folder), dtype="bfloat16"))
    config = build_run_config(
        run_values(kind, base={"dtype": "bfloat16"}, prior={"kind": "none"},
                   training={"precision": "bfloat16"}),
        load_method, "test",
    )  # fmt: skip
    method = load_method(kind)(config.method)
    method.subject_phrase("dog")
    from data_prep.batch import Batch, Moments
    from finetune.loss import Objective

    latents = torch.randn(1, 4, 8, 8)
    batch = Batch(
        Moments(latents, torch.ones_like(latents)), ["a dog"], torch.tensor([False]), [0], 0,
        [(16, 16)], [(0, 0)],
    )  # fmt: skip
    with widened(base) as found:
        method.prepare(base)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            loss = method.compute_loss(base, batch, Objective(config.loss, 0)).loss
        loss.backward()
    assert bool(found) == copies, found


def test_moving_average_is_shipped_by_hand(tiny_base: Any, run_values: Any) -> None:
    """average += (1 - decay) · (weight - average), decay = min(0.9, (1 + n) / (10 + n))."""
    training = {"num_steps": 4, "checkpoint_every": 1, "ema_decay": 0.3}
    config = build_run_config(run_values("lora", training=training), load_method, "test")
    method = load_method("lora")(config.method)
    prepare_folder(config, resume=False, overwrite=True)
    weights: list[dict[str, torch.Tensor]] = []
    original = method.after_step
    method.prepare(tiny_base)
    start = {k: p.detach().clone() for k, p in tiny_base.trainable_parameters().items()}
    method.after_step = lambda base: (
        weights.append({k: p.detach().clone() for k, p in base.trainable_parameters().items()})
        or original(base)
    )
    from finetune.run import build_data

    data = build_data(tiny_base, method, config)
    train(tiny_base, method, data, config, config.output)
    for name, parameter in tiny_base.trainable_parameters().items():
        average = start[name]
        for number, seen in enumerate(weights, 1):
            decay = min(0.3, (1 + number) / (10 + number))
            average = average + (1 - decay) * (seen[name] - average)
        torch.testing.assert_close(parameter.detach(), average)
        assert not torch.equal(parameter, weights[-1][name]) or not bool(weights[-1][name].any())
    tensors, _ = load_checkpoint(config.output / "checkpoints" / "step-000004")
    assert {key.split("/")[0] for key in tensors} == {"method", "optimizer", "average"}
    method.detach(tiny_base)


def test_resumed_moving_average_equals_unbroken(tiny_base: Any, run_values: Any) -> None:
    training = {"num_steps": 4, "ema_decay": 0.9}
    _, whole = learn(tiny_base, run_values, training=training)
    config = build_run_config(run_values("lora", training=training), load_method, "test")
    method = load_method("lora")(config.method)
    prepare_folder(config, resume=False, overwrite=True)
    part = config.training.model_copy(update={"num_steps": 2, "checkpoint_every": 1})
    run_training(tiny_base, method, config.model_copy(update={"training": part}))
    method.detach(tiny_base)
    run_training(tiny_base, method, config, resume=True)
    for key, value in method.state_dict(tiny_base).items():
        assert torch.equal(value, whole[key]), key
    method.detach(tiny_base)


def test_nothing_is_asked_for_by_default(tiny_base: Any) -> None:
    before = attributes(tiny_base)
    with running(tiny_base, gradient_checkpointing=False, attention="auto", compile=False):
        assert attributes(tiny_base) == before
