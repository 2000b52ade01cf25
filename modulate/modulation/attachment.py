"""Attach a modulation to a host: hooks that add residuals to its tokens and leave no trace."""

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modulate.errors import AttachmentWarning, ConditioningError, HostError
from modulate.hosts.attached_modules import noted, refuse_second
from modulate.hosts.hooks import ActiveCalls, Hook, arguments_by_name, is_patched
from modulate.hosts.host import understand
from modulate.hosts.kv_cache import output_cache
from modulate.hosts.verified_versions import warn_if_unverified
from modulate.modulation.clip_inputs import ClipInput, Rows, as_lists, warn_outside
from modulate.modulation.conditioning import Conditioning, TokenHints
from modulate.modulation.lora import LoraHooks
from modulate.modulation.module import HostSpec, Modulation
from modulate.modulation.recompute import (
    NO_BACKWARD,
    ForwardPass,
    RecomputeTracker,
    current_backward,
)
from modulate.utils.library_warnings import show_library_warnings

__all__ = ["Attachment", "AttachmentReport", "ClipInput", "ModulatedHost"]

DYNAMO_TRACES_HOOKS = tuple(
    int(part) for part in torch.__version__.partition("+")[0].split(".")[:2]
) >= (2, 14)
"""Whether dynamo may trace the entry's hooks, so that a strict export fails with our own error.

Seen on torch 2.14; 2.11 cannot compile a whole host with traced hooks.
"""


@dataclass
class AttachmentReport:
    """What the forwards of the last conditioning did.

    ``tokens``: positions modified, in all forwards together. ``steps``, ``active_steps``: time
    steps of each clip with a signal, and how many of them the signal reached. ``ratio``: per
    injected layer ‖Δh‖ / ‖h‖ over the modified tokens of the last forward that modified any.
    """

    layers: tuple[int, ...]
    forwards: int = 0
    tokens: int = 0
    steps: tuple[int, ...] = ()
    active_steps: tuple[int, ...] = ()
    ratio: dict[int, float] = field(default_factory=dict)

    def active_by_row(self, rows: Sequence[Sequence[ClipInput]]) -> list[int]:
        """Return for each row how many steps of its clips the signal reached.

        ``rows``: those of the last conditioning; rows without a clip with a signal may be others'.
        """
        active = iter(self.active_steps)
        return [sum(next(active) for clip in row if clip.signal is not None) for row in rows]


class Attachment:
    """A modulation attached to a host; owns its hooks.

    Other modulations may be attached to the same host. Raises :class:`HostError` for a host of
    another shape than the modulation's, and where the same modulation, or one with the same
    configuration and weights, is attached to it already. Warns (:class:`AttachmentWarning`) of a
    host of another family, and of a modulation from the same folder with other weights.
    """

    @show_library_warnings()
    def __init__(self, modulation: Modulation, model: nn.Module) -> None:
        self.modulation = modulation
        self.model = model
        self.host = understand(model)
        self._check_host()
        refuse_second(modulation, self.host)
        warn_if_unverified(self.host.config.model_type)
        self._layers = modulation.config.injection.layers
        self._conditioning: Conditioning | None = None
        self._passes = RecomputeTracker()
        self._active_calls = ActiveCalls()
        self._report = AttachmentReport(self._layers)
        self._warned_outside = False
        self._norms: dict[int, tuple[Tensor, Tensor]] = {}
        self._signature = inspect.signature(self.host.entry.forward)
        self._lora: LoraHooks | None = None
        self._removals = ExitStack()
        try:
            self._install()
        except BaseException:
            self._removals.close()
            raise

    def _check_host(self) -> None:
        expected = self.modulation.config.host
        actual = HostSpec.of(self.host)
        if (expected.d_model, expected.n_layers) != (actual.d_model, actual.n_layers):
            raise HostError(
                f"The modulation was made for a {expected.model_type} of {expected.n_layers}"
                f" layers of width {expected.d_model}; this {actual.model_type} has"
                f" {actual.n_layers} of width {actual.d_model}."
            )
        if expected.model_type != actual.model_type:
            warnings.warn(
                f"The modulation was made for a {expected.model_type}, and this {actual.model_type}"
                " has the same shape: residuals for one mean nothing to the other.",
                AttachmentWarning,
                stacklevel=5,
            )
        self.host.check_layers(self.modulation.config.injection.layers)

    def _install(self) -> None:
        self._removals.enter_context(noted(self.modulation, self.host))
        if self.modulation.lora is not None:
            self._lora = LoraHooks(self.modulation.lora, self.host, self._current_pass)
            self._removals.callback(self._lora.remove)
        before: Callable[..., Any] = self._before_forward
        after: Callable[..., Any] = self._after_forward
        if not DYNAMO_TRACES_HOOKS:
            before = torch.compiler.disable(before)
            after = torch.compiler.disable(after)
        entry = self.host.entry
        handles = [
            entry.register_forward_pre_hook(Hook(before), with_kwargs=True),
            # Called after errors too: a failed forward must not count as running.
            entry.register_forward_hook(Hook(after), always_call=True),
        ]
        for k, layer in enumerate(self._layers):
            # First in line: transformers records hidden states by hooks of its own, which must see
            # the modulated ones.
            handles.append(
                self.host.layers[layer].register_forward_hook(
                    Hook(self._residual_hook(k)), prepend=True
                )
            )
        for handle in handles:
            self._removals.callback(handle.remove)

    # --- hooks on the entry, the module that merges vision into text

    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if torch.compiler.is_exporting():
            self._refuse_export()
        else:
            self._begin_forward(args, kwargs)

    # A strict export evaluates this while it traces: the error is then raised as it is.
    @torch.compiler.assume_constant_result
    def _refuse_export(self) -> None:
        if self._conditioning is not None:
            raise HostError(
                "A conditioned forward cannot be exported: where residuals go depends on the values"
                " of the inputs. Export the bare host, outside of the block, or run the conditioned"
                " one as it is or under torch.compile."
            )

    @torch.compiler.disable
    def _begin_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A recomputation repeats the plan of its forward, whatever is conditioned by now.
        if self._passes.is_recomputing():
            self._passes.begin_recomputation()
            return
        conditioning = self._conditioning
        self._enter_alone(conditioning)
        # Libraries (PEFT, quantization) may have replaced adapted modules since the last forward.
        if self._lora is not None:
            self._lora.follow()
        # Planning may raise; no earlier forward is running then.
        self._passes.running = None
        plan = None
        if conditioning is not None:
            plan = conditioning.plan(arguments_by_name(self._signature, args, kwargs))
        has_grad = torch.is_grad_enabled()
        if plan is not None:
            plan.needs_grad = has_grad and any(
                p.requires_grad for p in self.modulation.parameters()
            )
        sequence_number = torch.autograd._get_sequence_nr() if has_grad else -1
        self._passes.begin(ForwardPass(plan, self._passes.idle.lora, sequence_number))

    def _enter_alone(self, conditioning: Conditioning | None) -> None:
        """Note that this thread calls the host.

        Raises :class:`ConditioningError` for several threads during a conditioning.
        """
        entered = self._active_calls.enter(alone=conditioning is not None)
        is_owner = conditioning is None or conditioning.owner == threading.get_ident()
        if not entered or not is_owner:
            self._active_calls.leave()
            raise ConditioningError(
                "Another thread is conditioning this attachment or calling its host. During a"
                " conditioning only one thread may call the host."
            )

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not torch.compiler.is_exporting():
            self._end_forward(output)

    @torch.compiler.disable
    def _end_forward(self, output: Any) -> None:
        """End a forward; ``output`` is None for one that failed."""
        if self._passes.is_recomputing():
            self._passes.end_recomputation()
            return
        self._active_calls.leave()
        passed = self._passes.running
        # Outside of a conditioning several threads may call the host; each ends only its own.
        if passed is None or passed.thread != threading.get_ident():
            return
        self._passes.running = None
        if output is None:
            return
        if self._conditioning is not None:
            self._conditioning.end_forward(next(iter(output_cache(output).values()), None))
        self._check_fired(passed)
        if torch.is_grad_enabled() and output[0].grad_fn is not None:
            self._passes.mark_graph(passed, output[0])

    def _check_fired(self, passed: ForwardPass) -> None:
        """Raise :class:`ConditioningError` where a hook did not run although its layer did."""
        silent: list[int] = []
        if passed.plan is not None:
            fired = passed.plan.fired
            silent = [layer for k, layer in enumerate(self._layers) if k not in fired]
        consequence = "residual was not injected"
        if not silent and self._lora is not None and passed.lora:
            # A layer whose output comes from a cache runs none of its submodules, so none of
            # their hooks.
            silent = [
                layer
                for layer in sorted(self._lora.layers - passed.fired)
                if not is_patched(self.host.layers[layer], "forward")
            ]
            consequence = "LoRA was not added"
        if silent:
            raise ConditioningError(
                f"The hook of decoder layer {silent[0]} did not run, so its {consequence}:"
                " torch.compile runs a graph traced without it, or the host leaves the layer out."
                " Attach before the first call, or call `torch._dynamo.reset()` after attaching."
            )

    # --- hooks on the decoder layers

    def _current_pass(self) -> ForwardPass:
        """Return the forward that this thread runs, or that its backward recomputes."""
        # Autograd's state cannot be traced; a compiled host runs its graph inside of a forward.
        if torch.compiler.is_compiling():
            return self._passes.running or self._passes.idle
        return self._passes.current(has_lora=self._lora is not None)

    def _residual_hook(self, k: int) -> Callable[..., Any]:
        """Return the hook of the ``k``-th injected layer."""
        layer = self._layers[k]

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            passed = self._current_pass()
            if passed is self._passes.idle and self._conditioning is not None:
                self._refuse_bypass()
            if passed.plan is None:
                return None
            is_tuple = isinstance(output, tuple)
            hidden = output[0] if is_tuple else output
            written = passed.plan.add_residual(k, layer, hidden, self.modulation.residual)
            return (written, *output[1:]) if is_tuple else written

        return hook

    def _refuse_bypass(self) -> None:
        """Raise :class:`ConditioningError` for layers that run without a forward of the entry.

        Only in the thread that conditions: others may use the host's layers as they like.
        """
        if (
            torch.compiler.is_compiling()
            or current_backward() != NO_BACKWARD
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
        """Condition the forwards of this block on signals and features.

        A forward that continues a cache which an earlier conditioning filled takes the clips of the
        new tokens only. Each mask is a tensor, array or list, of bool or of 0 and 1.

        Args:
            rows: for each row of the batch its clips in the order of the prompt, ``[]`` for a row
                without clips; iterables are read once. A batch of beams or returned sequences,
                which repeat each row, needs no more rows.
            positions: (row, position), where the grids' tokens are, for forwards with
                ``inputs_embeds`` and no token ids; by default the host's placeholder ids tell.
            prompt: (row, position), the prompt's attention mask, for a modulation of the last
                token and a host that generates with a cache.
            mask: (row, position), the tokens to modulate, for a modulation of kind ``mask``.

        Raises what :func:`modulate.modulation.clip_inputs.check_rows` and
        :func:`modulate.modulation.clip_inputs.as_mask` do, and :class:`ConditioningError` when
        nested, when a row's visual tokens and grids differ, when its prompt shows its clips in
        another order, when rows that share clips are not copies, or when no forward came. Warns
        once of a signal that has events, but none during its clip (:class:`SignalWarning`).
        """
        self._check_attached()
        if self._conditioning is not None:
            raise ConditioningError(
                "This attachment is being conditioned already; conditioning does not nest."
            )
        hints = TokenHints(positions, prompt, mask)
        clips_of_rows = as_lists(rows)
        conditioning = Conditioning.build(self.modulation, clips_of_rows, self.host, hints)
        # Once: training conditions thousands of times, and the report counts active steps.
        self._warned_outside = self._warned_outside or warn_outside(clips_of_rows, stacklevel=3)
        self._conditioning = conditioning
        enclosing_backward = self._passes.open_block()
        try:
            with show_library_warnings():
                yield
            conditioning.finish()
        finally:
            self._conditioning = None
            self._passes.running = None
            self._passes.block_backward = enclosing_backward
            # After errors too: the report says how far the forwards came.
            self._summarize(conditioning)

    def _check_attached(self) -> None:
        if self._passes.closed:
            raise ConditioningError(
                "This attachment was detached; attach the modulation again: `modulation.attach(…)`."
            )

    def _summarize(self, conditioning: Conditioning) -> None:
        latents = conditioning.latents
        last_plan = conditioning.last_plan
        norms = last_plan.norms if last_plan else {}
        self._norms = {self._layers[k]: pair for k, pair in norms.items()}
        self._report = AttachmentReport(
            self._layers,
            forwards=conditioning.forwards,
            tokens=conditioning.modified,
            steps=latents.steps if latents else (),
            active_steps=latents.active if latents else (),
        )

    def report(self) -> AttachmentReport:
        """Return what the last conditioning did."""
        # Reading the norms waits for the device, so it is done only when somebody asks.
        self._report.ratio = {
            layer: float(delta / hidden.clamp_min(1e-12))
            for layer, (delta, hidden) in self._norms.items()
        }
        return self._report

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Switch the modulation's own LoRA off: forwards in this block are the host's own."""
        self._check_attached()
        if self._conditioning is not None:
            raise ConditioningError("`bare()` cannot be entered inside a conditioning.")
        had_lora = self._passes.idle.lora
        enclosing_backward = self._passes.open_block()
        self._passes.idle.lora = False
        try:
            yield
        finally:
            self._passes.open_block()
            self._passes.idle.lora = had_lora
            self._passes.block_backward = enclosing_backward

    @contextmanager
    def maybe_condition(self, rows: Rows, bare: bool = False) -> Iterator[None]:
        """Condition with ``rows`` if any of them has a clip, else leave the forwards unconditioned.

        ``bare``: switch the modulation's own LoRA off as well.
        """
        self._check_attached()
        clips_of_rows = as_lists(rows)
        with (
            self.bare() if bare else nullcontext(),
            self.condition(clips_of_rows) if any(clips_of_rows) else nullcontext(),
        ):
            yield

    def detach(self) -> None:
        """Remove every hook, so that the host is what it was. Detaching twice is harmless."""
        if self._conditioning is not None:
            raise ConditioningError("Cannot detach inside a conditioning.")
        self._passes.running = None
        self._passes.closed = True
        self._removals.close()

    def __reduce__(self) -> Any:
        raise ConditioningError(
            "An attachment cannot be pickled; save the modulation with save_pretrained and attach"
            " it again."
        )


class ModulatedHost(nn.Module):
    """A modulation and its host as one module, for training: conditions and calls the host.

    Data-parallel wrappers then see that the modulation's parameters are used. Its parameters and
    state_dict are the modulation's alone: the host is held outside of the module tree.
    """

    def __init__(self, modulation: Modulation, model: nn.Module) -> None:
        super().__init__()
        self.modulation = modulation
        # An attachment is not a module, so the host's parameters do not enter the tree.
        self.attachment: Attachment = modulation.attach(model)

    def forward(self, rows: Rows, **inputs: Any) -> Any:
        """Call the host on ``inputs``, conditioned with ``rows``."""
        with self.attachment.condition(rows):
            return self.attachment.model(**inputs)
