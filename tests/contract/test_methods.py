"""Every method keeps the contract: it trains what it says, ships what it learnt, and leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.artifact import attach, read_artifact
from finetune.config import build_run_config
from finetune.errors import ConfigError
from finetune.examples import build_data
from finetune.generate import SamplingConfig, generate_latents
from finetune.run import prepare_folder, run_training
from finetune.train import check_parameter_groups
from methods import METHODS, load_method

KINDS = sorted(METHODS)
SAMPLING = SamplingConfig(num_steps=3, size=16, guidance_scale=2.0)


def start(values: dict[str, Any]) -> tuple[Any, Any]:
    config = build_run_config(values, load_method, "test")
    return config, load_method(config.method.kind)(config.method)


def snapshot(base: Any) -> dict[str, Any]:
    return {
        "fingerprint": base.current_fingerprint(),
        "keys": {c: list(m.state_dict()) for c, m in base.modules.items()},
        "types": {c: [type(x) for x in m.modules()] for c, m in base.modules.items()},
        "modes": {c: [x.training for x in m.modules()] for c, m in base.modules.items()},
        "grad": {c: [p.requires_grad for p in m.parameters()] for c, m in base.modules.items()},
        "tokens": {n: len(t) for n, t in base.components.tokenizers.items()},
        "attributes": {c: sorted(vars(m)) for c, m in base.modules.items()},
    }


VARIANTS = {
    "dreambooth": {},
    "dreambooth, text encoder": {"train_text_encoder": True},
    "lora": {},
    "lora, text encoder": {"train_text_encoder": True, "alpha": 16, "dropout": 0.1},
    "lora, dora": {"use_dora": True},
    "lora, patterns": {
        "train_text_encoder": True,
        "text_encoder_target_modules": ["q_proj", "fc1"],
        "rank_pattern": {"attn2.to_k": 2, "text_encoder.q_proj": 3},
        "alpha_pattern": {"to_q": 5.0},
    },
    "lora, rslora": {"use_rslora": True, "rank": 4},
    "textual_inversion": {},
    "textual_inversion, one vector": {"num_vectors": 1},
}


@pytest.fixture(params=sorted(VARIANTS))
def variant(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param.split(",")[0], VARIANTS[request.param]


def test_base_is_bit_identical_after_detach(
    tiny_base: Any, run_values: Any, variant: tuple[str, dict[str, Any]]
) -> None:
    kind, settings = variant
    before = snapshot(tiny_base)
    config, method = start(run_values(kind, method=settings))
    prepare_folder(config, resume=False, overwrite=False)
    run_training(tiny_base, method, config)
    assert tiny_base.current_fingerprint() != before["fingerprint"]
    method.detach(tiny_base)
    assert snapshot(tiny_base) == before


def test_trainable_set_is_the_parameter_groups(
    tiny_base: Any, run_values: Any, variant: tuple[str, dict[str, Any]]
) -> None:
    kind, settings = variant
    _, method = start(run_values(kind, method=settings))
    method.subject_phrase("dog")
    method.prepare(tiny_base)
    groups = method.parameter_groups(tiny_base)
    check_parameter_groups(tiny_base, groups)
    names = [name for group in groups for name in group.parameters]
    assert names
    roles = method.requirements().trainable_components
    assert {name.split(".")[0] for name in names} == set(tiny_base.family.component_names(roles))
    assert all(p.dtype == torch.float32 for g in groups for p in g.parameters.values())


def test_artifact_gives_the_same_pictures_here_and_in_plain_diffusers(
    tiny_base: Any, tiny_folder: Path, run_values: Any, variant: tuple[str, dict[str, Any]]
) -> None:
    kind, settings = variant
    config, method = start(run_values(kind, method=settings))
    prepare_folder(config, resume=False, overwrite=False)
    run_training(tiny_base, method, config)
    prompt = f"a photo of a {method.subject_phrase('dog')} on the beach"
    before = generate_latents(tiny_base, [prompt], [5], SAMPLING)
    method.detach(tiny_base)

    folder = config.output / "artifact"
    note = read_artifact(folder)
    again = load_method(kind)(config.method)
    attach(tiny_base, again, folder, note)
    torch.testing.assert_close(generate_latents(tiny_base, [prompt], [5], SAMPLING), before)
    again.detach(tiny_base)

    pipe = plain_pipeline(note.format, folder, tiny_folder)
    outside = diffusers_latents(pipe, tiny_base, prompt)
    torch.testing.assert_close(outside, before, atol=1e-4, rtol=1e-4)
    frozen = generate_latents(tiny_base, [prompt.replace("<subject>", "dog")], [5], SAMPLING)
    assert not torch.allclose(outside, frozen, atol=1e-4)


def plain_pipeline(artifact_format: str, folder: Path, base_folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    if artifact_format == "pipeline":
        return StableDiffusionPipeline.from_pretrained(folder)
    pipe = StableDiffusionPipeline.from_pretrained(base_folder)
    if artifact_format == "lora":
        pipe.load_lora_weights(folder)
    else:
        pipe.load_textual_inversion(folder, weight_name="learned_embeds.safetensors")
    return pipe


def diffusers_latents(pipe: Any, base: Any, prompt: str) -> torch.Tensor:
    from diffusers import DPMSolverMultistepScheduler

    from finetune.seeding import generator_for

    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, algorithm_type="sde-dpmsolver++"
    )
    shape = base.family.latent_shape(base.components, 16)
    generator = generator_for(5, "picture")  # goes on to give the noise of the steps
    noise = torch.randn(shape, generator=generator)[None]
    return pipe(
        prompt, num_inference_steps=3, guidance_scale=2.0, latents=noise, height=16, width=16,
        generator=[generator], output_type="latent",
    ).images  # fmt: skip


def test_lora_patterns_set_rank_and_alpha_of_the_modules_they_name(
    tiny_base: Any, run_values: Any
) -> None:
    _, method = start(run_values("lora", method=VARIANTS["lora, patterns"]))
    method.prepare(tiny_base)
    ranks, scales = {}, {}
    for component, network in tiny_base.modules.items():
        for name, layer in network.named_modules():
            if "default" in getattr(layer, "scaling", {}):
                kind = f"{component}.{name.partition('attn')[1]}{name.rpartition('attn')[2]}"
                ranks.setdefault(kind, set()).add(layer.r["default"])
                scales.setdefault(kind, set()).add(layer.scaling["default"])
    text = {name: values for name, values in ranks.items() if name.startswith("text_encoder.")}
    assert {"text_encoder.attn.q_proj": {3}}.items() <= text.items()
    assert [values for name, values in text.items() if name.endswith("fc1")] == [{8}, {8}]
    assert (ranks["unet.attn2.to_k"], ranks["unet.attn1.to_k"]) == ({2}, {8})
    assert (scales["unet.attn2.to_q"], scales["unet.attn2.to_v"]) == ({5 / 8}, {1.0})
    method.detach(tiny_base)
    assert tiny_base.current_fingerprint() == tiny_base.fingerprint


@pytest.mark.parametrize(
    ("pattern", "message"),
    [({"to_kk": 2}, "'to_kk' names no module that gets an adapter"), ({"(": 2}, "not a pattern")],
)
def test_lora_pattern_that_names_nothing_is_refused(
    tiny_base: Any, run_values: Any, pattern: dict[str, int], message: str
) -> None:
    _, method = start(run_values("lora", method={"rank_pattern": pattern}))
    with pytest.raises(ConfigError, match=message):
        method.prepare(tiny_base)
    method.detach(tiny_base)
    assert tiny_base.current_fingerprint() == tiny_base.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapter_or_copy_changes_nothing(tiny_base: Any, run_values: Any, kind: str) -> None:
    _, method = start(run_values(kind))
    prompt = ["a photo of a dog in the snow"]
    before = generate_latents(tiny_base, prompt, [1], SAMPLING)
    method.subject_phrase("dog")
    method.prepare(tiny_base)
    torch.testing.assert_close(
        generate_latents(tiny_base, prompt, [1], SAMPLING), before, atol=0, rtol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_two_micro_batches_of_one_equal_a_batch_of_two(
    tiny_base: Any, run_values: Any, kind: str, tmp_path: Path
) -> None:
    learnt = []
    for parts in (1, 2):
        training = {"num_steps": 2, "batch_size": 2, "gradient_accumulation_steps": parts}
        # A large eps keeps AdamW from blowing up the rounding of gradients that are nearly zero.
        values = run_values(
            kind, training=training, output=str(tmp_path / str(parts)), optimizer={"eps": 1e-3}
        )
        config, method = start(values)
        prepare_folder(config, resume=False, overwrite=False)
        run_training(tiny_base, method, config)
        learnt.append({k: v.clone() for k, v in method.state_dict(tiny_base).items()})
        method.detach(tiny_base)
    for key, value in learnt[0].items():
        torch.testing.assert_close(learnt[1][key], value, atol=1e-6, rtol=0, msg=key)


@pytest.mark.parametrize("kind", ["dreambooth", "lora"])
def test_base_prediction_prior_starts_at_zero_and_holds_the_class(
    tiny_base: Any, run_values: Any, kind: str
) -> None:
    from finetune.loss import LossConfig, Objective

    config, method = start(run_values(kind, prior={"kind": "base_prediction"}))
    data = build_data(tiny_base, method, config)
    batch = data.micro_batch(0, num_micro=1, micro=0)
    assert batch.roles() == ["instance", "instance", "class", "class"]
    method.prepare(tiny_base)
    objective = Objective(LossConfig(), seed=0, match_base=True)
    output = method.compute_loss(tiny_base, batch, objective)
    assert float(output.metrics["loss_class"]) < 1e-10
    assert float(output.metrics["loss_instance"]) > 0.0
    with torch.no_grad():
        for parameter in tiny_base.trainable_parameters().values():
            parameter.add_(0.05)
    moved = method.compute_loss(tiny_base, batch, objective)
    assert float(moved.metrics["loss_class"]) > 1e-6
    method.detach(tiny_base)
    assert tiny_base.current_fingerprint() == tiny_base.fingerprint


def test_textual_inversion_moves_only_its_rows(tiny_base: Any, run_values: Any) -> None:
    table = tiny_base.components.text_encoders["text_encoder"].get_input_embeddings()
    before = table.weight.clone()
    config, method = start(run_values("textual_inversion"))
    prepare_folder(config, resume=False, overwrite=False)
    run_training(tiny_base, method, config)
    rows = method.state_dict(tiny_base)["<subject>"]
    assert rows.shape == (2, 16)
    dog = tiny_base.components.tokenizers["tokenizer"]("dog", add_special_tokens=False).input_ids[0]
    assert (rows - before[dog]).abs().amax(1).min() > 1e-4
    assert torch.equal(table.weight, before)


def test_class_examples_are_skipped_where_they_have_no_gradient(
    tiny_base: Any, run_values: Any
) -> None:
    config, method = start(run_values("textual_inversion", prior={"kind": "class_images"}))
    data = build_data(tiny_base, method, config)
    assert data.micro_batch(0, num_micro=1, micro=0).roles() == ["instance", "instance"]
