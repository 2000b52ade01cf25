"""Map the parameter names of GazeQwen's released checkpoint to ours.

In the released checkpoint, module m serves the m-th injected layer and has its own tensors; ours
are stacked along a leading module axis. [github.com/phamtrongthang123/gazeqwen; checkpoint
phamtrongthang/gazeqwen, best_model.pt]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from modulate.errors import CheckpointError
from modulate_gaze.resampler import GazeResamplerParams

_BLOCK = {
    "q_projs.{m}.{b}": "query",
    "k_projs.{m}.{b}": "key",
    "v_projs.{m}.{b}": "value",
    "g_projs.{m}.{b}": "signal",
    "ff_blocks.{m}.{b}.0": "ff_norm",
    "ff_blocks.{m}.{b}.1": "ff_in",
    "ff_blocks.{m}.{b}.3": "ff_out",
    "block_norms.{m}.{b}": "norm",
}


@dataclass(frozen=True)
class Released:
    """A released resampler under our names.

    ``resampler`` is the state of the :class:`~modulate_gaze.resampler.GazeResampler` with
    ``params`` and ``d_features``. ``outputs`` and ``amplitude`` are the output projections and α of
    the injected layers, in the requested order.
    """

    params: GazeResamplerParams
    d_features: int
    resampler: dict[str, Tensor]
    outputs: Float[Tensor, "module d_model d_latent"]
    amplitude: Float[Tensor, " layer"]


def read_released(
    state_dict: Mapping[str, Tensor], layers: Sequence[int] = (6, 13, 20, 27)
) -> Released:
    """Translate a released ``state_dict`` with one module for each injected layer.

    ``layers`` are the decoder layers that its modules serve, in order. Raises
    :class:`CheckpointError` if tensors are missing, unknown or have a wrong shape, if the number of
    modules differs, and for the older flat layout.
    """
    state = dict(state_dict)
    modules = sum(name.startswith("latents.") for name in state)
    blocks = sum(name.startswith("q_projs.0.") and name.endswith(".weight") for name in state)
    if modules != len(layers) or not blocks:
        older = (
            " It seems to be the older layout with one shared module, which is not supported."
            if "proj_in.weight" in state
            else ""
        )
        found = (
            f"The released resampler has {modules} modules of {blocks} blocks for the {len(layers)}"
            f" layers {tuple(layers)}."
        )
        raise CheckpointError(f"{found}{older} Name one layer for each module.")

    def stacked(pattern: str, **place: int) -> Tensor:
        names = [pattern.format(m=module, **place) for module in range(modules)]
        missing = [name for name in names if name not in state]
        if missing:
            raise CheckpointError(f"The released resampler lacks {missing[0]!r}.")
        tensors = [state.pop(name).detach().float() for name in names]
        if len({tensor.shape for tensor in tensors}) > 1:
            raise CheckpointError(
                f"The released resampler's {names[0]!r} and its likes differ in shape:"
                f" {[tuple(tensor.shape) for tensor in tensors]}."
            )
        return torch.stack(tensors)

    own = {"latents": stacked("latents.{m}"), "proj_in.weight": stacked("proj_ins.{m}.weight")}
    for block in range(blocks):
        for pattern, name in _BLOCK.items():
            own |= {
                f"blocks.{block}.{name}.{part}": stacked(f"{pattern}.{part}", b=block)
                for part in ("weight", "bias")
            }
    outputs = stacked("proj_outs.{m}.weight")
    amplitude = _amplitude(state, layers)
    if state:
        raise CheckpointError(
            f"The released resampler has {len(state)} tensors that are not known, the first is"
            f" {min(state)!r}."
        )
    _, latents, width = own["latents"].shape
    return Released(
        GazeResamplerParams(latents=latents, blocks=blocks, width=width, sharing="per_layer"),
        own["proj_in.weight"].shape[-1],
        own,
        outputs,
        amplitude,
    )


def _amplitude(state: dict[str, Tensor], layers: Sequence[int]) -> Float[Tensor, " layer"]:
    if "amplitude" not in state:
        raise CheckpointError("The released resampler lacks 'amplitude'.")
    every = state.pop("amplitude").detach().float()
    outside = [layer for layer in layers if not 0 <= layer < len(every)]
    if outside:
        raise CheckpointError(
            f"Layer {outside[0]} is out of range: the released resampler has amplitudes for"
            f" {len(every)} layers."
        )
    return every[list(layers)]
