"""Whether a recipe's parts can use its signal: encoder, input transforms, conditions."""

from modulate import plugins
from modulate.config.sections import BUILT_IN, Evaluation
from modulate.errors import PluginError, RecipeError, near_matches
from modulate.interfaces.multi_signal import KIND_SEPARATOR, MultiSignal, controls_of, kinds_of
from modulate.interfaces.params import ComponentSpec


def check_signal_use(
    signal: str, encoder: ComponentSpec, evaluation: Evaluation, source: str
) -> None:
    """Raise :class:`RecipeError` where a part of a recipe cannot use its ``signal``.

    ``source`` names the recipe in errors.
    """
    _check_encoder(signal, encoder, source)
    _check_inputs(signal, evaluation, source)
    _check_conditions(signal, evaluation, source)


def usual_conditions(signal: str, evaluation: Evaluation) -> Evaluation:
    """Return ``evaluation``, whose default conditions are those that the ``signal`` has.

    Conditions that a recipe names itself stay as they are.
    """
    if "conditions" in evaluation.model_fields_set:
        return evaluation
    known = BUILT_IN.keys() | controls_of(signal).keys()
    usual = tuple(name for name in evaluation.conditions if name in known)
    return evaluation.model_copy(update={"conditions": usual})


def can_read(wanted: str, signal: str) -> bool:
    """Return whether what reads ``wanted`` can read a recipe's ``signal``; both may be ``a+b``.

    A kind derived from the one that is wanted is read too.
    """
    kinds = kinds_of(signal)
    if len(kinds) > 1:
        return wanted == MultiSignal.kind or set(wanted.split(KIND_SEPARATOR)) == kinds.keys()
    if wanted == signal:
        return True
    try:
        return issubclass(kinds[signal], plugins.get("signal", wanted))
    except PluginError:
        return False


def _check_encoder(signal: str, spec: ComponentSpec, source: str) -> None:
    encoder, params = spec.resolved("signal_encoder")
    with spec.blame("signal_encoder", "reads"):
        wanted = encoder.reads(params)
    if not can_read(wanted, signal):
        several = "several kinds" if wanted == MultiSignal.kind else repr(wanted)
        raise RecipeError(
            f"{source}: the encoder {spec.name!r} reads {several}, not the recipe's signal"
            f" {signal!r}. Write `signal: {'a+b' if wanted == MultiSignal.kind else wanted}`, or"
            " name an encoder that reads it."
        )


def _check_inputs(signal: str, evaluation: Evaluation, source: str) -> None:
    kinds = kinds_of(signal)
    for name, spec in evaluation.inputs.items():
        transform, _ = spec.resolved("input")
        wanted = getattr(transform, "signal_kind", None)
        if wanted is None or wanted in kinds or (len(kinds) == 1 and can_read(wanted, signal)):
            continue
        raise RecipeError(
            f"{source}: evaluation.inputs.{name}: {spec.name!r} reads {wanted!r}, not the recipe's"
            f" signal {signal!r}. Leave it out, or name an input that reads it."
        )


def _check_conditions(signal: str, evaluation: Evaluation, source: str) -> None:
    known = BUILT_IN.keys() | controls_of(signal).keys()
    clash = sorted(evaluation.inputs.keys() & known)
    if clash:
        raise RecipeError(
            f"{source}: evaluation.inputs: {clash[0]!r} is already a condition; give the input"
            " another name."
        )
    for name in evaluation.conditions:
        if name not in known:
            raise RecipeError(
                f"{source}: evaluation.conditions: {name!r} is not a condition."
                f" {near_matches(name, known)}"
            )
