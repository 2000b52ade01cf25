"""Attach a modulation to a host: hooks that write residuals onto its tokens, and their removal
without a trace.
"""

import inspect
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modulate.errors import ConditioningError, HostError
from modulate.hosts.hooks import ActiveCalls, Hook, is_patched, named
from modulate.hosts.host import understand
from modulate.hosts.kv_cache import output_cache
from modulate.hosts.verified_versions import warn_if_unverified
from modulate.modulation.clip_inputs import ClipInput, Rows, listed
from modulate.modulation.conditioning import Conditioning, TokenHints, WritePlan
from modulate.modulation.lora import LoraHooks
from modulate.modulation.module import HostSpec, Modulation
from modulate.modulation.recompute import ForwardPass, RecomputeTracker, backward_now
from modulate.utils.library_warnings import show_library_warnings

__all__ = ["Attachment", "AttachmentReport", "ClipInput"]


@dataclass
class AttachmentReport:
    """What the forwards of the last conditioning did.

    ``tokens``: tokens modified in all forwards together; ``steps`` / ``active_steps``: time steps
    of every clip with a signal, and those of them that the signal reached; ``ratio``: per injected
    layer ‖Δh‖ / ‖h‖ over the modified tokens of the last forward that modified any.
    """

    layers: tuple[int, ...]
    forwards: int = 0
    tokens: int = 0
    steps: tuple[int, ...] = ()
    active_steps: tuple[int, ...] = ()
    ratio: dict[int, float] = field(default_factory=dict)


REENTRANT = (
    "The host's layers run without gradients although the modulation needs them: reentrant"
    " activation checkpointing of whole layers, hooks included, would go through the modulation's"
    " graph once for every layer. Checkpoint with `use_reentrant=False`."
)


TRACED = tuple(map(int, torch.__version__.partition("+")[0].split(".")[:2])) >= (2, 14)
"""Whether dynamo may look into the entry's hooks, so that a strict export is refused in our words.
Seen on 2.14; 2.11 cannot compile a whole host so.
"""


class Attachment:
    """A modulation attached to a host; owns its hooks."""

    @show_library_warnings()
    def __init__(self, modulation: Modulation, model: nn.Module) -> None:
        self.modulation = modulation
        self.model = model
        self.host = understand(model)
        self._check()
        warn_if_unverified(self.host.config.model_type)
        self._conditioning: Conditioning | None = None
        self._recall = RecomputeTracker()
        self._callers = ActiveCalls()
        self._report = AttachmentReport(modulation.config.injection.layers)
        self._signature = inspect.signature(self.host.entry.forward)
        self._undo = ExitStack()
        try:
            self._install()
        except BaseException:
            self._undo.close()
            raise

    def _check(self) -> None:
        spec = self.modulation.config.host
        here = HostSpec.of(self.host)
        if (spec.d_model, spec.n_layers) != (here.d_model, here.n_layers):
            raise HostError(
                f"The modulation was made for a {spec.model_type} of {spec.n_layers} layers of"
                f" width {spec.d_model}; this {here.model_type} has {here.n_layers} of width"
                f" {here.d_model}."
            )
        self.host.check_layers(self.modulation.config.injection.layers)

    def _install(self) -> None:
        self._lora = None
        if self.modulation.lora is not None:
            self._lora = LoraHooks(self.modulation.lora, self.host, self._current)
            self._undo.callback(self._lora.remove)
        entry = self.host.entry
        before, after = (
            (self._before, self._after)
            if TRACED
            else map(torch.compiler.disable, (self._before, self._after))
        )
        handles = [
            entry.register_forward_pre_hook(Hook(before), with_kwargs=True),
            entry.register_forward_hook(Hook(after), always_call=True),
        ]
        for k, layer in enumerate(self.modulation.config.injection.layers):
            # First in line: transformers records hidden states by hooks of its own, which must see
            # the modulated ones.
            handles.append(
                self.host.layers[layer].register_forward_hook(Hook(self._write(k)), prepend=True)
            )
        for handle in handles:
            self._undo.callback(handle.remove)

    # --- hooks

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_exporting():
            self._refuse_export()
        else:
            self._enter(args, kwargs)

    @torch.compiler.assume_constant_result
    def _refuse_export(self) -> None:  # a strict export runs this while it traces
        if self._conditioning is not None:
            raise HostError(
                "A conditioned forward cannot be exported: where residuals go depends on the values"
                " of the inputs. Export the bare host, outside of the block, or run the conditioned"
                " one as it is or under torch.compile."
            )

    @torch.compiler.disable
    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recall.replays():
            self._recall.run_again()
            return
        conditioning = self._conditioning
        me = threading.get_ident()
        if not self._callers.enter(alone=conditioning is not None) or (
            conditioning is not None and conditioning.owner != me
        ):
            self._callers.leave()
            raise ConditioningError(
                "Another thread is conditioning this attachment or calling its host; one at a time"
                " may do so during a conditioning."
            )
        if self._lora is not None:
            self._lora.follow()
        self._recall.running = None
        plan = (
            None
            if conditioning is None
            else conditioning.plan(named(self._signature, args, kwargs))
        )
        learning = torch.is_grad_enabled()
        if plan is not None:
            plan.learns = learning and any(p.requires_grad for p in self.modulation.parameters())
        self._recall.begin(
            ForwardPass(
                plan, self._recall.idle.lora, torch.autograd._get_sequence_nr() if learning else -1
            )
        )

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not torch.compiler.is_exporting():
            self._leave(output)

    @torch.compiler.disable
    def _leave(self, output: Any) -> None:
        """Close a forward, also one that failed (``output`` None)."""
        if self._recall.replays():
            self._recall.end_again()
            return
        self._callers.leave()
        passed = self._recall.running
        if passed is None or passed.thread != threading.get_ident():
            return
        self._recall.running = None
        if output is None:
            return
        if self._conditioning is not None:
            self._conditioning.tracker.remember(next(iter(output_cache(output).values()), None))
        self._check_fired(passed)
        if torch.is_grad_enabled() and output[0].grad_fn is not None:
            self._recall.remember(passed, output[0])

    def _check_fired(self, passed: ForwardPass) -> None:
        """Raise :class:`ConditioningError` where a hook did not run although its layer did."""
        layers = self.modulation.config.injection.layers
        silent = [
            layer
            for k, layer in enumerate(layers)
            if passed.plan is not None and k not in passed.plan.fired
        ]
        what = "residual was not injected"
        if not silent and self._lora is not None and passed.lora:
            # A layer whose output is kept runs none of its parts.
            silent = [
                layer
                for layer in sorted(self._lora.layers - passed.fired)
                if not is_patched(self.host.layers[layer], "forward")
            ]
            what = "LoRA was not added"
        if silent:
            raise ConditioningError(
                f"The hook of decoder layer {silent[0]} did not run, so its {what}: torch.compile"
                " runs a graph traced without it, or the host leaves the layer out. Attach before"
                " the first call, or call `torch._dynamo.reset()` after attaching."
            )

    def _current(self) -> ForwardPass:
        """Return the forward that is running in this thread, or that a backward is recomputing."""
        if torch.compiler.is_compiling():
            return self._recall.running or self._recall.idle
        return self._recall.current(adapted=self._lora is not None)

    def _write(self, k: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            now = self._current()
            if now is self._recall.idle and self._conditioning is not None:
                self._refuse_bypass()
            plan: WritePlan | None = now.plan
            if plan is None:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            if (hidden.shape[0], hidden.shape[1]) != plan.shape:
                raise ConditioningError(
                    f"Decoder layer {self.modulation.config.injection.layers[k]} returned states of"
                    f" shape {tuple(hidden.shape)} for inputs of {plan.shape}."
                )
            if plan.learns and not torch.is_grad_enabled():
                raise ConditioningError(REENTRANT)
            states = hidden.reshape(-1, hidden.shape[-1])
            index = plan.index.to(hidden.device)
            here = states[index]
            delta = self.modulation.residual(k, *plan.read(k), here).to(hidden.device, hidden.dtype)
            plan.norms[k] = (delta.detach().float().norm(), here.detach().float().norm())
            plan.fired.add(k)
            written = states.index_add(0, index, delta).view_as(
                hidden
            )  # out of place: the host may need its own states again
            return (written, *output[1:]) if isinstance(output, tuple) else written

        return hook

    def _refuse_bypass(self) -> None:
        """Raise :class:`ConditioningError` for layers that run outside a forward of the entry, in
        the thread that conditions.
        """
        if (
            torch.compiler.is_compiling()
            or backward_now() != -1
            or self._conditioning is None
            or self._conditioning.owner != threading.get_ident()
        ):
            return
        raise ConditioningError(
            "The decoder layers ran inside a conditioning without a forward of"
            f" {type(self.host.entry).__name__}, the module that merges vision into text: where the"
            " visual tokens are cannot be seen there, so nothing was injected. (Some classes'"
            " `generate` calls the language model directly.) Call the host's own forward, or its"
            f" `generate` where that goes through {type(self.host.entry).__name__}."
        )

    # --- use

    @contextmanager
    def condition(
        self,
        rows: Rows,
        *,
        positions: Tensor | None = None,
        prompt: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Iterator[None]:
        """Give signals and features for the forwards of this block: per row of the batch its clips
        in order; ``[]`` is a row without.

        A forward that continues a cache which an earlier conditioning filled takes the clips of the
        new tokens only.

        Args:
            rows: for each row of the batch, its clips; iterables are read once.
            positions: (row, position) bool, as ``prompt`` and ``mask`` a tensor, array or list of bool or of 0 and 1: where the grids' tokens are, for forwards with ``inputs_embeds`` and no token ids; by default
                they are found by the host's placeholder ids.
            prompt: (row, position) bool, the prompt's attention mask, for a modulation that writes on the last token and a host that generates with a cache.
            mask: (row, position) bool, the tokens to write on, for a modulation that is told.

        Raises what :func:`modulate.modulation.clip_inputs.check` and
        :func:`modulate.modulation.clip_inputs.mask_of` do, and :class:`ConditioningError` when
        nested, when a row's visual tokens and grids differ, or when no forward came.
        """
        if self._conditioning is not None:
            raise ConditioningError(
                "This attachment is being conditioned already; conditioning does not nest."
            )
        self._conditioning = conditioning = Conditioning(
            self.modulation, rows, self.host, TokenHints(positions, prompt, mask)
        )
        before = self._recall.open_block()
        try:
            with show_library_warnings():
                yield
            if conditioning.tracker.forwards == 0:
                raise ConditioningError(
                    "No forward reached the host inside this conditioning, so nothing was injected."
                    " (A graph that torch.compile traced before attaching runs no hooks: call"
                    " `torch._dynamo.reset()` after attaching.)"
                )
            conditioning.tracker.finish()
        finally:
            self._conditioning = self._recall.running = None
            self._recall.opened = before
            self._summarize(conditioning)

    def _summarize(self, conditioning: Conditioning) -> None:
        layers = self.modulation.config.injection.layers
        latents = conditioning.latents
        last = conditioning.last
        norms = last.norms if last else {}
        self._norms = {layers[k]: pair for k, pair in norms.items()}
        self._report = AttachmentReport(
            layers,
            conditioning.tracker.forwards,
            conditioning.modified,
            latents.steps if latents else (),
            latents.active if latents else (),
        )

    def report(self) -> AttachmentReport:
        """Return what the last conditioning did."""
        self._report.ratio = {
            layer: float(delta / hidden.clamp_min(1e-12))
            for layer, (delta, hidden) in getattr(self, "_norms", {}).items()
        }
        return self._report

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Switch the modulation's own LoRA off for a while, so that forwards without conditioning
        are the host's own.
        """
        if self._conditioning is not None:
            raise ConditioningError("The bare host cannot be asked for inside a conditioning.")
        before = self._recall.idle.lora, self._recall.open_block()
        self._recall.idle.lora = False
        try:
            yield
        finally:
            self._recall.open_block()
            self._recall.idle.lora, self._recall.opened = before

    @contextmanager
    def under(self, rows: Rows, bare: bool = False) -> Iterator[None]:
        """Condition with ``rows`` where any of them has a clip, else not at all; ``bare`` switches
        our LoRA off too.
        """
        rows = listed(rows)
        with (
            self.bare() if bare else nullcontext(),
            self.condition(rows) if any(rows) else nullcontext(),
        ):
            yield

    def detach(self) -> None:
        """Take out every hook; the host is what it was. Detaching twice is harmless."""
        if self._conditioning is not None:
            raise ConditioningError("Cannot detach inside a conditioning.")
        self._recall.running = None
        self._recall.closed = True
        self._undo.close()

    def __reduce__(self) -> Any:
        raise ConditioningError(
            "An attachment cannot be pickled; save the modulation with save_pretrained and attach"
            " it again."
        )
