"""Attach a modulation to a host: hooks that write residuals onto visual tokens, and their removal without a trace."""

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modulate.errors import ConditioningError, HostError
from modulate.hosts import understand
from modulate.localize import Ledger, cache_length, forward_tokens, visual_mask
from modulate.modulation import ClipInput, HostSpec, Latents, Modulation

__all__ = ["Attachment", "ClipInput", "ModulatedHost", "Report"]

Rows = Sequence[Sequence[ClipInput]]


@dataclass
class Report:
    """What the forwards of the last conditioning did.

    ``tokens``: visual tokens modified in all forwards together; ``steps`` / ``active_steps``: time steps of every clip with a signal, and
    those of them that the signal reached; ``ratio``: per injected layer ‖Δh‖ / ‖h‖ over the modified tokens of the last forward that modified any.
    """

    layers: tuple[int, ...]
    forwards: int = 0
    tokens: int = 0
    steps: tuple[int, ...] = ()
    active_steps: tuple[int, ...] = ()
    ratio: dict[int, float] = field(default_factory=dict)


@dataclass
class Plan:
    """Where the layers of one forward write: ``index`` positions in the flattened (batch·position) states, ``token`` rows of the latents."""

    latents: Latents
    index: Tensor
    token: Tensor
    shape: tuple[int, int]
    fired: set[int] = field(default_factory=set)
    norms: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Conditioning:
    """Signals and features of the rows of a batch, their latents computed once."""

    def __init__(self, modulation: Modulation, rows: Rows) -> None:
        self.owner = threading.get_ident()
        clips = [clip for row in rows for clip in row if clip.signal is not None]
        self.latents = modulation.latents(clips) if clips else None
        self.ledger = Ledger([sum(c.grid.tokens for c in row) if row else None for row in rows])
        self.maps: list[Tensor] = []  # per row: ordinal of its visual token → row of the latents, −1 for clips without a signal
        start = 0
        for row in rows:
            parts = [torch.empty(0, dtype=torch.long)]
            for clip in row:
                if clip.signal is None:
                    parts.append(torch.full((clip.grid.tokens,), -1))
                else:
                    parts.append(torch.arange(start, start + clip.grid.tokens))
                    start += clip.grid.tokens
            self.maps.append(torch.cat(parts))
        self.modified = 0
        self.last: Plan | None = None

    def plan(self, ids: Tensor, types: Tensor | None, past: int, visual_ids: Sequence[int]) -> Plan | None:
        """Locate this forward's visual tokens; None when it has none to modify."""
        typed = types is not None and types.shape == ids.shape
        ordinal = self.ledger.place(visual_mask(ids, types, visual_ids), past, typed)
        if self.latents is None or not bool((ordinal >= 0).any()):
            return None
        rows = self.ledger.rows_of(len(ids))
        token = torch.full_like(ordinal, -1)
        for i, r in enumerate(rows):
            here = ordinal[i] >= 0
            token[i, here] = self.maps[r].to(ids.device)[ordinal[i, here]]
        index = (token.flatten() >= 0).nonzero()[:, 0]
        self.modified += len(index)
        self.last = Plan(self.latents, index, token.flatten()[index], (ids.shape[0], ids.shape[1]))
        return self.last


class Hook:
    """A hook of ours. A deep copy does nothing: a copied host is a bare host, not a second one under the same attachment."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Hook":
        return Hook(lambda *args, **kwargs: None)


class Attachment:
    """A modulation attached to a host; owns its hooks and its injected adapter."""

    def __init__(self, modulation: Modulation, model: nn.Module) -> None:
        self.modulation = modulation
        self.model = model
        self.host = understand(model)
        self._check()
        self._conditioning: Conditioning | None = None
        self._plan: Plan | None = None
        self._report = Report(modulation.config.injection.layers)
        self._signature = inspect.signature(self.host.entry.forward)
        self._undo = ExitStack()
        try:
            self._install()
        except BaseException:
            self._undo.close()
            raise

    def _check(self) -> None:
        spec, here = self.modulation.config.host, HostSpec.of(self.host)
        if (spec.d_model, spec.n_layers) != (here.d_model, here.n_layers):
            raise HostError(
                f"The modulation was made for a {spec.model_type} of {spec.n_layers} layers of width {spec.d_model}; "
                f"this {here.model_type} has {here.n_layers} of width {here.d_model}."
            )
        self.host.check_layers(self.modulation.config.injection.layers)

    def _install(self) -> None:
        self._lora = None
        if self.modulation.lora is not None:
            self._lora = self.modulation.lora.inject(self.host)
            self._undo.callback(self._lora.remove)
        entry = self.host.entry
        handles = [entry.register_forward_pre_hook(Hook(self._before), with_kwargs=True), entry.register_forward_hook(Hook(self._after))]
        for k, layer in enumerate(self.modulation.config.injection.layers):
            # First in line: transformers records hidden states by hooks of its own, which must see the modulated ones.
            handles.append(self.host.layers[layer].register_forward_hook(Hook(self._write(k)), prepend=True))
        for handle in handles:
            self._undo.callback(handle.remove)

    # --- hooks -------------------------------------------------------------------------------------------------------------------

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._plan = None
        conditioning = self._conditioning
        if conditioning is None:
            return
        if conditioning.owner != threading.get_ident():
            raise ConditioningError("Another thread is conditioning this attachment; one at a time may call the host under it.")
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        ids = forward_tokens(given)
        self._plan = conditioning.plan(ids, given.get("mm_token_type_ids"), cache_length(given.get("past_key_values")), list(self.host.visual_ids.values()))

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        plan = self._plan
        if plan is None:
            return
        silent = [layer for k, layer in enumerate(self.modulation.config.injection.layers) if k not in plan.fired]
        if silent:
            raise ConditioningError(
                f"The hook of decoder layer {silent[0]} did not run, so its residual was not injected (compiled before attaching?). Attach first, compile then."
            )

    def _write(self, k: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            plan = self._plan
            if plan is None:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            if tuple(hidden.shape[:2]) != plan.shape:
                raise ConditioningError(
                    f"Decoder layer {self.modulation.config.injection.layers[k]} returned states of shape {tuple(hidden.shape)} for inputs of {plan.shape}."
                )
            states = hidden.reshape(-1, hidden.shape[-1])
            index = plan.index.to(hidden.device)
            delta = self.modulation.residual(k, plan.latents.layers[k][plan.token.to(plan.latents.layers[k].device)]).to(hidden.device, hidden.dtype)
            plan.norms[k] = (delta.detach().float().norm(), states.detach()[index].float().norm())
            plan.fired.add(k)
            written = states.index_add(0, index, delta).view_as(hidden)  # out of place: the host may need its own states again
            return (written, *output[1:]) if isinstance(output, tuple) else written

        return hook

    # --- use ---------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def condition(self, rows: Rows) -> Iterator[None]:
        """Give signals and features for the forwards of this block: per row of the batch its clips in order; ``[]`` is a row without.

        Raises :class:`ConditioningError` when nested, when a row's visual tokens and grids differ, or when no forward came.
        """
        if self._conditioning is not None:
            raise ConditioningError("This attachment is being conditioned already; conditioning does not nest.")
        self._conditioning = conditioning = Conditioning(self.modulation, rows)
        try:
            yield
            if conditioning.ledger.forwards == 0:
                raise ConditioningError("No forward reached the host inside this conditioning, so nothing was injected.")
            conditioning.ledger.finish()
        finally:
            self._conditioning = None
            self._summarise(conditioning)
            if not torch.is_grad_enabled():
                self._plan = None  # kept otherwise: activation checkpointing may run the layers again during backward

    def _summarise(self, conditioning: Conditioning) -> None:
        layers, latents, last = self.modulation.config.injection.layers, conditioning.latents, conditioning.last
        norms = last.norms if last else {}
        self._norms = {layers[k]: pair for k, pair in norms.items()}
        self._report = Report(layers, conditioning.ledger.forwards, conditioning.modified, latents.steps if latents else (), latents.active if latents else ())

    def report(self) -> Report:
        """Return what the last conditioning did."""
        self._report.ratio = {layer: float(delta / hidden.clamp_min(1e-12)) for layer, (delta, hidden) in getattr(self, "_norms", {}).items()}
        return self._report

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Switch the modulation's own LoRA off for a while, so that forwards without conditioning are the host's own."""
        if self._conditioning is not None:
            raise ConditioningError("The bare host cannot be asked for inside a conditioning.")
        if self._lora is None:
            yield
        else:
            with self._lora.disabled():
                yield

    @contextmanager
    def under(self, rows: Rows, bare: bool = False) -> Iterator[None]:
        """Condition with ``rows`` where any of them has a clip, else not at all; ``bare`` switches our LoRA off too."""
        with self.bare() if bare else nullcontext(), self.condition(rows) if any(rows) else nullcontext():
            yield

    def detach(self) -> None:
        """Take out every hook and the injected adapter; the host is what it was. Detaching twice is harmless."""
        if self._conditioning is not None:
            raise ConditioningError("Cannot detach inside a conditioning.")
        self._plan = None
        self._undo.close()

    def __reduce__(self) -> Any:
        raise ConditioningError("An attachment cannot be pickled; save the modulation with save_pretrained and attach it again.")


class ModulatedHost(nn.Module):
    """Conditions and calls the host in one forward, so that data-parallel wrappers see the modulation's parameters used.

    Its parameters and state_dict are the modulation's alone: the host is held outside the module tree.
    """

    def __init__(self, modulation: Modulation, model: nn.Module) -> None:
        super().__init__()
        self.modulation = modulation
        self.__dict__["attachment"] = modulation.attach(model)
        self.attachment: Attachment

    def forward(self, rows: Rows, **inputs: Any) -> Any:
        """Call the host on ``inputs`` conditioned with ``rows``."""
        with self.attachment.condition(rows):
            return self.attachment.model(**inputs)
