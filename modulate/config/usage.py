"""How a saved modulation is used: what it read in training, and how it was asked.

Saved in a modulation's config.json, so that the folder is enough to ask it new questions. Imports
no torch.
"""

from typing import Literal

from pydantic import Field

from modulate import plugins
from modulate.config.recipe import Recipe
from modulate.config.sections import Sampling, Section
from modulate.interfaces.params import ComponentSpec
from modulate.interfaces.prompt import AnswerForm
from modulate.utils.paths import PREFIX, is_repository


class Usage(Section):
    """What a modulation was trained with, as far as everybody who uses it must do the same."""

    signal: str = Field(description="kind of side signal; `a+b` for several kinds")
    sampling: Sampling = Field(
        Sampling(), description="which frames of a clip the host and the backbone see"
    )
    answer: AnswerForm = Field("letter", description="what the host answers with")
    letters: Literal["offered", "four"] = Field(
        "offered", description="letters to choose from, see the recipe's key"
    )
    likelihood: Literal["sum", "mean", "first"] = Field(
        "sum", description="score of an option of several tokens, see the recipe's key"
    )
    template: str = Field(
        max_length=10_000,
        description="the user's turn after the clips, with {question} and {options}",
    )
    host: ComponentSpec | None = Field(
        None,
        description=(
            "how the host is loaded; null if it came from a folder of the machine that trained it"
        ),
    )

    @classmethod
    def of(cls, recipe: Recipe) -> "Usage":
        """Return the usage of modulations that ``recipe`` trains."""
        dataset = plugins.get("dataset", recipe.data.name)
        with recipe.data.blame("dataset", "template"):
            template = dataset.template(recipe.answer)
        return cls(
            signal=recipe.signal,
            sampling=recipe.sampling,
            answer=recipe.answer,
            letters=recipe.letters,
            likelihood=recipe.likelihood,
            template=template,
            host=_portable_host(recipe.host),
        )


def _portable_host(host: ComponentSpec) -> ComponentSpec | None:
    """Return ``host`` as another machine can load it, or None if it lies in a folder of this one.

    Which device it is loaded to, and whether code that comes with it may run, is decided there.
    """
    params = host.params
    if not is_public(str(params.get("path", ""))):
        return None
    kept = {key: value for key, value in params.items() if key not in HERE_ONLY}
    return ComponentSpec(name=host.name, params=kept)


HERE_ONLY = frozenset({"device", "trust_remote_code"})
"""Parameters of a host that say nothing of the host itself."""


def is_public(path: str) -> bool:
    """Return whether ``path`` names the same host everywhere: a hub id, or a file of a package."""
    return path.startswith(PREFIX) or is_repository(path)
