"""`natix-hf estimate`: what a recipe needs on a GPU that is not here, from shapes, a data sheet and a core of this
machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from natix_hf.disk import as_size
from natix_hf.errors import UsageError
from natix_hf.estimate.gpus import CONTEXT_BYTES, UTILISATION, Gpu
from natix_hf.estimate.loader import loader_s, processes, section_named, stage_of, workers_of
from natix_hf.estimate.pictures import CoreRates, Few, core_rates, few_pictures
from natix_hf.estimate.shapes import Footprint, answer_footprint
from natix_hf.estimate.source import Source, count_unlabelled, counts_by_shares, is_here, list_source
from natix_hf.estimate.stages import stage_footprint, stock_classifier
from natix_hf.estimate.table import TITLES, Forecast, Row
from natix_hf.estimate.work import Work, members_of, uncounted, work_of
from natix_hf.models.classifier import check_model, head_of
from natix_hf.models.preprocess import make_processor
from natix_hf.recipe import Recipe
from natix_hf.runs.graph import order_phases
from natix_hf.trainers.arguments import require_checkpointing
from natix_hf.trainers.config import TrainingSection
from natix_hf.trainers.pretraining import check_pretraining

_FIXED_S = (3.0, 20.0)  # of a phase, to load models, write files and draw plots
_DISK_BYTES_A_S = (2e9, 2e8)
_GATE_STEP_S = (0.001, 0.005)
_ROW_BYTES = 1000  # of splits, logits and answers together
_VIEW_BYTES = 10_000  # an exam view as JPEG (data/exam_cache.py)


@dataclass(frozen=True)
class Machine:
    """The machine that is asked about."""

    gpu: Gpu
    gpus: int
    cores: int


@dataclass(frozen=True)
class _Costs:
    """What the shapes and the measurements beside them found."""

    steps: Mapping[str, Footprint]  # by stage
    answer: Footprint  # of one picture
    parameters: int
    features: int  # inputs of the classifier layer
    few: Few
    rates: CoreRates
    images: int  # that phase 4 trains on


def estimate(
    recipe: Recipe,
    phases: Sequence[int] | None,
    machine: Machine,
    rows: int | None = None,
    unlabelled: int | None = None,
    price_per_hour: float | None = None,
) -> Forecast:
    """Estimate every phase of a recipe.

    Args:
        recipe: The recipe.
        phases: The phases; None takes those of the recipe.
        machine: What it would run on.
        rows: Number of labelled pictures; None counts those of a source that is on this disk.
        unlabelled: Number of further pictures; None counts them.
        price_per_hour: Price of the machine.

    Raises:
        UsageError: If the source is not here and `rows` is None, the model's shape is not known here, or a stage does
            not fit the model.
    """
    wanted = order_phases(phases if phases is not None else recipe.phases)
    recipe = replace(recipe, phases=wanted)
    source = _source(recipe, rows)
    further = _further(recipe, unlabelled) if 4 in wanted else 0
    counts = source.counts(further) if source is not None and rows is None else counts_by_shares(rows or 0, further)
    model, processor, few = check_model(recipe.model), make_processor(recipe.model), few_pictures(recipe.data, source)
    if 4 in wanted:
        check_pretraining(model.base_model, recipe.phase4, recipe.model.image_size)  # type: ignore[arg-type]
    rates = core_rates(recipe, processor, model, few, torch.device("cuda"))
    work = work_of(recipe, wanted, counts, machine.gpus)
    stages = sorted({part.stage for part in work if part.kind == "train" and part.model != "head"})
    for stage in stages:
        require_checkpointing(stage_of(recipe, stage).training_fields(), model, section_named(recipe, stage))
    pixels = {"pixel_values": torch.zeros(3, recipe.model.image_size, recipe.model.image_size)}
    images = counts.train + counts.unlabelled
    costs = _Costs(
        _steps(recipe, stages, machine, processor, few, images),
        answer_footprint(lambda: stock_classifier(recipe), pixels, 1),
        sum(parameter.numel() for parameter in model.parameters()),
        head_of(model).in_features,
        few,
        rates,
        images,
    )
    rows_of_table = [_row(number, work, recipe, machine, costs) for number in (0, *wanted)]
    if source is not None:
        first = rows_of_table[0]
        rows_of_table[0] = replace(first, disk=(first.disk or 0) + source.cached_bytes())
    # Phase 4's classifier is mostly trained as phase 1 is: once is enough.
    told = [stage for stage in stages if section_named(recipe, stage) == stage or "phase1" not in stages]
    advice = [line for stage in told for line in _advice(stage, work, recipe, machine, costs, processor)]
    faults = [line for stage in told for line in _faults(stage, recipe, machine, costs.steps[stage])]
    missing = [f"uncounted  {uncounted(recipe)}"] if uncounted(recipe) else []
    lines = [*_assumed(machine, rates, source is None), *missing, *advice]
    return Forecast(rows_of_table, _checkpoints(work, recipe, costs), lines, faults, price_per_hour)


def _steps(
    recipe: Recipe, stages: Sequence[str], machine: Machine, processor: Any, few: Few, images: int
) -> dict[str, Footprint]:
    """An optimizer step of each stage. Two stages of one section share theirs."""
    of_section: dict[str, Footprint] = {}
    for stage in stages:
        name = section_named(recipe, stage)
        if name not in of_section:
            of_section[name] = stage_footprint(recipe, stage, machine.gpus, processor, few, images)
    return {stage: of_section[section_named(recipe, stage)] for stage in stages}


def _source(recipe: Recipe, rows: int | None) -> Source | None:
    if recipe.data.source is None:
        return None
    if is_here(recipe.data):
        return list_source(recipe.data)
    if rows is None:
        raise UsageError("data.source is not on this disk: say with --rows how many labelled pictures it has")
    return None


def _further(recipe: Recipe, unlabelled: int | None) -> int:
    if unlabelled is not None or recipe.phase4.stream:
        return unlabelled or 0
    here = all(Path(source).expanduser().exists() for source in recipe.phase4.unlabelled)
    if not here:
        raise UsageError(
            "phase4.unlabelled is not on this disk: say with --unlabelled how many further pictures there are"
        )
    return count_unlabelled(recipe)


def _row(number: int, work: Sequence[Work], recipe: Recipe, machine: Machine, costs: _Costs) -> Row:
    of_phase = [part for part in work if part.phase == number]
    seconds = [_unit_s(part, recipe, machine, costs) for part in of_phase]
    low = sum(part.amount * unit[0] for part, unit in zip(of_phase, seconds, strict=True)) + _FIXED_S[0]
    high = sum(part.amount * unit[1] for part, unit in zip(of_phase, seconds, strict=True)) + _FIXED_S[1]
    trained = [
        (part, unit) for part, unit in zip(of_phase, seconds, strict=True)
        if part.kind == "train" and part.model != "head"
    ]  # fmt: skip
    speeds = [speed for part, unit in trained for speed in (part.pictures / unit[1], part.pictures / unit[0])]
    memory = max((costs.steps[part.stage].peak + CONTEXT_BYTES for part, _ in trained), default=None)
    return Row(
        f"{number}  {TITLES[number]}",
        (min(speeds), max(speeds)) if speeds else None,
        memory,
        (low, high),
        _disk(number, of_phase, recipe, costs),
    )


def _unit_s(part: Work, recipe: Recipe, machine: Machine, costs: _Costs) -> tuple[float, float]:
    """Seconds of one unit, at the higher and at the lower utilisation of the card."""
    rates, cores = costs.rates, machine.cores
    if part.kind == "decode":
        return _both(costs.few.decode_s / processes(part, cores))
    if part.kind == "draw":
        return _both(1 / rates.drawn / processes(part, cores))
    if part.kind == "gate":
        return _GATE_STEP_S
    if part.kind == "save":
        size = _checkpoint_bytes(part.stage, costs)
        return size / _DISK_BYTES_A_S[0], size / _DISK_BYTES_A_S[1]
    if part.kind == "train":
        if part.model == "head":
            return _GATE_STEP_S
        flops, dtype = costs.steps[part.stage].flops, _dtype(stage_of(recipe, part.stage))
        return _slower(flops, machine.gpu.peak_flops(dtype), loader_s(part, recipe, rates, machine.gpus, cores))
    pictures, peak = part.pictures / machine.gpus, machine.gpu.peak_flops("fp32")
    if part.kind == "score" and part.model != "objective":
        workers = workers_of(recipe, part.stage, machine.gpus, cores)
        peak = machine.gpu.peak_flops(_dtype(stage_of(recipe, part.stage)))
        return _slower(pictures * costs.answer.flops, peak, pictures / rates.scored / workers)
    # One process computes these, in true float32.
    rate, workers = rates.asked, float(max(1, min(8, cores // 2)))  # as models/device.py: loader_workers
    if part.kind == "features":
        rate, workers = rates.train, workers_of(recipe, part.stage, 1, cores)
    return _slower(part.pictures * costs.answer.flops, peak, part.pictures / rate / workers)


def _both(seconds: float) -> tuple[float, float]:
    return seconds, seconds


def _slower(flops: float, peak: float, loader: float) -> tuple[float, float]:
    """The time of the slower of the two: the model, or the processes that make its pictures."""
    low, high = UTILISATION
    return max(flops / (peak * high), loader), max(flops / (peak * low), loader)


def _dtype(section: TrainingSection) -> str:
    fields = section.training_fields()
    return next((name for name in ("bf16", "fp16", "tf32") if fields.get(name)), "fp32")


def _checkpoint_bytes(stage: str, costs: _Costs) -> int:
    footprint = costs.steps.get(stage)
    return footprint.checkpoint if footprint is not None else 0


def _checkpoints(work: Sequence[Work], recipe: Recipe, costs: _Costs) -> int:
    """Bytes of the checkpoints of the largest stage, with the one that is being written."""
    sizes = [0]
    for part in work:
        if part.kind == "save":
            limit = stage_of(recipe, part.stage).training_fields().get("save_total_limit") or part.amount
            sizes.append(min(part.amount, limit + 1) * _checkpoint_bytes(part.stage, costs))
    return max(sizes)


def _disk(number: int, of_phase: Sequence[Work], recipe: Recipe, costs: _Costs) -> int:
    """Bytes that a phase leaves, in its folder or in a cache."""
    model = 4 * costs.parameters
    found = 0.0
    for part in of_phase:
        if part.kind == "decode":
            found += part.amount * (costs.few.copy_bytes + _ROW_BYTES)
        elif part.kind == "draw":
            found += part.amount * _VIEW_BYTES
        elif part.kind == "features":
            found += 4 * costs.features * part.amount
        elif part.kind == "answer":
            found += part.amount * _ROW_BYTES / 10
    classifiers = [part for part in of_phase if part.kind == "answer" and part.stage == "phase4.supervised"]
    of_soup = recipe.phase2.soup != "none"
    models = {
        1: 1 + members_of(recipe.phase1),
        2: int(of_soup),
        4: 1 + len(classifiers),
        6: 1 + recipe.phase6.onnx,
    }  # phase 4 leaves the backbone too
    found += model * models.get(number, 0)
    return round(found)


def _assumed(machine: Machine, rates: CoreRates, made_up: bool) -> Iterator[str]:
    low, high = UTILISATION
    yield (
        f"assumed  {machine.gpus} x {machine.gpu.title} at {low:.0%} to {high:.0%} of its peak, and {machine.cores} "
        f"cores as fast as one here, which prepares {rates.train:,.0f} training views a second"
    )
    if made_up:
        yield "assumed  pictures of 1920 x 1080 px, as JPEG"


def _advice(
    stage: str, work: Sequence[Work], recipe: Recipe, machine: Machine, costs: _Costs, processor: Any
) -> Iterator[str]:
    """Where the memory goes, what the stage waits for, and the largest batch that fits."""
    footprint, section = costs.steps[stage], stage_of(recipe, stage)
    size = section.per_device_train_batch_size
    kinds = ", ".join(f"{kind} {as_size(count)}" for kind, count in footprint.memory.items() if count >= 5e5)
    yield (
        f"{stage}  a batch of {size} a GPU: {kinds}, CUDA itself about {as_size(CONTEXT_BYTES)}; "
        f"{footprint.flops / 1e12:.3g} TFLOP a step"
    )
    part = next(part for part in work if part.kind == "train" and part.stage == stage)
    loader = loader_s(part, recipe, costs.rates, machine.gpus, machine.cores)
    steps = [footprint.flops / (machine.gpu.peak_flops(_dtype(section)) * share) for share in UTILISATION]
    waits = [loader > step for step in steps]
    bound = "the loader" if all(waits) else "the loader or the model" if any(waits) else "the model"
    slow, fast = (f"{part.pictures / step:,.0f}" for step in steps)
    workers = workers_of(recipe, stage, machine.gpus, machine.cores)
    yield (
        f"{stage}  bound by {bound}: with {workers:g} workers a GPU the cores hand over "
        f"{part.pictures / loader:,.0f} pictures a second in all, the model takes {slow} to {fast}"
    )
    most_workers = machine.cores // machine.gpus
    if waits[1] and workers < most_workers:
        yield f"{stage}  {section_named(recipe, stage)}.dataloader_num_workers={most_workers} uses every core"
    smaller = max(1, size // 2)
    if smaller < size:
        half = stage_footprint(recipe, stage, machine.gpus, processor, costs.few, costs.images, smaller)
        most = size + int(
            (machine.gpu.usable_bytes - footprint.peak) / (footprint.peak - half.peak) * (size - smaller)
        )
        yield f"{stage}  largest batch that fits: about {max(0, most // 8 * 8 if most >= 8 else most):,} a GPU"


def _faults(stage: str, recipe: Recipe, machine: Machine, footprint: Footprint) -> Iterator[str]:
    """What of a stage would not work on the card."""
    section, gpu, named = stage_of(recipe, stage), machine.gpu, section_named(recipe, stage)
    if footprint.peak > gpu.usable_bytes:
        yield (
            f"{stage} needs {as_size(footprint.peak + CONTEXT_BYTES)} and a {gpu.title} has {gpu.memory_gb:g} GB: "
            f"lower {named}.per_device_train_batch_size (now {section.per_device_train_batch_size}) and raise "
            f"{named}.gradient_accumulation_steps"
        )
    if _dtype(section) == "bf16" and not gpu.bf16:
        yield f"{named}.bf16 is set, and a {gpu.title} has no bfloat16: set {named}.fp16 instead"
