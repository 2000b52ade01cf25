"""Features computed ahead of training: exactly what it needs, by any number of processes."""

import os
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from modulate import cli
from modulate.config.recipe import load_recipe
from modulate.data.clip_shards import Clip, Shard, planned_clips
from modulate.data.feature_extractor import FeatureExtractor
from modulate.data.precompute import (
    FeatureFiller,
    SpaceEstimator,
    SpaceNeeded,
    refuse_failures,
    refuse_too_small,
)
from modulate.errors import ComponentError, DataError, Interrupted, RecipeError, StorageError
from modulate.evaluation.evaluate import evaluate
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import FrameFeatures
from modulate.interfaces.params import ComponentSpec
from modulate.runs.run import Run
from modulate.training.trainer import train
from modulate.utils.interrupts import StopRequest
from modulate_tabletop.make import make_world

TINY = [
    "data.params.train=2",
    "data.params.val=1",
    "data.params.test=2",
    "data.params.max_per_split=4",
    "data.params.seed=7",
    "sampling.max_frames=4",
    "sampling.train_max_frames=2",
    "training.batch_size=4",
    "training.stages.0.epochs=1",
    "training.stages.1.epochs=1",
    "evaluation.bootstrap=100",
    "evaluation.conditions=[blank,host,no_pixels]",
    "features.dtype=float16",
]


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precompute")
    make_world(folder / "tabletop", train=2, val=1, test=2, seed=7, workers=1)
    return folder


def arguments(data_folder, *overrides):
    return [f"data.params.root={data_folder}/tabletop", *TINY, *overrides]


def extractor_for(data_folder, cache, *overrides):
    return FeatureExtractor(
        load_recipe("gazeqwen_tiny", arguments(data_folder, *overrides)),
        cache,
        torch.device("cpu"),
        require_disk=True,
    )


def files_in(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def filled(data_folder):
    """Return (extractor, clips, cache folder filled by the command, its files, its result)."""
    cache = data_folder / "cache"
    done = command(data_folder, cache)
    extractor = extractor_for(data_folder, cache)
    return extractor, planned_clips(extractor), cache, files_in(cache), done


def command(data_folder, cache, *more):
    """Run `modulate features` in this process; return (exit code, stdout)."""
    from contextlib import redirect_stdout
    from io import StringIO

    stdout = StringIO()
    with redirect_stdout(stdout), pytest.raises(SystemExit) as ended:
        cli.main(
            ["features", "gazeqwen_tiny", *arguments(data_folder), "--cache", str(cache), *more]
        )
    return ended.value.code, " ".join(stdout.getvalue().split())


# --- the same entries as training needs, whoever computes them


def test_training_and_evaluation_find_every_entry_and_use_all_of_them(
    filled, data_folder, tmp_path
):
    _, clips, cache, files, (code, output) = filled
    shards = sorted(cache.glob("*.safetensors"))
    assert code == 0
    assert f"clips {len(clips)} already there 0 computed {len(clips)} failed 0 on disk" in output
    assert len(shards) > len(clips) > 5
    for path in shards:
        os.utime(path, ns=(10**12, path.stat().st_mtime_ns))
    recipe = load_recipe("gazeqwen_tiny", arguments(data_folder))
    pipeline = Pipeline(recipe, cache)
    run = Run.create(recipe, tmp_path)
    evaluate(run, pipeline, train(run, pipeline))
    assert pipeline.extractor.feature_cache.misses == 0
    assert pipeline.extractor.feature_cache.hits >= len(shards)
    assert [path.name for path in shards if path.stat().st_atime_ns == 10**12] == []
    assert files_in(cache) == files


RANKS = """
import os, sys
import torch
from modulate import cli
from modulate.interfaces.params import ComponentSpec
torch.set_num_threads(1)
pids = []
for rank in range(2):
    if not (pid := os.fork()):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        try:
            cli.main(sys.argv[1:])
        except SystemExit as end:
            os._exit(end.code or 0)
        finally:
            os._exit(9)
    pids.append(pid)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
"""


def test_two_processes_write_the_same_bytes_as_one(filled, data_folder, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            RANKS,
            "features",
            "gazeqwen_tiny",
            *arguments(data_folder),
            "--cache",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    shares = [
        int(line.split()[-1])
        for line in done.stdout.splitlines()
        if line.split()[:1] == ["computed"]
    ]
    assert len(shares) == 2 and min(shares) > 0 and sum(shares) == len(filled[1])
    assert files_in(tmp_path) == filled[3]


def test_shards_given_by_hand_make_the_whole(filled, data_folder, tmp_path):
    for number in (1, 3):
        FeatureFiller(extractor_for(data_folder, tmp_path)).fill(Shard(number, 3).clips(filled[1]))
    assert files_in(tmp_path).items() < filled[3].items()
    code, output = command(data_folder, tmp_path, "--shard", "2/3")
    assert code == 0 and "features (share 2 of 3)" in output and files_in(tmp_path) == filled[3]


def test_only_the_requested_splits_are_planned(data_folder, filled, tmp_path):
    extractor, clips, *_ = filled
    train_clips, val, test = (
        planned_clips(extractor, [split]) for split in ("train", "val", "test")
    )
    assert {len(clip.times) for clip in train_clips} == {2}
    assert {len(clip.times) for clip in val} == {4}
    assert not any(clip.gray for clip in (*train_clips, *val))
    assert all(clip.gray for clip in test)
    without_gray = extractor_for(data_folder, tmp_path, "evaluation.conditions=[blank]")
    assert not any(clip.gray for clip in planned_clips(without_gray, ["test"]))
    every_clip = (*train_clips, *val, *test)
    assert sorted(every_clip, key=lambda clip: (str(clip.file), clip.times)) == clips
    samples = sum(len(extractor.dataset.samples(split)) for split in ("train", "val", "test"))
    assert sum(len(clip.samples) for clip in clips) == samples > len(clips)


# --- filling again


def test_a_second_time_nothing_is_decoded_or_computed(filled, monkeypatch):
    extractor, clips, cache, files, _ = filled
    monkeypatch.setattr(
        "modulate.data.clip_reader.probe", lambda path: pytest.fail("opened a video")
    )
    done = FeatureFiller(extractor).fill(clips)
    assert (done.cached, done.computed, done.failed) == (len(clips), 0, [])
    assert done.bytes == sum(path.stat().st_size for path in cache.glob("*.safetensors"))
    assert files_in(cache) == files


def test_only_missing_and_damaged_entries_are_computed_again(filled):
    extractor, clips, cache, files, _ = filled
    missing = sorted(cache.glob("*.safetensors"))[0]
    altered = sorted(cache.glob("*.safetensors"))[-1]
    notes = sorted((cache / "shown").iterdir())[0]
    missing.unlink()
    altered.write_bytes(altered.read_bytes()[:-1] + b"?")
    notes.write_text('{"[0.0]": ["never"]}')
    with pytest.warns(UserWarning) as caught:
        done = FeatureFiller(extractor).fill(clips)
    warned = [str(warning.message) for warning in caught]
    assert sum("damaged" in text and "features in" in text for text in warned) == 1
    assert any("The notes in" in text and "are decoded again" in text for text in warned)
    assert done.computed == 2
    assert done.cached == len(clips) - 2
    assert files_in(cache) == files


def test_a_stop_request_is_obeyed_after_a_clip_and_filling_then_resumes(
    filled, data_folder, tmp_path
):
    extractor = extractor_for(data_folder, tmp_path)
    stop = StopRequest()
    with pytest.raises(
        Interrupted, match="Stopped by SIGTERM; everything up to here is saved"
    ) as stopped:
        FeatureFiller(extractor, lambda count: stop.request(signal.SIGTERM), stop).fill(filled[1])
    assert stopped.value.code == 143 and 1 <= len(list(tmp_path.glob("*.safetensors"))) <= 2
    done = FeatureFiller(extractor).fill(filled[1])
    assert (
        done.cached == 1 and done.computed == len(filled[1]) - 1 and files_in(tmp_path) == filled[3]
    )


def test_cached_frames_save_all_decoding(data_folder, filled, tmp_path, monkeypatch):
    extractor = extractor_for(data_folder, tmp_path, "features.frames_gib=1")
    clips = planned_clips(extractor, ["val"])
    need = SpaceEstimator(extractor).of(clips)
    done = FeatureFiller(extractor).fill(clips)
    size = sum(path.stat().st_size for path in (tmp_path / "frames").iterdir())
    assert done.computed == len(clips)
    assert done.bytes == sum(map(len, files_in(tmp_path).values()))
    assert size < need.frames < size + 4096 * len(clips)
    monkeypatch.setattr(
        "modulate.data.clip_reader.read_frames_at", lambda *a: pytest.fail("decoded")
    )
    again = FeatureFiller(extractor_for(data_folder, tmp_path, "features.frames_gib=1")).fill(clips)
    assert (again.cached, again.computed) == (len(clips), 0)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    assert FeatureFiller(extractor).fill(clips).computed == len(clips)


# --- failures


def test_clips_that_fail_are_listed_and_the_others_computed(filled, data_folder, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 99)
    extractor = extractor_for(data_folder, tmp_path / "cache")
    clip = filled[1][0]
    clips = [
        Clip(broken, (0.0,), False, ("q1", "q2")),
        Clip(tmp_path / "absent.mp4", (0.0,), False, ("q3",)),
        clip,
    ]
    done = FeatureFiller(extractor).fill(clips)
    assert done.computed == 1 and [clip.samples for clip, _ in done.failed] == [
        ("q1", "q2"),
        ("q3",),
    ]
    assert "cannot be opened as a video" in done.failed[0][1]
    assert "There is no video file at" in done.failed[1][1]
    total = 3 + len(clip.samples)
    with pytest.raises(
        DataError,
        match=(
            rf"clips of 3 of {total} samples failed, more than max_failed_share 0\.0 allows\."
            r" First: q1: .*broken\.mp4"
        ),
    ):
        refuse_failures(extractor, clips, done)
    refuse_failures(
        extractor_for(data_folder, tmp_path, "evaluation.max_failed_share=0.99"), clips, done
    )


def test_a_clip_that_does_not_fit_into_memory_fails_and_other_errors_of_a_backbone_are_raised(
    filled, data_folder, tmp_path
):
    extractor = extractor_for(data_folder, tmp_path)
    clips = filled[1][:2]

    def full(frames, times):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 PiB.")

    def broken(frames, times):
        raise ZeroDivisionError("in a backbone")

    extractor.backbone.forward = full
    done = FeatureFiller(extractor).fill(clips)
    assert [reason for _, reason in done.failed] == [
        "its frames' features do not fit into memory (CUDA out of memory)."
    ] * 2 and done.computed == 0
    extractor.backbone.forward = broken
    with pytest.raises(
        ComponentError,
        match="backbone 'vjepa2_1' of plugin 'vjepa' failed in forward: ZeroDivisionError",
    ):
        FeatureFiller(extractor).fill(clips)


def test_features_whose_times_do_not_increase_are_refused_before_they_are_stored(
    filled, data_folder, tmp_path
):
    extractor = extractor_for(data_folder, tmp_path)
    width = extractor.backbone.d_features
    extractor.backbone.forward = lambda frames, times: FrameFeatures(
        torch.zeros(2, 1, 1, width), (0.6, 0.1)
    )
    with pytest.raises(
        ComponentError, match=r"'vjepa2_1' .* returned times that do not increase from forward"
    ):
        FeatureFiller(extractor).fill(filled[1][:1])
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_command_fails_if_clips_fail_and_names_them(data_folder, tmp_path, monkeypatch, capsys):
    def refuse(video, times):
        raise DataError(f"no luck with {Path(video).name}")

    monkeypatch.setattr(
        "modulate.data.precompute.ClipReader.read", lambda self, video, times: refuse(video, times)
    )
    code, output = command(data_folder, tmp_path, "--split", "val")
    assert code == 1
    assert "computed 0 failed" in output
    assert "failed: " in output
    assert "no luck with tabletop_0003.mp4" in output
    assert "more than max_failed_share 0.0 allows" in capsys.readouterr().err


def test_limits_that_would_evict_new_entries_are_refused_before_anything_is_computed(
    data_folder, tmp_path, capsys
):
    assert command(data_folder, tmp_path, "features.disk_gib=0.0001")[0] == 1
    err = capsys.readouterr().err
    assert (
        "features.disk_gib keeps 0.1 MiB: what is computed first would be dropped before it is"
        " used. Raise features.disk_gib to 0.000" in err
    )
    assert not list(tmp_path.rglob("*.safetensors"))
    frames = extractor_for(data_folder, tmp_path, "features.frames_gib=0.001")
    with pytest.raises(
        RecipeError,
        match=r"All decoded frames take about 5\.0 GiB, and features\.frames_gib keeps 1\.0 MiB",
    ):
        refuse_too_small(frames, SpaceNeeded(0, 5 << 30))
    refuse_too_small(frames, SpaceNeeded(50 << 30, 1 << 20))


def test_entries_evicted_while_filling_are_an_error(filled, data_folder, tmp_path):
    extractor = extractor_for(data_folder, tmp_path)
    extractor.feature_cache.max_bytes = 100_000
    with (
        pytest.warns(
            UserWarning, match="the least recently used entries of other recipes will be dropped"
        ),
        pytest.raises(
            StorageError,
            match=(
                r"was dropped before it was used: the cache is too small\. Raise features\.disk_gib"
            ),
        ),
    ):
        FeatureFiller(extractor).fill(filled[1])


def test_a_warning_says_that_entries_of_other_recipes_will_be_evicted(
    filled, data_folder, tmp_path
):
    extractor = extractor_for(data_folder, tmp_path)
    (tmp_path / "other.safetensors").write_bytes(bytes(700_000))
    os.utime(tmp_path / "other.safetensors", (1000, 1000))
    extractor.feature_cache.max_bytes = 800_000
    with pytest.warns(
        UserWarning,
        match=(r"holds 0\.7 MiB and 0\.2 MiB are to come, of at most 0\.8 MiB: the least recently"),
    ):
        FeatureFiller(extractor).fill(filled[1])
    assert not (tmp_path / "other.safetensors").exists() and {
        name for name in files_in(tmp_path) if "/" not in name
    } == {name for name in filled[3] if "/" not in name}


def test_no_eviction_is_announced_if_nothing_is_missing(filled, data_folder, tmp_path):
    extractor = extractor_for(data_folder, tmp_path)
    clips = planned_clips(filled[0], ["val"])
    FeatureFiller(extractor).fill(clips)
    (tmp_path / "other.safetensors").write_bytes(bytes(700_000))
    extractor.feature_cache.max_bytes = 500_000
    # Warnings are errors in tests.
    assert FeatureFiller(extractor).fill(clips).cached == len(clips)
    assert (tmp_path / "other.safetensors").exists()


def test_a_full_disk_is_reported_before_anything_is_computed(
    filled, data_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "shutil.disk_usage",
        lambda folder: namedtuple("usage", "total used free")(1 << 40, 1 << 40, 1000),
    )
    with pytest.raises(
        StorageError, match=r"MiB are still to be written, and the disk of .* has 0\.0 MiB left"
    ):
        FeatureFiller(extractor_for(data_folder, tmp_path / "cache")).fill(filled[1])
    assert not (tmp_path / "cache").exists()


DINO = ComponentSpec(
    name="dinov2",
    params={"weights": "random", "dims": {"dim": 24, "depth": 2, "heads": 2}, "image_size": 56},
)


@pytest.mark.parametrize("backbone", [None, DINO])
def test_sizes_are_estimated_without_computing_and_the_backbone_does_not_change(
    filled, tmp_path, backbone
):
    recipe = filled[0].recipe
    extractor = FeatureExtractor(
        recipe.model_copy(update={"backbone": backbone or recipe.backbone}),
        tmp_path,
        torch.device("cpu"),
    )
    clips = filled[1]
    before = extractor.backbone.fingerprint()
    need = SpaceEstimator(extractor).of(clips)
    real = sum(
        extractor.backbone(
            torch.zeros(len(clip.times), 64, 64, 3, dtype=torch.uint8), clip.times
        ).values.numel()
        * 2
        * (1 + clip.gray)
        for clip in clips
    )
    assert (
        real < need.features <= real + 4096 * sum(1 + clip.gray for clip in clips)
        and need.frames == 0
    )
    assert extractor.backbone.fingerprint() == before and {
        tensor.device.type for tensor in extractor.backbone.state_dict().values()
    } == {"cpu"}


def test_the_size_is_unknown_for_a_backbone_that_needs_real_numbers(filled, data_folder, tmp_path):
    extractor = extractor_for(data_folder, tmp_path)

    class Picky(torch.nn.Module):
        def forward(self, frames, times):
            return FrameFeatures(torch.zeros(int(frames.sum()), 1, 1, 1), times)

    extractor.backbone = Picky()
    assert SpaceEstimator(extractor).of(filled[1]) == SpaceNeeded()


def test_an_unknown_device_is_refused(data_folder, tmp_path, capsys):
    assert command(data_folder, tmp_path, "--device", "abacus")[0] == 1
    assert (
        "--device 'abacus' is not a device of this machine; use auto, cpu, or a CUDA device"
        in capsys.readouterr().err
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_without_cuda_the_error_names_the_alternative(data_folder, tmp_path, capsys):
    assert command(data_folder, tmp_path, "--device", "cuda:0")[0] == 1
    assert (
        capsys.readouterr().err
        == "Error: --device 'cuda:0': this machine has no CUDA device; use --device cpu.\n"
    )


def test_a_cache_that_cannot_be_written_is_refused_before_the_data_are_generated(tmp_path, capsys):
    (tmp_path / "file").touch()
    for cache, message in (
        (tmp_path / "file", f"Error: --cache {tmp_path}/file is a file, not a folder."),
        (
            tmp_path / "file" / "below",
            (
                f"Error: --cache {tmp_path}/file/below cannot be made: {tmp_path}/file is a file,"
                " not a folder."
            ),
        ),
        (
            Path("/proc/modulate"),
            (
                "Error: --cache /proc/modulate cannot be written: No such file or directory"
                " (/proc). Name another folder"
            ),
        ),
    ):
        assert command(tmp_path, cache)[0] == 1
        err = capsys.readouterr().err
        assert err.startswith(message) and "space" not in err and len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
