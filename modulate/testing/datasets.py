"""The contract of a data set."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from modulate import plugins
from modulate.data.picture import picture_size
from modulate.data.video import probe
from modulate.errors import DataError, ModulateError, PluginError
from modulate.interfaces.components import Dataset, Reference
from modulate.interfaces.params import ComponentSpec
from modulate.interfaces.prompt import AnswerForm
from modulate.interfaces.result_checks import check_fingerprint, check_samples
from modulate.interfaces.sample import Sample
from modulate.interfaces.signal_checks import check_signal
from modulate.testing.contract import ComponentContract, require, same
from modulate.testing.videos import write_video

SPLITS = ("train", "val", "test")


class DatasetContract(ComponentContract):
    """Rows that every data set must pass.

    Derive a class whose name begins with ``Test``, and run pytest::

        class TestKitchen(modulate.DatasetContract):
            name = "kitchen"

            def make(self, folder):
                self.write_video(folder / "train" / "pan.mp4")
                return {"root": folder}

    Attributes:
        name: see :class:`ComponentContract`.
        shares_files: whether videos may be in several splits; answers are then learned by heart
            more easily than questions are understood.
    """

    component_kind = "dataset"
    shares_files: ClassVar[bool] = False
    _made: ClassVar[dict[type, tuple[TemporaryDirectory[str], dict[str, Any]]]] = {}

    def make(self, folder: Path) -> Mapping[str, Any]:
        """Write small files into ``folder``, and return parameters; by default ``params``.

        Called once for all rows.
        """
        return self.params

    write_video = staticmethod(write_video)

    @property
    def spec(self) -> ComponentSpec:
        """The data set on the files that :meth:`make` wrote."""
        cls = type(self)
        if cls not in self._made:
            folder = TemporaryDirectory()
            self._made[cls] = (folder, dict(self.make(Path(folder.name))))
        return ComponentSpec(name=self.name, params=self._made[cls][1])

    def prepared(self) -> Dataset:
        """Return a new data set whose files are ready."""
        dataset: Dataset = self.build()
        with self.blame("prepare"):
            dataset.prepare()
        return dataset

    def samples(self, dataset: Dataset, split: str) -> list[Sample]:
        """Return the samples of a split; fail if they break the interface."""
        with self.blame("samples"):
            return check_samples(dataset.samples(split), split)

    def all_samples(self) -> list[Sample]:
        """Return the samples of all splits."""
        dataset = self.prepared()
        return [sample for split in SPLITS for sample in self.samples(dataset, split)]

    # --- rows

    def test_it_has_samples(self) -> None:
        """Its splits hold sound samples, and its files may be prepared twice."""
        dataset = self.prepared()
        with self.blame("prepare"):
            dataset.prepare()
        counts = {split: len(self.samples(dataset, split)) for split in SPLITS}
        require(any(counts.values()), "no split has a sample; `make` must write a small data set")

    def test_ids_are_unique(self) -> None:
        """No two samples of the whole data set share an id."""
        ids = [sample.id for sample in self.all_samples()]
        repeated = sorted({name for name in ids if ids.count(name) > 1})
        require(not repeated, f"several splits have samples with the id {repeated[:1]}")

    def test_splits_share_no_file(self) -> None:
        """A video or picture of one split is in no other."""
        dataset = self.prepared()
        seen: dict[Path, str] = {}
        for split in SPLITS:
            for sample in self.samples(dataset, split):
                for file in sample.files:
                    before = seen.setdefault(file.resolve(), split)
                    require(
                        self.shares_files or before == split,
                        f"{file} is in the splits {before!r} and {split!r}: split by video, or set"
                        " `shares_files = True` in the test if that is meant",
                    )

    def test_samples_keep_their_order(self) -> None:
        """Every call, and every instance, returns the same samples in the same order."""
        dataset = self.prepared()
        again = self.prepared()
        for split in SPLITS:
            first = self.samples(dataset, split)
            require(
                same(first, self.samples(dataset, split)),
                f"samples({split!r}) of one data set differ between calls",
            )
            require(
                same(first, self.samples(again, split)),
                f"samples({split!r}) differ between two instances; sort what a folder lists",
            )

    def test_files_exist_and_windows_lie_in_them(self) -> None:
        """Every video can be opened and lasts beyond the start of the window; pictures open too."""
        for sample in self.all_samples():
            for clip in sample.clips:
                if clip.is_image:
                    picture_size(clip.file)
                    continue
                duration = probe(clip.file).duration
                start, _ = clip.window
                require(
                    0.0 <= start < duration,
                    f"the window {clip.window} of sample {sample.id} does not begin within its"
                    f" video, which lasts {duration:g} s",
                )

    def test_signals_can_be_read(self) -> None:
        """Every signal's file is one of its kind, and ``clip_signal`` returns a part of it."""
        dataset = self.prepared()
        for sample in self.all_samples():
            for clip in sample.clips:
                for kind, path in clip.signals.items():
                    try:
                        cls = plugins.get("signal", kind)
                    except PluginError as error:
                        raise AssertionError(
                            f"sample {sample.id} has a signal of the kind {kind!r}: {error}"
                        ) from error
                    signal = cls.read(path)
                    with self.blame("clip_signal"):
                        part = dataset.clip_signal(sample, clip, signal)
                        check_signal(part, cls, "clip_signal")

    def test_questions_can_be_trained_on(self) -> None:
        """Each question of the training split has two options or more, or an answer in words."""
        for sample in self.samples(self.prepared(), "train"):
            if sample.is_free_text:
                require(bool(sample.answers), f"sample {sample.id} has neither options nor answers")
                continue
            require(len(sample.options) > 1, f"sample {sample.id} has a single option")
            require(
                len(set(sample.options)) == len(sample.options),
                f"sample {sample.id} offers an option twice: {sample.options}",
            )
            require(sample.answer is not None, f"the answer to sample {sample.id} is not known")

    def test_prompts_hold_the_question(self) -> None:
        """The user's turn has the question in it, and fills no placeholder twice."""
        dataset = self.prepared()
        for sample in self.all_samples():
            form: AnswerForm = "text" if sample.is_free_text else "letter"
            with self.blame("prompt"):
                prompt: Any = dataset.prompt(sample, form)
            require(
                isinstance(prompt, str) and sample.question in prompt,
                f"the prompt of sample {sample.id} does not hold its question: {prompt!r}",
            )

    def test_its_fingerprint_names_the_data(self) -> None:
        """Equal for equal data."""
        with self.blame("fingerprint"):
            first = check_fingerprint(self.prepared().fingerprint())
            second = check_fingerprint(self.prepared().fingerprint())
        require(first == second, "two instances on the same files have different fingerprints")

    def test_published_results_need_no_files(self) -> None:
        """``reference`` works where the data's files are not."""
        component, params = self.spec.resolved(self.component_kind)
        with TemporaryDirectory() as folder:
            try:
                params = component.with_root(params, Path(folder))
            except DataError:  # a data set without the parameter `root`
                return
            with self.blame("reference"):
                reference = component(params).reference()
        require(isinstance(reference, Reference), f"reference returned {reference!r}")

    def test_other_data_can_take_its_place(self) -> None:
        """``with_root`` returns parameters of its own kind, or says that it cannot."""
        component, params = self.spec.resolved(self.component_kind)
        try:
            changed = component.with_root(params, Path("elsewhere"))
        except ModulateError:
            return
        require(
            isinstance(changed, component.Params), f"with_root returned {type(changed).__name__}"
        )
