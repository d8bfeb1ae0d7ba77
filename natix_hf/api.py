"""The Python API of whole runs: what `natix-hf run` does, from a notebook or a program."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
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
    """A run on disk, as [`run`] returns it. `Run(Path("outputs/quickstart/..."))` opens an older one.

    Args:
        folder (`Path`): The run folder, with everything that the phases left.

    Example:

        >>> from pathlib import Path
        >>> import natix_hf
        >>> run = natix_hf.Run(Path("outputs/my_run"))
        >>> run.results.evaluation is None  # phase 6 has not run there
        True
    """

    folder: Path

    @functools.cached_property
    def results(self) -> RunResults:
        """The typed results of the phases, such as `results.decision.threshold_logit` and
        `results.evaluation.as_found.metrics`. The result of a phase that has not run is None."""
        return read_results(self.folder)

    def bundle(self, **options: Any) -> Bundle:
        """Check and load the bundle of the run.

        Args:
            options: Passed to [`load_bundle`].

        Raises:
            [`UsageError`]: if phase 6 has not run.
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
    """Run the phases of a recipe and skip those that are up to date.

    Args:
        recipe (`str`, `Path`, `dict` or [`Recipe`]): The name of a packaged recipe, the path of a YAML file, a mapping
            of sections as in such a file, or a recipe object.
        phases (`list[int]`, *optional*): The phases to run, in any order. Defaults to those of the recipe.
        run_dir (`str` or `Path`, *optional*): The run folder to continue, or an empty or new folder to start in.
            Defaults to a new folder under `outputs/`.
        dataset (`datasets.Dataset` or `datasets.DatasetDict`, *optional*): Labelled images that replace
            `data.source`, with an image column and a label column (`data.image_column`, `data.label_column`). A split
            named "test" becomes the test split. The cache of `datasets` keeps a copy, so that the run can be
            continued and launched on several GPUs.
        overrides (`list[str]` or `dict`, *optional*): Keys to change, as `["phase1.seed=1"]` or `{"phase1.seed": 1}`.

    Returns:
        [`Run`]: Has `folder`, `results` and `bundle()`.

    Raises:
        [`UsageError`]: if the recipe or the data cannot be used ([`RecipeError`], [`DataError`]).
        [`RunError`]: if a phase fails. Complete checkpoints stay, and the same `run_dir` continues.

    Example:

        >>> import natix_hf
        >>> run = natix_hf.run("quickstart", phases=[1, 2, 6])  # doctest: +SKIP
        >>> run.results.evaluation.as_found.metrics["mcc"]  # doctest: +SKIP
        0.717
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
    """Store a dataset with its pictures in the cache of `datasets`, unless it is there, and return the folder.

    Raises:
        [`UsageError`]: if it is not a `Dataset` or `DatasetDict`, or if it is streamed.
    """
    import datasets

    if not isinstance(dataset, datasets.Dataset | datasets.DatasetDict):
        kind = type(dataset).__name__
        raise UsageError(f"dataset is a {kind}: pass a datasets.Dataset or DatasetDict that is not streamed")
    parts = dataset if isinstance(dataset, datasets.DatasetDict) else {"": dataset}
    if not any(len(part) for part in parts.values()):
        raise UsageError("dataset has no rows: pass labelled images")
    key = json_sha256({name: part._fingerprint for name, part in parts.items()})[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "natix_hf" / f"given-{key}"
    if not folder.exists():
        tell(f"data     stored in {folder}")
        with atomic_folder(folder) as temporary:
            dataset.save_to_disk(str(temporary))
    return folder


def _yaml(value: Any) -> str:
    """Format a value as the right side of `KEY=VALUE`."""
    return _written(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


class _Dumper(yaml.SafeDumper):
    """A SafeDumper that writes a path as text."""


_Dumper.add_multi_representer(PurePath, lambda dumper, path: dumper.represent_str(str(path)))


def _written(value: Any, **options: Any) -> str:
    try:
        return str(yaml.dump(value, Dumper=_Dumper, **options))
    except yaml.YAMLError as error:
        raise RecipeError(
            "recipe holds a value that YAML cannot write: use text, paths, numbers, lists and dicts "
            f"({first_line(error)})"
        ) from None


def _write_down(content: dict[str, Any], name: str) -> Path:
    """Write a recipe to a YAML file, so that launched processes and later runs can name it, and return its path."""
    from natix_hf.models.features import cache_folder

    text = _written(content, sort_keys=False, allow_unicode=True)
    path = cache_folder() / "recipes" / hashlib.sha256(text.encode()).hexdigest()[:12] / f"{name}.yaml"
    write_text(path, text)
    return path
