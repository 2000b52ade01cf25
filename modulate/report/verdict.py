"""What a signal run's comparisons say, in sentences: the verdict, and notes on its companions."""

from modulate.interfaces.signal import COMMON_CONTROLS
from modulate.report.labels import named_seeds, short_value, side_name
from modulate.report.results import GroupResults
from modulate.report.runs import ROLES, Companion


def verdict(result: GroupResults) -> str:
    """Return whether the accuracy of a signal run comes from its signal, as far as is known.

    A gain is clear when its 95 % interval lies above zero.
    """
    lower_bounds = _lower_bounds(result)
    unclear = [name for name, low in lower_bounds.items() if low <= 0]
    if unclear:
        text = f"Not shown to use its signal: no clear gain over {_listed(unclear, 'or')}."
    elif lower_bounds:
        text = (
            f"Clear gain over {_listed(list(lower_bounds), 'and')}: the"
            f" {result.group.figure_name} depends on each clip's own signal."
        )
    else:
        text = (
            "Cannot tell whether it uses its signal: there is no interval for a shuffled control, a"
            " blank control or a blank-trained run."
        )
    missing = _missing_roles(result)
    return f"{text} Not given for comparison: {', '.join(missing)}." if missing else text


def _lower_bounds(result: GroupResults) -> dict[str, float]:
    """Return the lower end of each gain that depends on the signal, by what it is a gain over."""
    comparisons = [
        comparison
        for companion, comparison in result.companions
        if companion.role == ROLES["blank"] and comparison is not None
    ]
    comparisons += [found for found in result.controls if found.second in COMMON_CONTROLS]
    return {
        side_name(found.second): found.overall.low
        for found in comparisons
        if found.overall is not None and found.overall.low is not None
    }


def _missing_roles(result: GroupResults) -> list[str]:
    # Without LoRA in the recipe there is no LoRA-only run to miss.
    has_lora = result.group.recipe.lora is not None
    return [
        companion.role
        for companion, _ in result.companions
        if companion.group is None and (has_lora or companion.role != ROLES["none"])
    ]


def _listed(names: list[str], conjunction: str) -> str:
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} {conjunction} {names[-1]}"


def companion_notes(result: GroupResults) -> list[str]:
    """Return a note on each companion: which run it is and how its recipe differs, or its lack."""
    return [_companion_note(companion) for companion, _ in result.companions]


def _companion_note(companion: Companion) -> str:
    group = companion.group
    if group is None:
        return companion.missing
    differs = "; ".join(
        f"{key}: {short_value(ours)} here, {short_value(theirs)} there"
        for key, (ours, theirs) in companion.differs.items()
    )
    found = f"{companion.role}: {group.name}, {named_seeds(group.seeds)}."
    found = found[0].upper() + found[1:]
    return f"{found} Differs in {differs}." if differs else f"{found} Same recipe otherwise."
