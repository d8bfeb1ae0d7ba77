"""`natix-hf smoke`: every phase of a recipe on this machine for a few steps, and what the whole run will need.

The phases run as `natix-hf run` would run them, in a process of its own with caches of its own, on a few hundred real
pictures of the source. Each amount of work (`work.py`) is then multiplied by what one unit of it took.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from natix_hf import interrupt
from natix_hf.data.views import AskedViews
from natix_hf.disk import as_size, cache_folders, free_bytes, on_one_disk
from natix_hf.errors import RunError, UsageError, VerificationError
from natix_hf.estimate.loader import loader_s, processes, stage_of, workers_of
from natix_hf.estimate.pictures import CoreRates, Few, core_rates, few_pictures
from natix_hf.estimate.sample import RECIPE, SAMPLE_OF_SOURCE, small_recipe
from natix_hf.estimate.source import count_unlabelled, list_source
from natix_hf.estimate.table import TITLES, Forecast, Row
from natix_hf.estimate.work import Counts, Work, members_of, uncounted, work_of
from natix_hf.provenance.manifest import MANIFEST, read_manifest
from natix_hf.recipe import Recipe
from natix_hf.runs.graph import PHASES, order_phases
from natix_hf.terminal import minutes, tell

_ANSWERS = (32, 160)
_GATE_STEP_S = 0.002  # a gate has a few thousand weights
_WORDS_OF_ERROR = 300
_STEP_BYTES, _SAVED_BYTES = 16, 12  # of a trained weight: itself, its moments in AdamW, and in a step its gradient


@dataclass(frozen=True)
class _Measured:
    """What the small run and the measurements beside it found."""

    durations: dict[int, float]
    paces: dict[str, Mapping[str, Any]]
    left: dict[int, tuple[int, int]]  # bytes of a phase: those that grow with the rows, and the others
    caches: int  # bytes of what was decoded, drawn and computed once
    source: int  # bytes of the whole source in the cache of `datasets`
    model: int  # bytes of a candidate's model
    answer_s: float
    few: Few
    rates: CoreRates
    further: int = 0  # weights that phase 4 trains on all images beyond those on the sample: diet has a class for each


def smoke(recipe: Recipe, phases: Sequence[int] | None, price_per_hour: float | None, cpu: bool) -> Forecast:
    """Run a few steps of every phase and project the whole.

    Args:
        recipe: The recipe.
        phases: The phases; None takes those of the recipe.
        price_per_hour: Price of this machine.
        cpu: Compute on the CPU, as `natix-hf run --cpu` does.

    Raises:
        UsageError: If the recipe has no labelled source.
        RunError: If a phase fails; the line is that of the phase.
    """
    import torch

    from natix_hf.estimate.stages import trained_weights
    from natix_hf.models.classifier import check_model
    from natix_hf.models.device import default_device
    from natix_hf.models.preprocess import make_processor
    from natix_hf.preflight import check_run

    wanted = order_phases(phases if phases is not None else recipe.phases)
    for number in wanted:
        lacking = [needed for needed in PHASES[number].needs if needed not in (0, *wanted)]
        if lacking:
            raise UsageError(f"phase {number} cannot be tried without phase {lacking[0]}, which it needs: name both")
    devices = 1 if cpu else max(1, torch.cuda.device_count())
    check_run(recipe, wanted, None, trains_here=devices == 1)
    source = list_source(recipe.data)
    if source is None:
        raise UsageError("natix-hf smoke needs labelled pictures, and data.source is null: use natix-hf estimate")
    recipe = replace(recipe, phases=wanted)
    counts = source.counts(count_unlabelled(recipe) if 4 in wanted else 0)
    tell(f"source   {counts.labelled:,} pictures" + (f", {counts.unlabelled:,} more" if counts.unlabelled else ""))
    with tempfile.TemporaryDirectory(prefix="natix-hf-smoke-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        model = check_model(recipe.model)
        small = small_recipe(recipe, source, sum(weights.numel() for weights in model.parameters()), folder)
        took = _run(small, folder, cpu)
        of_sample = _counts_of(folder)
        few = few_pictures(recipe.data, source)
        rates = core_rates(recipe, make_processor(recipe.model), model, few, default_device())
        whole, tried = (
            trained_weights(recipe, n.train + n.unlabelled) if 4 in wanted else 0 for n in (counts, of_sample)
        )
        found = _Measured(
            durations=took,
            paces=_paces(folder),
            left=_left(folder),
            caches=_bytes(folder / "caches" / "datasets" / "natix_hf") + _bytes(folder / "caches" / "natix_hf"),
            source=source.cached_bytes(),
            model=_bytes(folder / "run" / PHASES[1].folder / "model"),
            answer_s=_answer_s(recipe, folder, few),
            few=few,
            rates=rates,
            further=max(0, whole - tried),
        )
    return _project(recipe, counts, of_sample, found, devices, price_per_hour, small)


def _run(recipe: Recipe, folder: Path, cpu: bool) -> dict[int, float]:
    """Run the phases in a process of their own, and return the seconds that each took."""
    command = [sys.executable, "-m", "natix_hf", "run", str(folder / RECIPE), "--run-dir", str(folder / "run")]
    command += ["--cpu"] if cpu else []
    caches = {"HF_DATASETS_CACHE": folder / "caches" / "datasets", "NATIX_HF_CACHE": folder / "caches" / "natix_hf"}
    environment = os.environ | {name: str(path) for name, path in caches.items()}
    log, took = folder / "smoke.log", {}
    ordered = [0, *recipe.phases]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = None
            while code is None:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(0.3)
                for number in ordered:
                    if number not in took and (folder / "run" / PHASES[number].folder / MANIFEST).is_file():
                        manifest = read_manifest(folder / "run" / PHASES[number].folder)
                        took[number] = float(manifest["duration_s"])
                        tell(f"phase {number}  {PHASES[number].title}: works ({minutes(took[number])})")
        except BaseException:
            interrupt.end_tree(process.pid)
            raise
    if code != 0:
        failed = next((number for number in ordered if number not in took), ordered[-1])
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        killed = " (killed: the memory of this machine was not enough)" if code in (-9, 137) else ""
        said = next((line for line in reversed(lines) if line.startswith("natix-hf: ")), lines[-1] if lines else "")
        told = said.removeprefix("natix-hf: ")[:_WORDS_OF_ERROR]
        raise RunError(f"phase {failed} does not work here{killed}: {told}")
    return took


def _counts_of(folder: Path) -> Counts:
    from natix_hf.data.splits import SPLITS, read_splits

    counts = read_splits(folder / "run" / PHASES[0].folder / SPLITS).counts()
    extra = sum(SAMPLE_OF_SOURCE for _ in folder.glob("unlabelled-*"))
    return Counts(unlabelled=extra, **{role: count["rows"] for role, count in counts.items()})


def _paces(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The pace of every training, by the section that describes it."""
    found: dict[str, Mapping[str, Any]] = {}
    for number, stage in ((1, "phase1"), (4, "phase4")):
        with suppress(VerificationError):
            report = read_manifest(folder / "run" / PHASES[number].folder)["metrics"]
            for name, part in ((stage, report), (f"{stage}.supervised", report.get("supervised", {}))):
                found |= {name: part["pace"]} if "pace" in part else {}
    return found


def _left(folder: Path) -> dict[int, tuple[int, int]]:
    """Bytes that each phase left: of files with an entry a row, and of all others."""
    found = {}
    for number, phase in PHASES.items():
        grows = other = 0
        for path in (folder / "run" / phase.folder).rglob("*"):
            if path.is_file():
                of_rows = path.suffix in (".parquet", ".json") or path.parent.name in ("logits", "features")
                grows, other = grows + of_rows * path.stat().st_size, other + (not of_rows) * path.stat().st_size
        found[number] = grows, other
    return found


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _answer_s(recipe: Recipe, folder: Path, few: Few) -> float:
    """Seconds of an answer as phases 2, 3, 5 and 6 compute it, beyond those that begin such a pass."""
    from torch.utils.data import Subset

    from natix_hf.bundle.inference import Inference
    from natix_hf.data.asked import ask
    from natix_hf.models.device import loader_workers
    from natix_hf.results.candidate import Candidate

    model = next(
        (path for number in (1, 4) if (path := Candidate(folder / "run" / PHASES[number].folder).model).is_dir()), None
    )
    if model is None:
        return 0.0
    inference, workers = Inference(model), loader_workers(on_cpu=1)
    views = AskedViews(ask(few.rows, recipe.data.drawn_exam), inference.preprocess)
    few_, many = (Subset(views, [i % len(views) for i in range(count)]) for count in _ANSWERS)
    inference.logits(few_, workers=workers)
    times = []
    for dataset in (few_, many):
        begin = time.perf_counter()
        inference.logits(dataset, workers=workers)
        times.append(time.perf_counter() - begin)
    return max(times[1] - times[0], 1e-6) / (_ANSWERS[1] - _ANSWERS[0])


def _project(
    recipe: Recipe,
    counts: Counts,
    of_sample: Counts,
    found: _Measured,
    devices: int,
    price_per_hour: float | None,
    small: Recipe,
) -> Forecast:
    whole = work_of(recipe, recipe.phases, counts, devices)
    sample = {_key(part): part for part in work_of(small, recipe.phases, of_sample, devices)}
    grows = counts.labelled / max(1, of_sample.labelled)
    rows, checkpoints = [], 0
    for number in (0, *recipe.phases):
        of_phase = [part for part in whole if part.phase == number]
        known = {_key(part): _unit_s(part, sample, recipe, found, devices) for part in of_phase}
        tried = [part for part in sample.values() if part.phase == number]
        spent = sum(part.amount * _unit_s(part, sample, recipe, found, devices) for part in tried)
        rest = max(0.0, found.durations[number] - spent)  # what begins and ends a phase
        seconds = sum(part.amount * known[_key(part)] for part in of_phase) + rest
        trained = [part for part in of_phase if part.kind == "train" and part.model != "head"]
        speeds = [part.pictures / known[_key(part)] for part in trained]
        peaks = [
            max(found.paces[part.stage]["memory"].values()) + _STEP_BYTES * found.further * (part.stage == "phase4")
            for part in trained
            if part.stage in found.paces
        ]
        of_rows, others = found.left[number]
        left = round(of_rows * grows + others) + (found.source + round(found.caches * grows) if number == 0 else 0)
        left += found.model * {1: members_of(recipe.phase1), 2: recipe.phase2.soup != "none"}.get(number, 0)
        title = f"{number}  {TITLES[number]}"
        speed = (min(speeds), max(speeds)) if speeds else None
        rows.append(Row(title, speed, max(peaks, default=None), (seconds, seconds), left))
        checkpoints = max([checkpoints, *(_checkpoints(part, whole, recipe, found) for part in trained)])
    lines = [*_loader_lines(whole, recipe, found, devices), *_not_checked(recipe)]
    if found.further:
        more = as_size(_STEP_BYTES * found.further)
        lines.append(f"phase4   {more} more for a class for each image: counted in memory and disk, not in the time")
    forecast = Forecast(rows, checkpoints, lines, [], price_per_hour)
    return replace(forecast, faults=_disk_faults(forecast))


def _key(part: Work) -> tuple[int, str, str]:
    return part.phase, part.kind, part.stage


def _unit_s(
    part: Work, sample: Mapping[tuple[int, str, str], Work], recipe: Recipe, found: _Measured, devices: int
) -> float:
    """Seconds of one unit of a kind of work."""
    cores, pace = os.cpu_count() or 1, found.paces.get(part.stage, {})
    if part.kind == "decode":
        return found.few.decode_s / processes(part, cores)
    if part.kind == "draw":
        return 1 / found.rates.drawn / processes(part, cores)
    if part.kind == "train":
        step = float(pace.get("step_s", 0.0))
        if part.model == "head":  # on features, for which no picture is made again
            return step
        return max(step, loader_s(part, recipe, found.rates, devices, cores))
    if part.kind == "score":
        return float(pace.get("score_s", 0.0)) * part.pictures / sample[_key(part)].pictures
    if part.kind == "features":
        return max(found.answer_s, 1 / found.rates.train / workers_of(recipe, part.stage, devices, cores))
    others = {"save": float(pace.get("save_s", 0.0)), "answer": found.answer_s, "gate": _GATE_STEP_S}
    return others[part.kind]


def _checkpoints(part: Work, whole: Sequence[Work], recipe: Recipe, found: _Measured) -> int:
    """Bytes of the checkpoints that a training keeps, with the one that is being written."""
    saves = next((other.amount for other in whole if other.kind == "save" and _same_stage(other, part)), 0)
    limit = stage_of(recipe, part.stage).training_fields().get("save_total_limit") or saves
    further = _SAVED_BYTES * found.further * (part.stage == "phase4")
    return min(saves, limit + 1) * (int(found.paces.get(part.stage, {}).get("checkpoint_bytes", 0)) + further)


def _same_stage(one: Work, other: Work) -> bool:
    return (one.phase, one.stage) == (other.phase, other.stage)


def _loader_lines(whole: Sequence[Work], recipe: Recipe, found: _Measured, devices: int) -> Iterator[str]:
    """What keeps each training from being faster."""
    cores = os.cpu_count() or 1
    for part in whole:
        if part.kind == "train" and part.model != "head":
            loader, step = loader_s(part, recipe, found.rates, devices, cores), found.paces[part.stage]["step_s"]
            if loader > step:
                yield (
                    f"loader   {part.stage} waits for its pictures: {part.pictures / loader:,.0f} a second from "
                    f"{workers_of(recipe, part.stage, devices, cores) * devices:g} workers, and the model takes "
                    f"{part.pictures / step:,.0f}: raise dataloader_num_workers, or take a machine with more cores"
                )


def _not_checked(recipe: Recipe) -> Iterator[str]:
    left_out = []
    if recipe.data.synthetic_half is not None and 6 in recipe.phases:
        left_out.append("data.synthetic_half")
    if recipe.phase6.push and 6 in recipe.phases:
        left_out.append("the push to the Hub (its rights were checked)")
    if recipe.phase1.folds is not None and 1 in recipe.phases:
        left_out.append("the folds of phase 1, which train the same model")
    if recipe.phase1.seeds is not None and 1 in recipe.phases:
        left_out.append("the further seeds of phase 1, which train the same model")
    if recipe.phase2.soup != "none" and 2 in recipe.phases:
        left_out.append("the soup of phase 2")
    if uncounted(recipe):
        left_out.append(f"{uncounted(recipe)}, not in the time")
    if recipe.phase1.early_stopping_patience is not None:
        left_out.append("when early stopping ends a training: the time is that of all epochs")
    if left_out:
        yield "unchecked  " + "; ".join(left_out)


def _disk_faults(forecast: Forecast) -> list[str]:
    """What would not fit on the disks of the caches and of the runs."""
    cache = forecast.rows[0].disk or 0
    name, folder = cache_folders()["datasets"]
    needs = {folder: (cache, f"set {name} to a folder on a larger disk"),
             Path.cwd(): (forecast.disk - cache, "set --run-dir to a folder on a larger disk")}  # fmt: skip
    if on_one_disk(folder, Path.cwd()):
        needs = {folder: (forecast.disk, f"set {name} or --run-dir to a folder on a larger disk")}
    return [
        f"{as_size(size)} will be needed at {place}, which has {as_size(free_bytes(place))} free: {advice}"
        for place, (size, advice) in needs.items()
        if size > free_bytes(place)
    ]
