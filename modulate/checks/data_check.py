"""Check the samples of any data set: files, windows, signals, splits and answers.

Of each video only the first frame is decoded, or also the last one that is needed.
"""

from collections.abc import Callable, Mapping, Sequence

from modulate.checks.data_answers import check_answers
from modulate.checks.data_files import check_media, check_signals
from modulate.checks.data_leaks import check_leaks
from modulate.data.clip_shards import SPLITS
from modulate.data.sampled_steps import SampledSteps
from modulate.errors import ModulateError
from modulate.interfaces.components import Dataset
from modulate.interfaces.inspection import Inspection, place_of
from modulate.interfaces.sample import Sample


def check_data(
    dataset: Dataset,
    steps: SampledSteps,
    kinds: Sequence[str] = (),
    decode: bool = False,
    advance: Callable[[], object] = lambda: None,
) -> Inspection:
    """Check a data set; problems become findings, never exceptions.

    Args:
        dataset: the data set, which adds findings of its own
            (:meth:`modulate.interfaces.components.Dataset.inspect`).
        steps: the sampling.
        kinds: kinds of signal that the recipe reads. Others that samples have are read, too.
        decode: decode the last frame that a window needs, too, which finds videos that are cut off.
        advance: called once for each file.
    """
    inspection = Inspection(steps, steps.training_differs, advance)
    inspection.figures["sampling"] = str(steps)
    samples = _samples(inspection, dataset)
    inspection.figures["samples"] = {split: len(items) for split, items in samples.items()}
    every = [sample for items in samples.values() for sample in items]
    _check_ids(inspection, every)
    ends = check_media(inspection, every, decode)
    check_signals(inspection, dataset, every, kinds, ends)
    check_leaks(inspection, samples)
    check_answers(inspection, samples)
    return inspection


def _samples(inspection: Inspection, dataset: Dataset) -> Mapping[str, Sequence[Sample]]:
    """Return the samples by split: what the data set could read, or all if it says nothing."""
    try:
        found = dataset.inspect(inspection)
    except ModulateError as error:
        inspection.add("error", str(error))
        return {}
    if found is not None:
        return found
    samples: dict[str, Sequence[Sample]] = {}
    for split in SPLITS:
        try:
            samples[split] = dataset.samples(split)
        except ModulateError as error:
            inspection.add("error", str(error))
    return samples


def _check_ids(inspection: Inspection, samples: Sequence[Sample]) -> None:
    first: dict[str, Sample] = {}
    rows = []
    for sample in samples:
        earlier = first.setdefault(sample.id, sample)
        if earlier is not sample:
            rows.append(f"{place_of(sample)}: {sample.id} is that of {place_of(earlier)}")
    if rows:
        inspection.add("error", f"{len(rows)} ids belong to more than one sample.", rows)
