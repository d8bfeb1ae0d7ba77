"""The soup of phase 2: one plain model made of models that share a start, left as a further candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from natix_hf.data.asked import Asked
from natix_hf.errors import MergeMismatchError, UsageError
from natix_hf.models.classifier import save_model
from natix_hf.models.features import weights_sha256
from natix_hf.models.preprocess import make_processor
from natix_hf.models.soup import average_models, greedy_soup, interpolate_models
from natix_hf.phases.phase4_adapt import BACKBONE, adapted_model
from natix_hf.provenance.durable import make_folder
from natix_hf.results.answers import compute_answers
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import best_threshold, exam_answers, lead
from natix_hf.results.logits import LogitTable, kept_logits, write_logits
from natix_hf.results.soup import SOUP, WISE_SHARES, Soup, SoupMember, member_answers
from natix_hf.runs.context import PhaseContext
from natix_hf.runs.graph import PHASES
from natix_hf.runs.trained import Trained, models_of_other_run
from natix_hf.trainers.converged import start_of_training


def make_soup(context: PhaseContext, tables: dict[str, LogitTable]) -> tuple[Candidate, LogitTable, Soup]:
    """Leave the soup that the recipe asks for, and its answers on val_select.

    Args:
        tables: The answers of the candidates that it will compete with, by name, the control first.

    Returns:
        The candidate, its answers, and what it is made of.

    Raises:
        UsageError: If there are no models that share a start, or a run in `soup_of` cannot join.
        MergeMismatchError: If the saved soup is not the mean of its members.
    """
    recipe, candidate = context.recipe, Candidate(context.folder / SOUP)
    kind, prior = recipe.phase2.soup, recipe.data.target_prior
    assert kind != "none"
    models = _members(context, [lead(tables, recipe.phase2, prior)[0], *tables])
    asked = context.ask("val_select") if _asks_further(context) else context.ask_to_choose("val_select")
    answers = {model: _answers(context, model, asked) for model in models}
    alone = {model: best_threshold(table, recipe.phase2, prior).value for model, table in answers.items()}
    known = {table.candidate_sha256: table for table in answers.values()}

    def answered(model: Candidate) -> LogitTable:
        if model.sha256 not in known:  # the model that is left was a trial before
            known[model.sha256] = compute_answers(model, asked)[0]
        return known[model.sha256]

    def score(make: Callable[[Path], object]) -> float:
        trial = Candidate(context.checkpoints / SOUP / "trial")
        make_folder(trial.folder)
        make(trial.model)
        return best_threshold(answered(trial), recipe.phase2, prior).value

    make_folder(candidate.folder)
    if kind == "wise":
        [model] = models
        start, trained = _start(context, model), model.candidate.model
        between = [_between(start, trained, share) for share in range(WISE_SHARES + 1)]
        scores = [*map(score, between[:-1]), alone[model]]
        share = max(range(len(scores)), key=lambda share: (scores[share], share))  # of equals the trained one
        between[share](candidate.model)
        weights = {model: share / WISE_SHARES}
    else:
        taken = models
        if kind == "greedy":
            taken = greedy_soup(models, lambda some: alone[some[0]] if len(some) == 1 else score(_mean_of(some)))
        _mean_of(taken)(candidate.model)
        weights = {model: 1 / len(taken) for model in taken} | {model: 0.0 for model in models if model not in taken}
    table = answered(candidate)
    write_logits(_answers_file(context, candidate), table)
    members = [
        SoupMember(model.name, answers[model].candidate_sha256, alone[model], weight, model.run_id)
        for model, weight in weights.items()
    ]
    found = best_threshold(table, recipe.phase2, prior).value
    soup = Soup(kind, str(models[0].start_sha256), models[0].name, members, found)
    if kind == "greedy" and found < max(alone.values()):
        raise MergeMismatchError(f"{candidate.model} scores {found}, less than its best member: run phase 2 again")
    context.tell(f"soup: {soup.told}, {found:.3f} against {max(alone.values()):.3f} of the best member alone")
    return candidate, table, soup


def _mean_of(models: Sequence[Trained]) -> Callable[[Path], Path]:
    return lambda to: average_models([model.candidate.model for model in models], to)


def _between(start: Path, trained: Path, share: int) -> Callable[[Path], Path]:
    return lambda to: interpolate_models(start, trained, to, share, WISE_SHARES)


def _answers_file(context: PhaseContext, candidate: Candidate) -> Path:
    """Where the soup's answers lie, as `Decision.val_select` finds them."""
    if _asks_further(context):
        return exam_answers(context.folder, candidate)
    return candidate.logits_file("val_select")


def _asks_further(context: PhaseContext) -> bool:
    """True if phase 2 asks about other views than candidates are chosen by."""
    exam = context.recipe.data.drawn_exam
    return exam is not None and not exam.chooses


def _answers(context: PhaseContext, model: Trained, asked: Asked) -> LogitTable:
    """A member's answers on val_select: those that its own phase left, or else computed here and kept."""
    candidate = context.take(model)
    if model.run is None and not _asks_further(context):
        return candidate.stored_logits("val_select", asked.exam)
    path = member_answers(context.folder, model.name, model.run_id)
    table = kept_logits(path, candidate.sha256, asked) or compute_answers(candidate, asked)[0]
    write_logits(path, table)
    return table


def _members(context: PhaseContext, names: Sequence[str]) -> list[Trained]:
    """The models that share a start with the first of these candidates for which there are others, itself the first;
    for WiSE-FT the first candidate alone.

    Raises:
        UsageError: If there are none, or if a further run has none of them.
    """
    config, run_dir = context.recipe.phase2, context.run_dir
    own = context.trained()
    others = {run: models_of_other_run(run, run_dir) for run in config.soup_of}
    if len({Path(run).expanduser().resolve() for run in others}) < len(config.soup_of):
        raise UsageError("phase2.soup_of names a run twice: name each once")
    known = [*own, *(model for models in others.values() for model in models)]
    leaders = [next(model for model in own if model.name == name) for name in names]
    lacking = next((model for model in leaders if model.start_sha256 is None), None)
    if lacking is not None:
        raise UsageError(
            f"phase2.soup is {config.soup}, but {lacking.told} is of an older version, which recorded no start: "
            "set phase1.seeds or phase1.keep_folds, or begin a new run"
        )
    if config.soup == "wise":
        return leaders[:1]
    for leader in leaders:
        sharing = [model for model in known if model.start_sha256 == leader.start_sha256 and model is not leader]
        if sharing:
            found = [leader, *sharing]
            break
    else:
        raise UsageError(
            f"phase2.soup is {config.soup}, but no two models share a start: "
            f"{', '.join(model.told for model in known)} began with other weights each; set phase1.seeds=3"
        )
    for run in others:
        if all(model.run != run for model in found):
            raise UsageError(
                f"phase2.soup_of: no model of {run} was trained from the start of {found[0].name}: the backbone or "
                "phase1.seed is another, or its version recorded no start"
            )
    return found


def _start(context: PhaseContext, model: Trained) -> Path:
    """The model that a candidate was trained from, made again and compared with the hash that its phase recorded.

    Raises:
        UsageError: If it is another one.
    """
    recipe, folder = context.recipe, context.checkpoints / SOUP / "start"
    stage, source = recipe.phase1, context.model
    if model.phase is PHASES[4]:
        stage = recipe.phase4.supervised or recipe.phase1
        context.inputs.take(PHASES[4], BACKBONE)
        source = adapted_model(context.run_dir, recipe.model)
    start = start_of_training(source, stage.seed, recipe.data.labels, keep_head=stage.profit is not None)
    if weights_sha256(start, with_head=True) != model.start_sha256:
        raise UsageError(
            f"phase2.soup is wise, but the start of {model.name} cannot be made again here: this version of torch or "
            "the backbone is another one; run its phase again"
        )
    make_folder(folder)
    save_model(folder, start, make_processor(source))
    return folder
