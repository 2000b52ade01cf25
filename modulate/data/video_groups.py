"""Groups of samples that depend on each other because they show the same videos or pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from modulate.interfaces.sample import Sample

GROUP = "video"
"""Name of the group by which intervals and tests are clustered."""


def with_video_groups(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples with a group ``video`` each; those that have one keep it.

    Samples that show a file in common, directly or through other samples, share a group, named by
    the id of its first sample.
    """
    # A forest over the files: every file points towards the file that stands for its group.
    parents: dict[Path, Path] = {}

    def root(file: Path) -> Path:
        while (parent := parents.setdefault(file, file)) != file:
            parents[file] = parents[parent]
            file = parents[file]
        return file

    without = [sample for sample in samples if GROUP not in sample.groups]
    for sample in without:
        first, *others = (clip.file for clip in sample.clips)
        for other in others:
            parents[root(other)] = root(first)
    names: dict[Path, str] = {}
    for sample in without:
        names.setdefault(root(sample.clips[0].file), sample.id)
    return [
        sample
        if GROUP in sample.groups
        else replace(sample, groups={**sample.groups, GROUP: names[root(sample.clips[0].file)]})
        for sample in samples
    ]
