"""What finished runs are used for: `finetune generate` and `finetune export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_prep.errors import UserError
from finetune.cli.common import check_kind, reports_errors


def _distinct_names(paths: list[Path]) -> list[str]:
    """A name for each run or artifact, from its folder; numbered where two would be alike."""
    whole = [path.resolve() for path in paths]
    names = [
        path.parent.name if path.name == "artifact" else path.stem if path.is_file() else path.name
        for path in whole
    ]
    if len(set(names)) == len(names):
        return names
    return [f"{number}-{name}" for number, name in enumerate(names, 1)]


@reports_errors
def generate(
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            help="Runs, artifacts, or files of other tools (LoRA, embedding, checkpoint); several stand "
            "side by side."
        ),
    ],
    prompt: Annotated[
        list[str] | None, typer.Option(help="May hold {subject} and {class}; repeatable.")
    ] = None,  # noqa: UP007, UP045
    prompts: Annotated[
        str | None,
        typer.Option(help="A file with one a line, YAML, or dreambooth: the paper's 25 + 25."),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="live or object, for prompts that differ by kind.")
    ] = "object",
    num_images: Annotated[int, typer.Option(min=1, help="Pictures per prompt.")] = 4,
    seed: Annotated[
        int, typer.Option(help="Seed of the first picture; the next has seed + 1.")
    ] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="ddpm, ddim, dpm-solver++ or sde-dpm-solver++; as in the run if not given."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps; as in the run if not given.")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(min=0, help="Classifier-free guidance; as in the run if not given."),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What to steer away from; as in the run if not given.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures at a time; as in the run if not given.")
    ] = None,
    cpu_offload: Annotated[
        bool, typer.Option("--cpu-offload", help="For bases larger than the accelerator.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="Base of artifacts made elsewhere: name, Hub id, folder or file."),
    ] = None,  # noqa: UP007, UP045
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Read .pt and .bin files too, tensors only."),
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for pictures and grid.png.")] = Path(
        "pictures"
    ),
) -> None:
    """Make pictures with one or several artifacts: same prompts, same seeds, one grid.

    They are sampled as the first run's configuration says (`sampling`), but for options that are given here.

    Example: finetune generate runs/dog --prompt "a photo of a {subject} on the beach"

    What other tools made needs its base: finetune generate dog.safetensors --base clay --prompt "..."
    """
    from data_prep.captions import fill_template
    from finetune.base import load_base
    from finetune.config import validate
    from finetune.export.imported import attached, bases_of, open_source, with_token
    from finetune.generate import SamplingConfig, check_sampling, labelled_grid
    from finetune.generate import generate as make
    from finetune.guards import remarks_on_pictures
    from finetune.prompts import read_prompts
    from finetune.train import training_device
    from methods import load_method

    check_kind(kind)
    templates = list(prompt or [])
    if prompts is not None:
        templates += [line.text for line in read_prompts(prompts, field="--prompts").of(kind)]
    if not templates:
        raise UserError('Give --prompt "a photo of a {subject} ..." or --prompts FILE.')
    given = {
        "scheduler": scheduler,
        "num_steps": steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "batch_size": batch_size,
        "cpu_offload": cpu_offload,
    }
    told = {name: value for name, value in given.items() if value is not None}
    check_sampling(validate(SamplingConfig, told, "options"), training_device())
    sources = [open_source(path, allow_pickle=allow_pickle) for path in artifacts]
    own = next((source.note.sampling for source in sources if source.note is not None), {})
    sampling = validate(SamplingConfig, {**own, **told}, "sampling of the artifact, and options")
    for path, source in zip(artifacts, sources, strict=True):
        unknown = [] if source.note else ["{class}"]
        unknown += [] if source.subject else ["{subject}"]
        for word in unknown:
            if any(word in template for template in templates):
                raise UserError(
                    f"{path} does not say what {word} is. Write the words themselves in its place."
                )
    bases = bases_of(sources, base)
    rows = []
    loaded, loaded_from = None, None
    names = _distinct_names(artifacts)
    for name, source, wanted in zip(names, sources, bases, strict=True):
        if loaded is None or wanted != loaded_from:
            loaded, loaded_from = load_base(wanted), wanted
            resting = loaded.modules if cpu_offload else ()
            loaded.to(training_device(), resting=resting)
        with attached(source, loaded, load_method) as note:
            filled = [
                fill_template(t, subject=note.subject, class_noun=note.class_noun, field="--prompt")
                for t in templates
                for _ in range(num_images)
            ]
            filled = [with_token(text, note) for text in filled]
            seeds = [seed + index for _ in templates for index in range(num_images)]
            sized = sampling.model_copy(update={"size": note.size})
            images = make(loaded, filled, seeds, sized, show_progress=True)
        for remark in remarks_on_pictures(images):
            typer.secho(f"Warning: {name}: {remark}", err=True, fg=typer.colors.YELLOW)
        target = output / name if len(sources) > 1 else output
        target.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            place, index = divmod(number, num_images)
            image.save(target / f"{place:02d}-{seed + index:04d}.png")
        rows.append((name, images))
    columns = [t for t in templates for _ in range(num_images)]
    labelled_grid(rows, columns).save(output / "grid.png")
    typer.echo(
        f"{len(rows) * len(columns)} pictures in {output}, side by side in {output}/grid.png"
    )


@reports_errors
def export(
    artifact: Annotated[Path, typer.Argument(help="A finished run or its artifact.")],
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help="Of Stable Diffusion 1.x, 2.x and XL: kohya (LoRA), a1111 (Textual Inversion), single-file "
            "(DreamBooth). Of any base: diffusers.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="The .safetensors file to write; with diffusers a folder.")
    ],
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; default: as in the artifact."),
    ] = None,  # noqa: UP007, UP045
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")] = False,
) -> None:
    """Write an artifact as a file that ComfyUI, A1111 or another tool reads.

    A LoRA goes into a kohya file (put it into models/loras or models/Lora), a Textual Inversion into an A1111
    embedding (its file name becomes the trigger word), a DreamBooth model into one checkpoint of the original
    layout. The picture stays the same.

    Example: finetune export runs/dog --format kohya --output dog.safetensors --dtype float16
    """
    from finetune.export import export_artifact

    made = export_artifact(artifact, format_name, output, dtype=dtype, overwrite=overwrite)
    for remark in made.remarks:
        typer.secho(f"Note: {remark}", err=True, fg=typer.colors.YELLOW)
    typer.echo(f"Wrote {made.path}")
