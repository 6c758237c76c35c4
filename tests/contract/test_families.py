"""Every method keeps the contract on every family, and what a family is told makes a difference."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from data_prep.batch import Batch, Moments
from finetune.artifact import attach, read_artifact
from finetune.base import BaseConfig, load_base, recognise_base
from finetune.config import build_run_config
from finetune.errors import ArtifactError, ConfigError
from finetune.families.base import Conditioning
from finetune.generate import SamplingConfig, generate_latents
from finetune.run import prepare_folder, run_training
from finetune.seeding import generator_for
from finetune.train import check_parameter_groups
from methods import load_method

TEXT = {"train_text_encoder": True}
SAMPLING = SamplingConfig(num_steps=3, size=16, guidance_scale=2.0, scheduler="ddim")
PIPELINES = {
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}
TRAINED = {
    "sdxl": ("unet", ("text_encoder", "text_encoder_2")),
    "sd3": ("transformer", ("text_encoder", "text_encoder_2")),
    "flux": ("transformer", ("text_encoder",)),
}
"""Family -> its denoiser and the text encoders that methods may train."""
NETWORK_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dreambooth": ("dreambooth", {}),
    "dreambooth, text encoders": ("dreambooth", TEXT),
    "lora": ("lora", {"rank": 4}),
    "lora, text encoders": ("lora", {"rank": 4, "alpha": 16, "dropout": 0.1, **TEXT}),
}
INVERSIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "textual_inversion": ("textual_inversion", {}),
    "textual_inversion, one vector": ("textual_inversion", {"num_vectors": 1}),
}
CASES = [
    (family, variant)
    for family in PIPELINES
    for variant in (*NETWORK_VARIANTS, *(INVERSIONS if family == "sdxl" else ()))
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}: {case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[str, str, dict[str, Any]]:
    family, variant = request.param
    return (family, *{**NETWORK_VARIANTS, **INVERSIONS}[variant])


@pytest.fixture(params=sorted(PIPELINES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def start(run_values: Any, kind: str, folder: Path, **sections: Any) -> tuple[Any, Any]:
    sections["base"] = {"source": str(folder), **sections.get("base", {})}
    values = run_values(kind, **sections)
    config = build_run_config(values, load_method, "test")
    return config, load_method(kind)(config.method)


def snapshot(base: Any) -> dict[str, Any]:
    return {
        "fingerprint": base.current_fingerprint(),
        "types": {c: [type(x) for x in m.modules()] for c, m in base.modules.items()},
        "modes": {c: [x.training for x in m.modules()] for c, m in base.modules.items()},
        "grad": {c: [p.requires_grad for p in m.parameters()] for c, m in base.modules.items()},
        "tokens": {n: len(t) for n, t in base.components.tokenizers.items()},
        "attributes": {c: sorted(vars(m)) for c, m in base.modules.items()},
    }


def test_it_trains_what_it_says_and_leaves_no_trace(
    family_folders: Any, run_values: Any, case: tuple[str, str, dict[str, Any]]
) -> None:
    name, kind, settings = case
    base = load_base(BaseConfig(source=str(family_folders(name))))
    assert base.family.name == name
    # diffusers and transformers leave marks on networks when these are first used.
    generate_latents(base, ["a dog"], [0], SAMPLING)
    base.encode_prompts(["a dog"])
    before = snapshot(base)
    config, method = start(run_values, kind, family_folders(name), method=settings)
    prepare_folder(config, resume=False, overwrite=False)
    run_training(base, method, config)
    groups = method.parameter_groups(base)
    check_parameter_groups(base, groups)
    parameters = {n: p for group in groups for n, p in group.parameters.items()}
    denoiser, encoders = TRAINED[name]
    expected = {denoiser} if kind != "textual_inversion" else set()
    if kind == "textual_inversion" or settings.get("train_text_encoder"):
        expected |= set(encoders)
    assert {n.split(".")[0] for n in parameters} == expected
    roles = method.requirements().trainable_components
    assert set(base.family.component_names(roles)) == expected
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert base.current_fingerprint() != before["fingerprint"]
    method.detach(base)
    assert snapshot(base) == before


def plain_latents(pipe: Any, base: Any, prompt: str) -> torch.Tensor:
    """What a plain diffusers pipeline makes of the noise that `generate_latents` begins with."""
    pipe.set_progress_bar_config(disable=True)
    if not base.family.flow_matching:
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    shape = base.family.latent_shape(base.components, 16)
    noise = torch.randn(shape, generator=generator_for(5, "picture"))[None]
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0, "height": 16, "width": 16}
    if base.family.name != "flux":
        return pipe(prompt, latents=noise, output_type="latent", **settings).images
    packed = pipe._pack_latents(noise, 1, *shape)
    latents = pipe(prompt, latents=packed, output_type="latent", **settings).images
    return pipe._unpack_latents(latents, 16, 16, pipe.vae_scale_factor)


def plain_pipeline(family: str, artifact_format: str, folder: Path, base_folder: Path) -> Any:
    pipeline_class = getattr(diffusers, PIPELINES[family])
    if artifact_format == "pipeline":
        return pipeline_class.from_pretrained(folder)
    pipe = pipeline_class.from_pretrained(base_folder)
    if artifact_format == "lora":
        pipe.load_lora_weights(folder)
        return pipe
    state = load_file(folder / "learned_embeds.safetensors")
    assert set(state) == {"clip_l", "clip_g"}
    for key, encoder, tokenizer in (
        ("clip_l", pipe.text_encoder, pipe.tokenizer),
        ("clip_g", pipe.text_encoder_2, pipe.tokenizer_2),
    ):
        pipe.load_textual_inversion(
            state[key], token="<subject>", text_encoder=encoder, tokenizer=tokenizer
        )
    return pipe


def test_artifact_gives_the_same_pictures_here_and_in_plain_diffusers(
    family_folders: Any, run_values: Any, case: tuple[str, str, dict[str, Any]]
) -> None:
    name, kind, settings = case
    base_folder = family_folders(name)
    base = load_base(BaseConfig(source=str(base_folder)))
    # The learning rate is large so that three steps show in the picture.
    config, method = start(
        run_values, kind, base_folder, method={"learning_rate": 0.02, **settings}
    )
    prepare_folder(config, resume=False, overwrite=False)
    run_training(base, method, config)
    prompt = f"a photo of a {method.subject_phrase('dog')} on the beach"
    before = generate_latents(base, [prompt], [5], SAMPLING)
    method.detach(base)

    folder = config.output / "artifact"
    note = read_artifact(folder)
    again = load_method(kind)(config.method)
    attach(base, again, folder, note)
    torch.testing.assert_close(generate_latents(base, [prompt], [5], SAMPLING), before)
    again.detach(base)

    pipe = plain_pipeline(name, note.format, folder, base_folder)
    outside = plain_latents(pipe, base, prompt)
    torch.testing.assert_close(outside, before, atol=1e-5, rtol=0)
    frozen = generate_latents(base, [prompt.replace("<subject>", "dog")], [5], SAMPLING)
    assert (outside - frozen).abs().max() > 1e-3


def test_frozen_base_gives_the_pictures_of_plain_diffusers(
    family_folders: Any, family: str
) -> None:
    base = load_base(BaseConfig(source=str(family_folders(family))))
    pipe = getattr(diffusers, PIPELINES[family]).from_pretrained(family_folders(family))
    prompt = "a photo of a dog on the beach"
    ours = generate_latents(base, [prompt], [5], SAMPLING)
    torch.testing.assert_close(plain_latents(pipe, base, prompt), ours, atol=1e-5, rtol=0)


def kinds_of(family: str) -> list[str]:
    return ["dreambooth", "lora", *(["textual_inversion"] if family == "sdxl" else [])]


def test_two_micro_batches_and_a_resumed_run_equal_one(
    family_folders: Any, run_values: Any, family: str, tmp_path: Path
) -> None:
    """Accumulated up to rounding; resumed bit for bit."""
    base = load_base(BaseConfig(source=str(family_folders(family))))

    def learn(kind: str, name: str, *, num_steps: int, parts: int = 1, **options: Any) -> Any:
        config, method = start(
            run_values, kind, family_folders(family),
            training={"num_steps": 4, "batch_size": 2, "gradient_accumulation_steps": parts},
            optimizer={"eps": 1e-3, "schedule": "constant"},
            method={"train_text_encoder": True} if kind != "textual_inversion" else {},
            output=str(tmp_path / f"{kind}-{name}"),
        )  # fmt: skip
        prepare_folder(config, resume=False, overwrite=True)
        for steps in options.get("stops", ()):
            part = config.training.model_copy(update={"num_steps": steps, "checkpoint_every": 1})
            run_training(base, method, config.model_copy(update={"training": part}))
            method.detach(base)
        run_training(base, method, config, resume="stops" in options)
        state = {key: value.clone() for key, value in method.state_dict(base).items()}
        method.detach(base)
        return state

    for kind in kinds_of(family):
        whole = learn(kind, "whole", num_steps=4)
        for key, value in learn(kind, "resumed", num_steps=4, stops=[2]).items():
            assert torch.equal(value, whole[key]), key
        for key, value in learn(kind, "parts", num_steps=4, parts=2).items():
            torch.testing.assert_close(value, whole[key], atol=2e-6, rtol=1e-4, msg=key)


# --- what a family is told ----------------------------------------------------------------------------


def some_batch(shape: tuple[int, int, int], **changes: Any) -> Batch:
    """Two instance examples of unlike sizes and crops."""
    generator = torch.Generator().manual_seed(7)
    batch = Batch(
        Moments(
            torch.randn(2, *shape, generator=generator),
            torch.rand(2, *shape, generator=generator),
        ),
        ["a photo of a dog", "a red cat in the snow"],
        torch.tensor([False, False]),
        [0, 1],
        0,
        [(30, 20), (16, 16)],
        [(0, 4), (0, 0)],
    )
    return dataclasses.replace(batch, **changes)


def answer(base: Any, conditioning: Conditioning, batch: Batch, **options: Any) -> torch.Tensor:
    timesteps = base.noise_process.timesteps_from_uniform(torch.tensor([0.3, 0.8]))
    with torch.no_grad():
        return base.denoise(batch.moments.mean, timesteps, conditioning, batch, **options)


def changed(conditioning: Conditioning, name: str, part: Any = ...) -> Conditioning:
    """`conditioning` with the tensor `name` (or a part of it) negated."""
    tensor = conditioning.tensors[name].clone()
    tensor[part] = -tensor[part]
    return Conditioning({**conditioning.tensors, name: tensor})


TOLD = {
    "sdxl": [
        ("pooled_prompt_embeds", ...),
        ("prompt_embeds", (..., slice(0, 16))),  # of the first encoder
        ("prompt_embeds", (..., slice(16, 40))),  # of the second
    ],
    "sd3": [
        ("pooled_prompt_embeds", (..., slice(0, 12))),
        ("pooled_prompt_embeds", (..., slice(12, 24))),
        ("prompt_embeds", (slice(None), slice(0, -256), slice(0, 16))),  # of the first encoder
        ("prompt_embeds", (slice(None), slice(0, -256), slice(16, 40))),  # of the second
        ("prompt_embeds", (slice(None), slice(-256, None))),  # of the T5
    ],
    "flux": [("pooled_prompt_embeds", ...), ("prompt_embeds", ...)],
}


def test_every_part_of_the_conditioning_is_used(family_folders: Any, family: str) -> None:
    base = load_base(BaseConfig(source=str(family_folders(family))))
    batch = some_batch(base.family.latent_shape(base.components, 16))
    conditioning = base.encode_prompts(batch.prompts)
    before = answer(base, conditioning, batch)
    assert {name for name, _ in TOLD[family]} == set(conditioning.tensors)
    for name, part in TOLD[family]:
        after = answer(base, changed(conditioning, name, part), batch)
        moved = (after - before).abs().amax((1, 2, 3))
        assert float(moved.min()) > 1e-4, name
    swapped = answer(base, base.encode_prompts(batch.prompts[::-1]), batch)
    assert float((swapped - before).abs().amax((1, 2, 3)).min()) > 1e-4


@pytest.mark.parametrize(
    "changes",
    [{"original_size_hw": [(60, 20), (32, 16)]}, {"crop_top_left_yx": [(0, 0), (8, 0)]}],
    ids=["original size", "crop"],
)
def test_sdxl_is_told_sizes_and_crops(family_folders: Any, changes: dict[str, Any]) -> None:
    base = load_base(BaseConfig(source=str(family_folders("sdxl"))))
    batch = some_batch((4, 8, 8))
    conditioning = base.encode_prompts(batch.prompts)
    before = answer(base, conditioning, batch)
    after = answer(base, conditioning, dataclasses.replace(batch, **changes))
    assert float((after - before).abs().amax((1, 2, 3)).min()) > 1e-4


def test_sdxl_time_ids_of_a_photo_are_its_own(
    family_folders: Any, run_values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a photo 30 × 20 resized to 24 × 16, and of class pictures, which are whole and of 16 × 16."""
    from finetune.examples import build_data

    folder = family_folders("sdxl")
    base = load_base(BaseConfig(source=str(folder)))
    config, method = start(run_values, "dreambooth", folder, data={"flip_probability": 1.0})
    data = build_data(base, method, config)
    seen = []
    hook = base.denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["added_cond_kwargs"]["time_ids"]),
        with_kwargs=True,
    )
    for step in range(12):
        batch = data.micro_batch(step, num_micro=1, micro=0)
        answer_of_batch(base, batch)
        for row, ids in enumerate(seen.pop().tolist()):
            height, width, top, left, *target = ids
            assert target == [16, 16]
            if batch.is_class[row]:
                assert (height, width, top, left) == (16, 16, 0, 0)
            elif (height, width) == (20, 30):
                assert top == 0
                assert 0 <= left <= 8
            else:
                assert (height, width, top, left) == (20, 20, 0, 0)
    hook.remove()


def test_latents_that_are_not_square_are_denoised(family_folders: Any, family: str) -> None:
    """Each example has its own answer, whatever stands beside it, in the shape of its latents."""
    base = load_base(BaseConfig(source=str(family_folders(family))))
    channels = base.family.latent_shape(base.components, 16)[0]
    for height, width in ((4, 8), (8, 4)):
        batch = some_batch((channels, height, width))
        whole = answer_of_batch(base, batch)
        assert whole.shape == batch.moments.mean.shape
        alone = answer_of_batch(base, batch[[1]])
        torch.testing.assert_close(whole[[1]], alone, atol=1e-5, rtol=1e-4)


def test_sdxl_is_told_the_shape_of_the_bucket(family_folders: Any, run_values: Any) -> None:
    """Of a photo 30 × 20 in its bucket, 48 × 32 of a square of 48; the others are square."""
    from finetune.examples import build_data

    folder = family_folders("sdxl")
    base = load_base(BaseConfig(source=str(folder)))
    config, method = start(
        run_values,
        "dreambooth",
        folder,
        data={"size": 48, "buckets": True},
        prior={"kind": "base_prediction"},
    )
    data = build_data(base, method, config)
    seen: list[torch.Tensor] = []
    hook = base.denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["added_cond_kwargs"]["time_ids"]),
        with_kwargs=True,
    )
    targets = set()
    for step in range(6):
        answer_of_batch(base, data.micro_batch(step, num_micro=1, micro=0))
        for height, width, *_, target_height, target_width in seen.pop().tolist():
            targets.add((height, width, target_height, target_width))
    hook.remove()
    assert targets == {(20, 20, 48, 48), (20, 30, *WIDE_BUCKET)}


WIDE_BUCKET = (32, 64)
"""log 1.5 is nearer to log 2 than to 0."""


def answer_of_batch(base: Any, batch: Batch) -> torch.Tensor:
    timesteps = torch.zeros(len(batch), dtype=torch.long)
    with torch.no_grad():
        return base.denoise(
            batch.moments.mean, timesteps, base.encode_prompts(batch.prompts), batch
        )


def test_prompts_are_encoded_as_diffusers_does(family_folders: Any, family: str) -> None:
    base = load_base(BaseConfig(source=str(family_folders(family))))
    pipe = getattr(diffusers, PIPELINES[family]).from_pretrained(family_folders(family))
    prompts = ["a photo of a dog", "a red cat in the snow"]
    ours = base.encode_prompts(prompts).tensors
    with torch.no_grad():
        if family == "flux":
            embeds, pooled, _ = pipe.encode_prompt(prompts)
        else:
            more = {"prompt_2": None, "prompt_3": None} if family == "sd3" else {}
            embeds, _, pooled, _ = pipe.encode_prompt(
                prompts, do_classifier_free_guidance=False, **more
            )
    assert torch.equal(ours["prompt_embeds"], embeds)
    assert torch.equal(ours["pooled_prompt_embeds"], pooled)


def test_sdxl_s_empty_prompt_is_its_pipeline_s_unconditional_answer(
    family_folders: Any, tmp_path: Path
) -> None:
    import shutil

    for zeros in (True, False):
        folder = tmp_path / str(zeros)
        shutil.copytree(family_folders("sdxl"), folder)
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(
            json.dumps({**index, "force_zeros_for_empty_prompt": zeros})
        )
        base = load_base(BaseConfig(source=str(folder)))
        ours = base.encode_prompts(["a dog", ""]).tensors
        with torch.no_grad():
            _, negative, _, pooled = base.pipeline().encode_prompt(["a dog"])
        torch.testing.assert_close(ours["prompt_embeds"][1:], negative)
        torch.testing.assert_close(ours["pooled_prompt_embeds"][1:], pooled)
        assert bool((negative == 0).all()) == zeros
        assert bool((ours["prompt_embeds"][0] != 0).any())


# DreamBooth's norms stand in float32 under bfloat16 autocast, for which torch has no fused kernel.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_half_precision_base_keeps_its_autoencoder_and_what_is_trained_in_float32(
    family_folders: Any, run_values: Any, family: str
) -> None:
    """The autoencoder's configuration says `force_upcast`."""
    folder = family_folders(family)
    base = load_base(BaseConfig(source=str(folder), dtype="bfloat16"))
    dtypes = {name: next(m.parameters()).dtype for name, m in base.modules.items()}
    assert dtypes.pop("vae") == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}
    whole = load_base(BaseConfig(source=str(folder)))
    pixel_values = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    assert torch.equal(
        base.encode_images(pixel_values).mean, whole.encode_images(pixel_values).mean
    )
    for kind in kinds_of(family):
        settings = {"base": {"dtype": "bfloat16"}, "training": {"precision": "bfloat16"}}
        config, method = start(run_values, kind, folder, **settings)
        prepare_folder(config, resume=False, overwrite=False)
        assert run_training(base, method, config).loss > 0
        assert {p.dtype for p in base.trainable_parameters().values()} == {torch.float32}
        prompt = f"a photo of a {method.subject_phrase('dog')}"
        assert bool(generate_latents(base, [prompt], [0], SAMPLING).isfinite().all())
        method.detach(base)
        assert base.current_fingerprint() == base.fingerprint


@pytest.mark.parametrize("kind", ["dreambooth", "lora"])
def test_base_prediction_prior_starts_at_zero(
    family_folders: Any, run_values: Any, family: str, kind: str
) -> None:
    """The frozen base is asked with the class examples' own sizes and crops."""
    from finetune.examples import build_data
    from finetune.loss import LossConfig, Objective

    base = load_base(BaseConfig(source=str(family_folders(family))))
    config, method = start(
        run_values, kind, family_folders(family), prior={"kind": "base_prediction"}
    )
    batch = build_data(base, method, config).micro_batch(0, num_micro=1, micro=0)
    method.prepare(base)
    output = method.compute_loss(base, batch, Objective(LossConfig(), seed=0, match_base=True))
    assert float(output.metrics["loss_class"]) < 1e-10
    assert float(output.metrics["loss_instance"]) > 0.0
    method.detach(base)


def test_sdxl_s_pooled_output_beside_a_new_word_is_diffusers_own(
    family_folders: Any, run_values: Any, tmp_path: Path
) -> None:
    """The published second encoder has `eos_token_id` 2, with which transformers pools at the highest id.

    That is the new word's. Both sides do it, so that pictures agree.
    """
    import shutil

    folder = tmp_path / "published"
    shutil.copytree(family_folders("sdxl"), folder)
    path = folder / "text_encoder_2" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 2}))
    base = load_base(BaseConfig(source=str(folder)))
    config, method = start(run_values, "textual_inversion", folder, method={"learning_rate": 0.02})
    prepare_folder(config, resume=False, overwrite=False)
    run_training(base, method, config)
    prompt = "a photo of a <subject> on the beach"
    ours = generate_latents(base, [prompt], [5], SAMPLING)
    pooled = base.encode_prompts([prompt, "a photo of a <subject> in the snow"]).tensors
    torch.testing.assert_close(*pooled["pooled_prompt_embeds"])  # what follows the word is not seen
    pipe = plain_pipeline("sdxl", "textual_inversion", config.output / "artifact", folder)
    torch.testing.assert_close(plain_latents(pipe, base, prompt), ours, atol=1e-5, rtol=0)


def test_pictures_come_back_from_shifted_latents(family_folders: Any, family: str) -> None:
    """Moments are (mean - shift) · scale, decoding undoes both."""
    base = load_base(BaseConfig(source=str(family_folders(family))))
    pixel_values = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    vae = base.components.vae
    with torch.no_grad():
        posterior = vae.encode(pixel_values).latent_dist
        decoded = vae.decode(posterior.mean).sample
    moments = base.encode_images(pixel_values)
    shift, scale = vae.config.shift_factor or 0.0, vae.config.scaling_factor
    assert (family == "sdxl") == (shift == 0.0)
    torch.testing.assert_close(moments.mean, (posterior.mean - shift) * scale)
    torch.testing.assert_close(moments.std, posterior.std * scale)
    torch.testing.assert_close(base.decode_latents(moments.mean), decoded, atol=1e-5, rtol=1e-4)


def test_flux_is_told_the_guidance_value_where_it_wants_one(
    family_folders: Any, tmp_path: Path, build_family: Any
) -> None:
    from finetune.loss import LossConfig, Objective

    build_family("flux", tmp_path / "schnell", guidance_embeds=False)
    for folder, wants in ((family_folders("flux"), True), (tmp_path / "schnell", False)):
        base = load_base(BaseConfig(source=str(folder)))
        batch = some_batch((16, 8, 8))
        conditioning = base.encode_prompts(batch.prompts)
        one = answer(base, conditioning, batch, guidance_scale=1.0)
        four = answer(base, conditioning, batch, guidance_scale=4.0)
        assert bool((one - four).abs().amax() > 1e-4) == wants
        losses = [
            float(Objective(LossConfig(**settings), seed=0).per_sample(base, batch).mean())
            for settings in ({}, {"guidance_scale": 1.0}, {"guidance_scale": 4.0})
        ]
        assert losses[0] == losses[1]
        assert (losses[0] != losses[2]) == wants


def test_flux_latents_are_packed_as_diffusers_packs_them() -> None:
    from diffusers import FluxPipeline

    from finetune.families.flux import image_ids, pack, unpack

    latents = torch.randn(2, 3, 6, 8)
    packed = pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 3, 6, 8))
    assert torch.equal(unpack(packed, 6, 8), latents)
    theirs = FluxPipeline._prepare_latent_image_ids(2, 3, 4, "cpu", torch.float32)
    assert torch.equal(image_ids(6, 8), theirs)


def test_sd3_does_without_its_t5_as_in_diffusers(
    family_folders: Any, run_values: Any, tmp_path: Path
) -> None:
    """Left out by the configuration, or lacking in the folder; its states are zeros."""
    folder = family_folders("sd3")
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None
    )
    pipe.save_pretrained(tmp_path / "without")
    whole = load_base(BaseConfig(source=str(folder)))
    prompt = "a photo of a dog on the beach"
    outside = plain_latents(pipe, whole, prompt)
    for config in (
        BaseConfig(source=str(folder), drop_components=("text_encoder_3",)),
        BaseConfig(source=str(tmp_path / "without")),
    ):
        base = load_base(config)
        assert set(base.modules) == {"text_encoder", "text_encoder_2", "vae", "transformer"}
        states = base.encode_prompts([prompt]).tensors["prompt_embeds"]
        assert float(states[:, -256:].abs().max()) == 0.0
        ours = generate_latents(base, [prompt], [5], SAMPLING)
        torch.testing.assert_close(ours, outside, atol=1e-5, rtol=0)
    assert (generate_latents(whole, [prompt], [5], SAMPLING) - outside).abs().max() > 1e-3
    settings = {"drop_components": ["text_encoder_3"]}
    run, method = start(run_values, "dreambooth", folder, base=settings)
    base = load_base(run.base)
    prepare_folder(run, resume=False, overwrite=False)
    run_training(base, method, run)
    before = generate_latents(base, [prompt], [5], SAMPLING)
    method.detach(base)
    tuned = diffusers.StableDiffusion3Pipeline.from_pretrained(
        run.output / "artifact", text_encoder_3=None, tokenizer_3=None
    )
    torch.testing.assert_close(plain_latents(tuned, base, prompt), before, atol=1e-5, rtol=0)


# --- what is refused before weights are read ----------------------------------------------------------


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_textual_inversion_into_a_t5_is_refused_with_the_reason(
    name: str, tmp_path: Path, photos_folder: Path
) -> None:
    """Of a folder that holds no weights at all."""
    from typer.testing import CliRunner

    from finetune.cli import app

    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": PIPELINES[name]}))
    run = tmp_path / "run.yaml"
    values = {
        "base": {"source": str(tmp_path)},
        "data": {"photos": str(photos_folder), "class_noun": "dog"},
        "method": {"kind": "textual_inversion"},
        "output": str(tmp_path / "run"),
    }
    run.write_text(json.dumps(values))
    result = CliRunner().invoke(app, ["train", str(run)])
    assert result.exit_code == 2
    message = " ".join(result.output.split())
    assert "The method textual_inversion cannot train" in message
    assert f"of the family {name}: its " in message
    assert "has no place for a new word" in message
    assert "use lora or dreambooth" in message
    values["method"], values["loss"] = {"kind": "lora"}, {"snr_gamma": 5.0}
    run.write_text(json.dumps(values))
    result = CliRunner().invoke(app, ["train", str(run)])
    assert result.exit_code == 2
    assert "loss.snr_gamma: min-SNR weights are for DDPM bases" in " ".join(result.output.split())


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_sizes_that_cannot_be_cut_into_patches_are_refused(
    family_folders: Any, run_values: Any, name: str
) -> None:
    from finetune.examples import build_data

    base = load_base(BaseConfig(source=str(family_folders(name))))
    config, method = start(run_values, "lora", family_folders(name))
    data = config.data.model_copy(update={"size": 18})
    with pytest.raises(ConfigError, match=r"data\.size 18 is not a multiple of 4.*; 16 is"):
        build_data(base, method, config.model_copy(update={"data": data}))


def test_flux_takes_no_negative_prompt(family_folders: Any) -> None:
    base = load_base(BaseConfig(source=str(family_folders("flux"))))
    sampling = SAMPLING.model_copy(update={"negative_prompt": "ugly"})
    with pytest.raises(ConfigError, match=r"sampling\.negative_prompt: FLUX.1 steers by a number"):
        generate_latents(base, ["a dog"], [0], sampling)


def test_single_files_of_other_families_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "flux1-dev.safetensors"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(1)}, path)
    with pytest.raises(ArtifactError, match="no single-file checkpoint that can be read"):
        recognise_base(BaseConfig(source=str(path)))


def test_a_pipeline_s_own_code_is_refused_and_never_run(tmp_path: Path) -> None:
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline"}
    marker = tmp_path / "ran"
    (tmp_path / "my_code.py").write_text(f"open({str(marker)!r}, 'w')")
    for changes in ({"unet": ["my_code", "MyUNet"]}, {"_class_name": ["my_code", "MyPipeline"]}):
        (tmp_path / "model_index.json").write_text(json.dumps({**index, **changes}))
        with pytest.raises(ArtifactError, match=r"brings code of its own for .*\(my_code\.My"):
            load_base(BaseConfig(source=str(tmp_path)))
    assert not marker.exists()


def test_what_cannot_be_left_out_is_refused(family_folders: Any) -> None:
    source = str(family_folders("sdxl"))
    with pytest.raises(ConfigError, match=r"base\.drop_components: vae cannot be left out"):
        recognise_base(BaseConfig(source=source, drop_components=("vae",)))
