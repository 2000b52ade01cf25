"""Commands of the gaze plugin.

Heavy modules are imported when a command runs, so that ``--help`` stays instant.
"""

from pathlib import Path
from typing import Annotated

import typer

from modulate.errors import CheckpointError


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="GazeQwen's released best_model.pt.")],
    out: Annotated[Path, typer.Argument(help="Folder of the modulation; new or empty.")],
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help=(
                "Decoder layer of each module, in order; default for four modules and 28 layers:"
                " 6,13,20,27."
            ),
        ),
    ] = None,
) -> None:
    """Convert GazeQwen's released checkpoint to a modulation with a PEFT adapter.

    Refuses files with unknown content, and lists the values that it ignores.
    """
    from modulate_gaze import convert as converting

    converted = converting.convert(
        checkpoint, out, _numbers(layers) if layers is not None else None
    )
    config = converted.modulation.config
    host = config.host
    injected = config.injection.layers
    lora = config.lora
    assert lora is not None  # every converted modulation has one
    typer.echo(
        f"Read {checkpoint}: resampler {converted.resampler:,} parameters, LoRA"
        f" {converted.lora:,} (rank {lora.params.rank}, alpha {lora.params.alpha:g})."
    )
    typer.echo(
        f"Wrote {out}: {config.encoder.name} and {config.modulator.name} {converted.written:,}"
        f" parameters, LoRA {converted.lora:,}; layers {', '.join(map(str, injected))} of a"
        f" {host.model_type} of {host.n_layers} layers of width {host.d_model}."
    )
    typer.echo(
        f"Left out: the amplitudes of the {converted.resampler - converted.written} layers that no"
        " module serves."
    )
    for line in converted.ignored:
        typer.echo(line)
    if converted.dead is not None:
        typer.echo(
            f"Note: layer {converted.dead} is the host's last; as in the released code, what is"
            " added there cannot change an answer."
        )


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise CheckpointError(
            f"--layers {text!r} is not a list of layers such as 6,13,20,27."
        ) from error
