"""Recipes: reading, overrides, errors, and every shipped recipe."""

import pytest
from pydantic import BaseModel

from modulate.cli import reference
from modulate.config import recipe as recipes
from modulate.errors import MissingFileError, PluginError, RecipeError
from tests.paths import SMALL

SHIPPED = recipes.recipe_paths()


def test_recipes_ship():
    assert len(SHIPPED) > 0


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_recipe_validates_under_its_own_name_and_explains_itself(name):
    recipe = recipes.load_recipe(name)
    assert recipe.name == name.rpartition("/")[2]
    text = SHIPPED[name].read_text()
    assert text.startswith("# ") and f"modulate train recipes/{name}.yaml" in text


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_dumped_recipe_reads_back_as_the_same(name, tmp_path):
    recipe = recipes.load_recipe(name)
    (tmp_path / "again.yaml").write_text(recipes.dump(recipe))
    assert recipes.load_recipe(str(tmp_path / "again.yaml")) == recipe


def test_a_recipe_that_extends_another_is_the_other_with_its_own_keys_laid_over_it(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "extends: gazeqwen_tiny\nname: mine\nencoder: {params: {sigma: 0.2}}\nmodulator: {name:"
        " film, params: {width: 8}}\n"
    )
    base = recipes.load_recipe("gazeqwen_tiny")
    own = recipes.load_recipe(str(mine), ["seed=7"])
    assert (own.name, own.seed, own.data, own.training) == ("mine", 7, base.data, base.training)
    # The same component: its parameters are merged. Another one: it replaces the first.
    assert own.encoder.params == {**base.encoder.params, "sigma": 0.2}
    assert own.modulator.params == {"width": 8}
    (tmp_path / "second.yaml").write_text("extends: mine.yaml\nname: second\n")
    assert recipes.load_recipe(str(tmp_path / "second.yaml")).modulator == own.modulator


def test_a_recipe_cannot_extend_itself_or_a_missing_recipe(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(RecipeError, match=r"a\.yaml extends itself, by way of a\.yaml → b\.yaml"):
        recipes.load_recipe(str(tmp_path / "a.yaml"))
    (tmp_path / "c.yaml").write_text("extends: gazeqwen_tny\n")
    with pytest.raises(MissingFileError, match="Did you mean 'gazeqwen_tiny'"):
        recipes.load_recipe(str(tmp_path / "c.yaml"))


def test_an_unknown_key_is_refused_with_near_matches():
    with pytest.raises(
        RecipeError, match=r"training\.batchsize: unknown key\. Did you mean 'batch_size'"
    ) as caught:
        recipes.load_recipe(SMALL, ["training.batchsize=4"])
    assert "small.yaml is not valid" in str(caught.value)


def test_an_unknown_parameter_of_a_component_is_refused():
    with pytest.raises(
        RecipeError,
        match=r"modulator\.params of gaze_resampler is not valid:\n  widht: unknown key",
    ):
        recipes.load_recipe(SMALL, ["modulator.params.widht=4"])


def test_an_unknown_plugin_is_refused_with_near_matches():
    with pytest.raises(
        PluginError, match=r"Unknown signal_encoder 'cord_rel'\. Did you mean 'coord_rel'"
    ):
        recipes.load_recipe(SMALL, ["encoder.name=cord_rel"])


def test_a_value_of_the_wrong_kind_is_refused_with_the_value():
    with pytest.raises(RecipeError, match=r"seed: Input should be a valid integer.*got 'soon'"):
        recipes.load_recipe(SMALL, ["seed=soon"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", r"Override 'seed' is not of the form key\.sub=value\."),
        ("=3", r"Override '=3' is not of the form"),
        (
            "training.stages.9.lr=1",
            (
                r"Override 'training\.stages\.9\.lr=1' does not fit the recipe: list index out of"
                r" range"
            ),
        ),
        ("seed.sub=1", r"Override 'seed\.sub=1' does not fit the recipe"),
        ("seed=[1", r"Override 'seed=\[1' has a value that is not valid YAML"),
        (
            "trainig.batch_size=4",
            (
                r"Override 'trainig\.batch_size=4': unknown recipe key 'trainig'\. Did you mean"
                r" 'training'\?"
            ),
        ),
        (
            "encoder.parms.dim=4",
            (
                r"Override 'encoder\.parms\.dim=4': unknown recipe key 'encoder\.parms'\. Did you"
                r" mean 'params'\? Known: name, params\."
            ),
        ),
        (
            "training.stages.0.opt.lr=1",
            (
                r"unknown recipe key 'training\.stages\.0\.opt'\. Known: epochs, lora_lr, lr, name,"
                r" train\."
            ),
        ),
        ("lora.rnk.x=1", r"unknown recipe key 'lora\.rnk'\. Did you mean 'rank'"),
        (
            # Refused by the component's own class.
            "modulator.params.deep.er=1",
            r"modulator\.params of gaze_resampler is not valid:\n  deep: unknown key",
        ),
    ],
)
def test_a_bad_override_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        recipes.load_recipe(SMALL, [text])


def test_overrides_reach_nested_keys_list_items_and_optional_sections():
    recipe = recipes.load_recipe(
        SMALL,
        [
            "training.stages.0.epochs=2",
            "injection.layers=[2]",
            "lora=null",
            "training.stages.1.train=[modulator]",
        ],
    )
    assert recipe.training.stages[0].epochs == 2
    assert recipe.injection.layers == (2,)
    assert recipe.lora is None


def test_an_override_creates_missing_sections():
    tree = {"encoder": {"name": "coord_rel"}}
    for text in (
        "encoder.params.dim=4",
        "lora.rank=2",
        "sampling.fps=0.5",
        "backbone.params.dims.depth=2",
    ):
        recipes.override(tree, text)
    assert tree == {
        "encoder": {"name": "coord_rel", "params": {"dim": 4}},
        "lora": {"rank": 2},
        "sampling": {"fps": 0.5},
        "backbone": {"params": {"dims": {"depth": 2}}},
    }


def test_non_finite_numbers_and_keys_that_are_not_utf_8_are_refused():
    for text in ("injection.alpha=.nan", "training.stages.0.epochs=.inf", "lora.alpha=.inf"):
        with pytest.raises(RecipeError, match="finite number"):
            recipes.load_recipe("gazeqwen_tiny", [text])
    with pytest.raises(RecipeError, match="its key is not UTF-8 text"):
        recipes.load_recipe("gazeqwen_tiny", ["evaluation.inputs.\udc95={name: gaze_text}"])


def test_the_word_no_needs_no_quotes():
    assert recipes.load_recipe(SMALL, ["training.precision=no"]) == recipes.load_recipe(SMALL)


def models(model, path):
    """Yield (path, model) of a model and of every model inside it."""
    yield path, model
    for name, field in model.model_fields.items():
        for inner in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from models(inner, f"{path}.{name}".lstrip("."))


def test_every_section_and_field_of_recipes_and_shipped_components_is_described():
    registry = reference.shipped()
    roots = [
        ("", recipes.Recipe),
        *(
            (f"{key}.{name}", registry.get(kind, name).Params)
            for kind, key in reference.KINDS.items()
            for name in registry.names(kind)
        ),
    ]
    found = [pair for path, root in roots for pair in models(root, path)]
    assert {path for path, _ in found} >= {
        "",
        "host",
        "injection",
        "lora",
        "sampling",
        "training.stages",
        "evaluation",
        "encoder.coord_pe",
        "data.tabletop",
    }
    assert [path for path, model in found if not (model.__doc__ or "").strip()] == []
    assert [
        f"{path}.{name}"
        for path, model in found
        for name, field in model.model_fields.items()
        if not field.description
    ] == []


def test_training_lora_without_a_lora_section_is_refused():
    with pytest.raises(
        RecipeError, match="a stage trains lora, but the recipe has no `lora:` section"
    ):
        recipes.load_recipe(SMALL, ["lora=null"])


def test_contradicting_keys_are_reported_without_the_whole_recipe():
    with pytest.raises(RecipeError) as failed:
        recipes.load_recipe(
            SMALL, ["training.batch_by=clip", "training.gradient_checkpointing=true"]
        )
    first, second = str(failed.value).splitlines()
    assert first.endswith("is not valid:")
    assert second.startswith("  (whole): `training.batch_by: clip` keeps")
    assert second.endswith("cannot fill: drop one of the two")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["answer=text", "letters=four"], "`letters` has no effect on `answer: text`"),
        (["likelihood=mean"], "`likelihood` has no effect on `answer: word`"),
        (["evaluation.max_new_tokens=8"], "`evaluation.max_new_tokens` has no effect"),
        (["answer=likelihood", "evaluation.main_metric=bleu"], "`evaluation.main_metric` has no"),
        (["answer=text", "evaluation.batch_by=clip"], "no effect on generated text"),
        (["answer=text", "injection.tokens={kind: last}"], "`answer: text` has several tokens"),
        (["answer=likelihood", "injection.tokens={kind: last}"], "residuals of kind `last`"),
        (["answer=likelihood", "training.gradient_checkpointing=true"], "recomputed layers cannot"),
    ],
)
def test_settings_that_contradict_the_form_of_answers_are_refused(overrides, message):
    with pytest.raises(RecipeError, match=message):
        recipes.load_recipe(SMALL, ["answer=word", *overrides])


def test_the_first_token_of_options_is_scored_wherever_a_letter_is():
    first = ["answer=likelihood", "likelihood=first"]
    for more in ("training.gradient_checkpointing=true", "injection.tokens={kind: last}"):
        recipe = recipes.load_recipe(SMALL, [*first, more])
        assert not recipe.scores_whole_options and recipe.main_metric == "accuracy"
    assert recipes.load_recipe(SMALL, ["answer=likelihood"]).scores_whole_options


def test_the_main_figure_of_free_text_is_the_chosen_score():
    assert recipes.load_recipe(SMALL, ["answer=text"]).main_metric == "token_f1"
    chosen = ["answer=text", "evaluation.main_metric=rouge_l", "evaluation.max_new_tokens=4"]
    assert recipes.load_recipe(SMALL, chosen).main_metric == "rouge_l"


def test_a_missing_recipe_is_refused_with_near_matches():
    with pytest.raises(
        MissingFileError,
        match=(
            r"No recipe 'gazeqwen_tny': neither a file nor a shipped recipe\. Did you mean"
            r" 'gazeqwen_tiny'"
        ),
    ):
        recipes.load_recipe("gazeqwen_tny")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("- 1", "must hold a mapping of recipe keys, got list"),
        ("", "got NoneType"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused(text, message, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        recipes.load_recipe(str(path))


def test_an_unknown_condition_and_an_unknown_parameter_are_errors_with_near_matches():
    with pytest.raises(
        RecipeError,
        match=r"evaluation.conditions: 'shufled' is not a condition. Did you mean 'shuffled'",
    ):
        recipes.load_recipe("gazeqwen_tiny", ["evaluation.conditions=[shufled]"])
    with pytest.raises(
        RecipeError,
        match=(
            r"encoder.params of heatmap_dur is not valid:\n  dims: unknown key. Did you mean 'dim'"
        ),
    ):
        recipes.load_recipe("gazeqwen_tiny", ["encoder.params={dims: 3}"])
