"""Recipes: one YAML file, checked against dataclasses.

A dataclass gives the default, the YAML file overrides it, and `KEY=VALUE` on the command line overrides both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, cast

from natix_hf.bundle.config import ExportConfig
from natix_hf.calibration.config import ScrcConfig
from natix_hf.data.config import DataConfig
from natix_hf.errors import RecipeError, cut, did_you_mean, shortened
from natix_hf.metrics.config import ThresholdConfig
from natix_hf.models.config import ModelConfig
from natix_hf.provenance.files import file_fingerprint, folder_fingerprint, json_sha256
from natix_hf.provenance.stored import to_json
from natix_hf.resources import resource_folder
from natix_hf.section import NOT_A_KEY, Section
from natix_hf.trainers.config import TrainingSection
from natix_hf.trainers.explora_config import ExploraConfig
from natix_hf.trainers.gate_config import GateConfig
from natix_hf.trainers.supervised_config import SupervisedConfig
from natix_hf.typed import untyped
from natix_hf.yaml12 import LONGEST, NOT_YAML, read_yaml, yaml_problem


@dataclass(frozen=True)
class Recipe(Section):
    """A recipe: which phases run, on which images, from which model, and how.

    The fields are the top-level keys of the YAML file. `Recipe()` holds the defaults, like an empty file.

    Raises:
        [`RecipeError`]: if a value has the wrong type or is impossible; the line names key, value and what is allowed.

    Example:

        >>> import natix_hf
        >>> recipe = natix_hf.Recipe(phases=[1, 2, 6])
        >>> recipe.phase1.learning_rate
        0.0005
        >>> recipe.section("phase2.objective")
        'mcc'
    """

    phases: Annotated[list[int], "The phases that `natix-hf run` runs. The order in which you list them is free."] = (
        field(default_factory=lambda: [1, 2, 6])
    )
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(config={"model_type": "vit"}))
    phase1: SupervisedConfig = field(default_factory=SupervisedConfig)
    phase2: ThresholdConfig = field(default_factory=ThresholdConfig)
    phase3: GateConfig = field(default_factory=GateConfig)
    phase4: ExploraConfig = field(default_factory=ExploraConfig)
    phase5: ScrcConfig = field(default_factory=ScrcConfig)
    phase6: ExportConfig = field(default_factory=ExportConfig)
    name: str = field(default="recipe", metadata=NOT_A_KEY)

    def check(self) -> None:
        takes = [key for key, from_ in (("phase2.from", self.phase2.from_), ("phase3.from", self.phase3.from_))
                 if from_ == "out_of_fold"]  # fmt: skip
        if takes and self.phase1.folds is None:
            raise RecipeError(f"{takes[0]} is out_of_fold, but phase1.folds is null: set it to a number, such as 5")
        self._check_soup()

    def _check_soup(self) -> None:
        """Refuse a soup for which there can be no second model, or no start worth going back to."""
        soup, stages = self.phase2.soup, [self.phase1, *filter(None, [self.phase4.supervised])]
        several = self.phase1.seeds or self.phase1.keep_folds or self.phase2.soup_of or len(stages) > 1
        if soup in ("uniform", "greedy") and not several:
            raise RecipeError(
                f"phase2.soup is {soup}, but the recipe trains one model from its start: set phase1.seeds=3, "
                "phase1.keep_folds=true with phase1.folds, or name further runs in phase2.soup_of"
            )
        if soup == "wise" and self.model.backbone is None:
            raise RecipeError("phase2.soup is wise, but model.backbone is null: the start has random weights")
        if soup == "wise" and all(stage.adapter == "none" for stage in stages):
            raise RecipeError("phase2.soup is wise, but phase1.adapter is none: the backbone stays what it was")

    def section(self, name: str) -> Any:
        """A section, or one key of it such as `data.slices`, as plain JSON values with every default filled in."""
        section, _, key = name.partition(".")
        values = getattr(self, section).plain()
        if section == "phase6" and values["description"] is None:
            values["description"] = self.data.asked_question
        return values[key] if key else values

    def sections(self, *names: str) -> dict[str, Any]:
        """Sections and keys by name. A key that is later than the first version is left out at its default.
        `choice_exam` is the exam by which candidates are chosen; without one it is left out."""
        found: dict[str, Any] = {}
        for name in names:
            section, _, key = name.partition(".")
            if name == "choice_exam":
                found |= {name: to_json(self.data.choice_exam)} if self.data.choice_exam is not None else {}
            elif not key or key in self.section(section):
                found[name] = self.section(name)
        return found

    def stage(self, number: int) -> TrainingSection:
        """The section of a phase that trains: 1, 3 or 4."""
        return cast("TrainingSection", getattr(self, f"phase{number}"))

    def section_sha256(self, *names: str) -> str:
        """The hash of sections. A local folder counts by its contents, not by its path, and a reviewed list by what it
        says.

        Raises:
            DataError: if `data.exclude` or `data.relabel` names a file that is no such list.
        """
        return json_sha256({name: _identity(name, value) for name, value in self.sections(*names).items()})


_PATH_KEYS = ("source", "backbone", "unlabelled", "synthetic_half")
_INNER = ("distil",)  # sections within a section that hold such a key
# Keys that a later phase lists on its own, so that changing one does not make the phases before it stale.
_NAMED_APART = {"data": ("slices", "exam", "exam_views", "labels", "question", "synthetic_half")}


def _identity(name: str, section: Any) -> Any:
    if not isinstance(section, dict):
        return _content(section) if name.partition(".")[2] in _PATH_KEYS else section
    resolved = {key: value for key, value in section.items() if key not in _NAMED_APART.get(name, ())}
    for key in _PATH_KEYS:
        if key in resolved:
            value = resolved[key]
            resolved[key] = [_content(item) for item in value] if isinstance(value, list) else _content(value)
    resolved |= {key: _identity(key, resolved[key]) for key in _INNER if key in resolved}
    if "teacher" in resolved:
        from natix_hf.results.teachers import teacher_content

        several = resolved["teacher"] if isinstance(resolved["teacher"], list) else [resolved["teacher"]]
        resolved["teacher"] = [teacher_content(teacher) for teacher in several]
    if name == "phase2" and "soup_of" in resolved:  # phase 2 records what it has read of them
        resolved["soup_of"] = [Path(run).expanduser().resolve().name for run in resolved["soup_of"]]
    if name == "data" and ("exclude" in resolved or "relabel" in resolved):
        from natix_hf.data.reviewed import EXCLUDE, RELABEL, reviewed_sha256

        for kind in (EXCLUDE, RELABEL):
            if kind in resolved:
                resolved[kind] = {"rows": reviewed_sha256(resolved[kind], kind)}
    return resolved


def _content(reference: Any) -> Any:
    """The fingerprint of a local folder or file; one of several sources with that of its own; all else as it is."""
    if isinstance(reference, dict):
        return reference | {"source": _content(reference["source"])}
    path = Path(reference).expanduser() if isinstance(reference, str) else None
    if path is None or not path.exists():
        return reference
    return {"folder": folder_fingerprint(path)} if path.is_dir() else {"file": file_fingerprint(path)}


def load_recipe(reference: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides and check every key.

    Args:
        reference (`str`): The name of a packaged recipe (`natix-hf recipes` lists them) or the path of a YAML file.
        overrides (`list[str]`, *optional*): Changes as `KEY=VALUE` texts, where VALUE is YAML.

    Returns:
        [`Recipe`]: The checked recipe.

    Raises:
        [`RecipeError`]: if the file cannot be read or a key is wrong; one line with the file or the key, its value and
            what is expected.

    Example:

        >>> import natix_hf
        >>> recipe = natix_hf.load_recipe("quickstart", ["phase1.learning_rate=1e-4"])
        >>> recipe.name, recipe.phase1.learning_rate
        ('quickstart', 0.0001)
    """
    path = find_recipe(reference)
    try:
        with path.open(encoding="utf-8") as file:
            content = read_yaml(file.read(LONGEST + 1))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from None
    except NOT_YAML as error:
        raise RecipeError(f"{path} is not valid YAML: {yaml_problem(error)}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        kind = type(untyped(content)).__name__
        raise RecipeError(f"{path} holds a {kind}, but a recipe is a mapping of sections (data:, model:, …)")
    for override in overrides:
        _apply_override(content, override)
    return parse_recipe(content, name=path.stem)


def parse_recipe(content: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """Make a recipe from a mapping of sections: `parse_recipe({}) == Recipe()`.

    Raises:
        RecipeError: if a key is wrong; one line with the key, its value and what is expected.
    """
    try:
        return replace(Recipe.build(content), name=name)
    except RecursionError:
        raise RecipeError(
            f"the recipe {shortened(name)} is nested too deeply: a section holds keys and lists"
        ) from None


def inspected_config(source: str, overrides: Sequence[str]) -> DataConfig:
    """The `data` section to inspect: that of a recipe file, or the one for a source (`data_config`).

    Raises:
        RecipeError: if a key is wrong, or if the recipe has no labelled images.
    """
    if not (source.endswith((".yaml", ".yml")) and Path(source).is_file()):
        return data_config(source, overrides)
    config = load_recipe(source, overrides).data
    if not config.sources:
        raise RecipeError(
            f"{source} has no labelled images, data.source is null: name a folder of its unlabelled ones"
        )
    return config


def data_config(source: str, overrides: Sequence[str], keys: Mapping[str, Any] | None = None) -> DataConfig:
    """The `data` section for a source, with the defaults of a recipe and overrides such as `data.label_column=y`.

    Args:
        keys: Values in place of the defaults, by key.

    Raises:
        RecipeError: if an override is not about data, or a key is wrong.
    """
    content: dict[str, Any] = {"data": dict(keys or {})}
    for override in overrides:
        if not override.startswith("data."):
            raise RecipeError(
                f"{cut(override)} is not about the data: write data.KEY=VALUE, as in data.label_column=y"
            )
        if override.partition("=")[0] == "data.source":
            raise RecipeError(
                f"data.source is {shortened(source)} already: leave out {cut(override)}; `natix-hf inspect "
                "RECIPE.yaml` looks at the several sources of a recipe"
            )
        _apply_override(content, override)
    content["data"] |= {"source": source}
    return parse_recipe(content).data


def find_recipe(reference: str) -> Path:
    """The file of a recipe, given by the name of a packaged one or by its path.

    Raises:
        RecipeError: if there is no such recipe.
    """
    if reference.endswith((".yaml", ".yml")) or "/" in reference or "\\" in reference:
        if _is_file(Path(reference)):
            return Path(reference)
        raise RecipeError(
            f"no recipe file {shortened(reference, 200)}: check the path; `natix-hf recipes` lists the packaged ones"
        )
    path = resource_folder("recipes") / f"{reference}.yaml"
    if _is_file(path):
        return path
    known = [file.stem for file in packaged_recipes()]
    raise RecipeError(
        f"no recipe {cut(reference)}{did_you_mean(reference, known)}: `natix-hf recipes` lists them, or name a YAML "
        f"file"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def packaged_recipes() -> list[Path]:
    return sorted(resource_folder("recipes").glob("*.yaml"))


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{cut(override)} is not KEY=VALUE, as in phase1.learning_rate=1e-4")
    try:
        value = read_yaml(text)
    except NOT_YAML as error:
        problem = yaml_problem(error)
        quotes = "; a regular expression stands in single quotes" if "escape character" in problem else ""
        raise RecipeError(f"the value of {cut(override)} is not valid YAML: {problem}{quotes}") from None
    *parents, last = key.split(".")
    section = content
    for parent in parents:
        inner = section.setdefault(parent, {})
        if inner is None:
            inner = section[parent] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"{cut(override)}: {shortened(parent)} is a value, not a section")
        section = inner
    section[last] = value
