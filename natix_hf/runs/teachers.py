"""The teachers of a phase: found, checked, and refused if they have seen the labels of rows that are measured on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from natix_hf.data.rows import Rows
from natix_hf.data.splits import Splits
from natix_hf.data.unlabelled import unlabelled_rows
from natix_hf.errors import UsageError, VerificationError, shortened
from natix_hf.models.preprocess import Preprocess
from natix_hf.provenance.hub import is_repo_id
from natix_hf.recipe import Recipe
from natix_hf.results.decision import Decision
from natix_hf.results.soup import SOUP
from natix_hf.results.teachers import champion_folder, is_run
from natix_hf.runs.context import PhaseContext
from natix_hf.runs.folders import run_id_of
from natix_hf.runs.graph import PHASES, number_of
from natix_hf.runs.inputs import Inputs
from natix_hf.runs.pins import pinned_teacher, pinned_unlabelled
from natix_hf.runs.seen import answers_of, origins, rows_seen, run_around, run_of_start
from natix_hf.trainers.distil import Distillation
from natix_hf.trainers.supervised_config import SupervisedConfig
from natix_hf.trainers.teacher import Teacher, classifier_in, require_same_answers, teacher_of

_KEY = "phase1.teacher"
_UNLABELLED = "phase1.distil.unlabelled"


def check_teachers(recipe: Recipe, run_dir: Path | None) -> None:
    """Refuse teachers on this disk that are missing or damaged, or answer another question, before any work."""
    here = [name for name in recipe.phase1.teachers if not _on_hub(name)]
    teachers = [_find(name, run_dir, None) for name in here]
    require_same_answers(teachers, recipe.data.labels, _KEY)


def distillation_of(context: PhaseContext, stage: SupervisedConfig) -> Distillation | None:
    """The teachers of a training and its rows without labels; None without a teacher. Every rank calls it.

    Raises:
        UsageError: If a teacher cannot be used, or has learned from rows that this run measures on.
    """
    if not stage.teachers:
        return None
    run_dir, sources = context.run_dir, stage.distil.unlabelled
    with PartialState().main_process_first():  # rank 0 downloads and decodes, the other ranks read its cache
        teachers = [_find(name, run_dir, pinned_teacher(run_dir, name)) for name in stage.teachers]
        require_same_answers(teachers, context.recipe.data.labels, _KEY)
        commits = {source: pinned_unlabelled(run_dir, source) for source in sources}
        splits = context.load_data().splits
        teachers = [_unseen(teacher, splits, context) for teacher in teachers]
        parts: list[Rows] = []
        if sources:
            parts, left_out = unlabelled_rows(sources, context.recipe.data, splits, commits, _UNLABELLED)
            if left_out:
                row, why = next(iter(left_out.items()))
                context.tell(f"{len(left_out)} unlabelled rows left out, the first is {row} ({why})")
    _tell_of_small_copies(context, stage, teachers)
    context.tell(f"learning from {', '.join(teacher.name for teacher in teachers)}, whose answers are computed once")
    return Distillation(tuple(teachers), tuple(parts))


def _tell_of_small_copies(context: PhaseContext, stage: SupervisedConfig, teachers: list[Teacher]) -> None:
    """Views are cut from the decoded copies, and only the first of `adapter: none` is the picture itself."""
    copy = context.recipe.data.cache_px
    sizes = {Preprocess(teacher.processor).image_size: teacher.name for teacher in teachers}
    of_copies = stage.adapter != "none" or stage.feature_views > 1
    if of_copies and max(sizes) > max(copy, context.recipe.model.image_size):
        context.tell(
            f"{sizes[max(sizes)]} sees {max(sizes)} px, but its training views are enlarged from copies of {copy} px: "
            f"set data.cache_px={max(sizes)} for sharper ones"
        )


def _on_hub(reference: str) -> bool:
    return is_repo_id(reference) and not Path(reference).expanduser().exists()


def _find(reference: str, run_dir: Path | None, commit: str | None) -> Teacher:
    path = Path(reference).expanduser()
    if run_dir is not None and path.resolve().is_relative_to(run_dir.resolve()):
        raise UsageError(f"{_KEY}: {shortened(reference)} lies in this run, and nobody teaches himself: name another")
    try:
        if is_run(path):
            return _champion(path)
        teacher = teacher_of(reference, commit)
    except VerificationError as error:
        raise UsageError(f"{_KEY}: {error}") from None
    run = run_around(teacher.folder)
    if run is None or _on_hub(reference):
        return teacher
    name = f"{run_id_of(run)}/{teacher.folder.resolve().relative_to(run).as_posix()}"
    return Teacher(name, teacher.folder, teacher.slope, teacher.shift, run)


def _champion(run: Path) -> Teacher:
    """The champion of a run, whose files are checked against the run's manifests."""
    folder = champion_folder(run)
    if folder is None:
        raise UsageError(
            f"{_KEY}: {run} is a run without a champion: run its phase 2, or name the folder of one of its models"
        )
    files = Inputs(run)
    decision = Decision.read(files.take(PHASES[2]))
    if decision.champion != SOUP:
        files.take(PHASES[number_of(decision.champion)], folder.name)
    of_others = decision.soup is not None and any(member.run is not None for member in decision.soup.taken)
    mixed = decision.champion == SOUP and of_others  # and nothing here says what their runs have learned from
    teacher = classifier_in(folder, run_id_of(run), None if mixed else run)
    if teacher.sha256 != decision.candidate_sha256:
        raise UsageError(f"{_KEY}: phase 2 of {run} chose other weights than its model has now: run its phase 2 again")
    return teacher


def _unseen(teacher: Teacher, ours: Splits, context: PhaseContext) -> Teacher:
    """Refuse a teacher that has learned from a picture or a group that this run measures on. One that comes from a
    model of which nothing is known is itself one of these."""
    if teacher.trained_in is not None:
        try:
            unknown = origins(teacher.trained_in)[1]
            seen = rows_seen(teacher.trained_in, ours, context.recipe.data.plain())
        except VerificationError as error:
            why = f"without it nobody knows what {teacher.name} has learned from"
            raise UsageError(f"{_KEY}: {error}: {why}") from None
        if seen:
            raise UsageError(
                f"{_KEY}: {teacher.name} has learned the labels of {len(seen):,} rows that this run measures on: "
                f"{seen[0]}; use a teacher with the same splits (the same data section), or one from other data"
            )
        if not unknown:
            return teacher
    whose = teacher.name if teacher.trained_in is None else f"{shortened(unknown[0])}, which taught {teacher.name},"
    context.tell(f"nothing is known of the rows that {whose} has learned from: they may be rows of test too")
    return replace(teacher, trained_in=None)


def require_unseen_start(context: PhaseContext) -> None:
    """Refuse a `model.backbone` that has learned the labels of rows that this run measures on. Every rank calls it.

    Raises:
        UsageError: If it lies in a run whose rows were divided in another way.
    """
    data, backbone = context.recipe.data, context.recipe.model.backbone
    try:
        run = run_of_start(backbone)
        if run is None and context.recipe.phase1.profit is None:
            return
        same = run is not None and answers_of(run) == context.recipe.sections("data.labels").get("data.labels")
        seen = rows_seen(run, context.load_data().splits, data.plain()) if run is not None and same else []
        unknown = origins(run)[1] if run is not None else [str(backbone)]
    except VerificationError as error:
        raise UsageError(f"model.backbone: {error}: without it nobody knows what it has learned from") from None
    if seen:
        raise UsageError(
            f"model.backbone: {backbone} has learned the labels of {len(seen):,} rows that this run measures on: "
            f"{seen[0]}; give this run the same data section as that one, or start from another model"
        )
    if unknown and context.recipe.phase1.profit is not None:
        context.tell(
            f"nothing is known of the rows that {shortened(unknown[0])} has learned from, where this model begins: "
            "they may be rows of test too"
        )
