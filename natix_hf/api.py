"""The Python API of whole runs: what `natix-hf run` does, from a notebook or a program."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from natix_hf.errors import RecipeError, UsageError, first_line
from natix_hf.pipeline import run_phases
from natix_hf.provenance.files import atomic_folder, json_sha256, write_text
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.runs.collected import RunResults, read_results
from natix_hf.terminal import tell

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from natix_hf.bundle.load import Bundle


@dataclass(frozen=True)
class Run:
    """A run that has been made.

    Args:
        folder (`Path`): The run folder, with everything that the phases left.
    """

    folder: Path

    @functools.cached_property
    def results(self) -> RunResults:
        """The results of the phases, typed: `results.decision.threshold_logit`, `results.evaluation.as_found.metrics`.
        A phase that has not run has left None."""
        return read_results(self.folder)

    def bundle(self, **options: Any) -> Bundle:
        """Loads the bundle of the run, checked. `options` are those of [`load_bundle`].

        Raises:
            [`UsageError`]: phase 6 has not run.
        """
        from natix_hf.bundle.load import load_bundle

        return load_bundle(self.folder, **options)


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    phases: Sequence[int] | None = None,
    run_dir: str | Path | None = None,
    dataset: Dataset | DatasetDict | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> Run:
    """Run the phases of a recipe, and skip what is current.

    Args:
        recipe (`str`, `Path`, `dict` or [`Recipe`]): The name of a packaged recipe, the path of a YAML file, a mapping
            of sections as in such a file, or a recipe object.
        phases (`list[int]`, *optional*): The phases to run, in any order. Defaults to those of the recipe.
        run_dir (`str` or `Path`, *optional*): The folder of a run to continue, or to begin one in. Defaults to a new
            folder under `outputs/`.
        dataset (`datasets.Dataset` or `datasets.DatasetDict`, *optional*): The labelled images, in place of
            `data.source`, with an image column and a label column (`data.image_column`, `data.label_column`). A split
            that is called "test" is the test split. A copy is kept in the cache of `datasets`, so that a run can be
            continued and launched on several GPUs.
        overrides (`list[str]` or `dict`, *optional*): Keys to change, as `["phase1.seed=1"]` or `{"phase1.seed": 1}`.

    Returns:
        [`Run`]: With `folder`, `results` and `bundle()`.

    Raises:
        [`UsageError`]: the recipe or the data cannot be used; its subclasses say which. [`RunError`]: a phase failed;
        complete checkpoints stay, and the same `run_dir` continues.

    Example:

        >>> import natix_hf
        >>> run = natix_hf.run("quickstart", phases=[1, 2, 6])  # doctest: +SKIP
        >>> run.results.evaluation.as_found.metrics["mcc"]  # doctest: +SKIP
        0.706
        >>> run.bundle().predict("street.jpg")  # doctest: +SKIP
    """
    pairs = [f"{key}={_yaml(value)}" for key, value in overrides.items()] if isinstance(overrides, Mapping) else []
    changes = pairs or list(overrides)
    if dataset is not None:
        changes.append(f"data.source={_yaml(str(keep_dataset(dataset)))}")
    if isinstance(recipe, Recipe):
        recipe = _write_down(recipe.mapping(), recipe.name)
    elif isinstance(recipe, Mapping):
        recipe = _write_down(dict(recipe), Recipe().name)
    folder = Path(run_dir) if run_dir is not None else None
    reference = str(recipe)
    return Run(run_phases(load_recipe(reference, changes), [reference, *changes], phases, folder))


def keep_dataset(dataset: Any) -> Path:
    """Stores a dataset, its pictures included, in the cache of `datasets`, once. Returns the folder.

    Raises:
        [`UsageError`]: it is neither a `Dataset` nor a `DatasetDict`, or a streamed one.
    """
    import datasets

    if not isinstance(dataset, datasets.Dataset | datasets.DatasetDict):
        kind = type(dataset).__name__
        raise UsageError(f"dataset is a {kind}: give a datasets.Dataset or DatasetDict that is not streamed")
    parts = dataset if isinstance(dataset, datasets.DatasetDict) else {"": dataset}
    key = json_sha256({name: part._fingerprint for name, part in parts.items()})[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "natix_hf" / f"given-{key}"
    if not folder.exists():
        tell(f"data     kept in {folder}")
        with atomic_folder(folder) as temporary:
            dataset.save_to_disk(str(temporary))
    return folder


def _yaml(value: Any) -> str:
    """A value as the right side of `KEY=VALUE`."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def _write_down(content: dict[str, Any], name: str) -> Path:
    """A YAML file of a recipe, by which the processes of a launch, or a later day, name it."""
    from natix_hf.models.features import cache_folder

    try:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe holds a value that YAML has no word for ({first_line(error)})") from None
    path = cache_folder() / "recipes" / hashlib.sha256(text.encode()).hexdigest()[:12] / f"{name}.yaml"
    write_text(path, text)
    return path
