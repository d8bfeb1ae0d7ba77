"""`adapter: auto`: short trainings of a few adapters of one size against each other, and the best one's name.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): all train for an eighth of the stage's steps, the better
half for a quarter, until one is left. With four that takes as many steps as the stage itself.
"""

from __future__ import annotations

import copy
import functools
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from transformers import AutoModelForImageClassification, PreTrainedModel

from natix_hf.errors import RecipeError, VerificationError
from natix_hf.models.adapters import ADAPTERS, add_adapter
from natix_hf.models.classifier import head_of
from natix_hf.models.tuner import count_trainable
from natix_hf.provenance.files import read_json, write_json
from natix_hf.terminal import tell
from natix_hf.trainers.config import SupervisedConfig

TOLERANCE = 0.1  # of the budget
MCC = "val_select_mcc_optimistic"
_FIRST_SHARE = 8  # the first round trains for one part in so many of the stage's steps
_LEAST_STEPS = 2  # AdaLoRA's budget needs them

# (adapter, its options, settings of the training) -> MCC on val_select at its best threshold, of a model of its own
Trial = Callable[[str, dict[str, Any], dict[str, Any]], float]


def bake_off(
    model: PreTrainedModel, config: SupervisedConfig, total_steps: int, trial: Trial, folder: Path
) -> tuple[SupervisedConfig, dict[str, Any]]:
    """Chooses the adapter of a stage whose recipe says `auto`. Every rank calls it, and every rank gets the same.

    Args:
        model: what will be trained; it is left as it is.
        total_steps: optimizer steps of the whole training, of which the trials take shares.
        folder: for the figures of finished trials, which are not trained again after an interruption. A trial that
            was cut off begins anew.

    Returns:
        The configuration as if the recipe had named the winner, and the facts: `adapter`, `adapter_options`, and
        `bakeoff`, rows of {adapter, options, trainable_parameters, round, steps, val_select_mcc_optimistic, kept},
        with `left_out`, the reason, for one that did not take part.

    Raises:
        RecipeError: too few steps, or an option that does not fit the model.
    """
    if total_steps < _LEAST_STEPS:
        raise RecipeError(
            f"{config.where}.adapter is 'auto', which compares trainings of {_LEAST_STEPS} steps and more: there is "
            f"{total_steps} step, name an adapter"
        )
    entrants = entrants_for(model, config.adapter_options, config.where)
    rows = [row | {"round": 0, "steps": 0, MCC: None, "kept": False} for row in entrants if "left_out" in row]
    left = [row for row in entrants if "left_out" not in row]
    number, steps = 1, max(_LEAST_STEPS, total_steps // _FIRST_SHARE)
    while len(left) > 1:
        settings = trial_settings(config.training_fields(), steps, total_steps)
        scored = [_score(row | {"round": number, "steps": steps}, trial, settings, folder) for row in left]
        # Sorting is stable: what is equal in score and size stays in the order of the table.
        best = sorted(scored, key=lambda row: (-row[MCC], row["trainable_parameters"]))[: (len(scored) + 1) // 2]
        rows += [row | {"kept": row in best} for row in scored]
        left = [row for row, result in zip(left, scored, strict=True) if result in best]
        number, steps = number + 1, min(2 * steps, total_steps)
    name, options = left[0]["adapter"], left[0]["options"]
    if PartialState().is_main_process:
        told = ", ".join(f"{row['adapter']} {row[MCC]:.3f} at {row['steps']}" for row in rows if row["round"])
        tell(f"{config.where}.adapter=auto takes {name} (MCC on val_select at so many steps: {told})")
    facts = {"adapter": name, "adapter_options": options, "bakeoff": rows}
    return replace(config, adapter=name, adapter_options=options), facts


def entrants_for(model: PreTrainedModel, options: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Who takes part, in the order of the table, each as near to the budget as the model allows: the count of `lora`
    at rank `options["r"]`, 8 if that is not given.

    Args:
        model: it may be on the meta device.
        options: `r` and `target_modules`, or neither.

    Returns:
        Rows of {adapter, options, trainable_parameters}, the classifier layer not counted, with `left_out` where no
        rank comes within 10 % of the budget.

    Raises:
        RecipeError: `target_modules` names nothing in the model, or what PEFT cannot adapt.
    """
    with torch.device("meta"):
        shell: PreTrainedModel = AutoModelForImageClassification.from_config(copy.deepcopy(model.config))
    rank = options.get("r", ADAPTERS["lora"].defaults["r"])
    modules = {key: value for key, value in options.items() if key != "r"}
    budget = _count(shell, "lora", _sized("lora", rank) | modules, where)
    names = [name for name, kind in ADAPTERS.items() if kind.in_bake_off]
    return [_entrant(shell, name, modules, rank, budget, where) for name in names]


def _entrant(
    shell: PreTrainedModel, name: str, modules: dict[str, Any], rank: int, budget: int, where: str
) -> dict[str, Any]:
    width = shell.config.hidden_size
    factor = next((number for number in range(2, width) if width % number == 0), width)

    def options(rank: int) -> dict[str, Any]:
        return _sized(name, rank, factor) | modules

    count = functools.cache(lambda rank: _count(shell, name, options(rank), where))
    # No one needs more: at lora's rank, times the factor for lokr, all but a saturated lokr have reached the budget.
    ranks = range(1, (factor if name == "lokr" else 1) * rank + 1)
    reached = ranks[min(bisect_left(ranks, budget, key=count), len(ranks) - 1)]
    nearest = min([max(1, reached - 1), reached], key=lambda rank: abs(count(rank) - budget))
    row = {"adapter": name, "options": options(nearest), "trainable_parameters": count(nearest)}
    if abs(count(nearest) - budget) > TOLERANCE * budget:
        row["left_out"] = f"its nearest size, {count(nearest)}, is more than 10 % off the budget of {budget}"
    return row


def _sized(name: str, rank: int, factor: int = 2) -> dict[str, Any]:
    """Options of an entrant of this rank; the scale of each is that of the table's defaults, 1."""
    if name == "adalora":
        # It starts with half as many ranks again as it ends with. What counts is the start, which the optimizer sees.
        return {"init_r": rank, "target_r": max(1, rank * 2 // 3), "lora_alpha": rank}
    if name == "lokr":
        # A matrix [m, n] is the product of [factor, factor] and [m / factor, n / factor], the latter of this rank: at
        # factor times lora's rank it has lora's count and factor² more. The smallest factor reaches the largest
        # budgets, and comes nearest to any; a factor of 1 would be lora itself, times a number.
        return {"r": rank, "alpha": rank, "decompose_factor": factor}
    return {"r": rank, "lora_alpha": rank}


def _count(shell: PreTrainedModel, name: str, options: dict[str, Any], where: str) -> int:
    """Trainable parameters of the adapter alone, by putting it around a copy of the model on the meta device."""
    with torch.device("meta"):
        wrapped = add_adapter(copy.deepcopy(shell), name, options, total_steps=10**6, seed=0, where=where)
    return count_trainable(wrapped) - count_trainable(head_of(shell))


def trial_settings(training: dict[str, Any], steps: int, total_steps: int) -> dict[str, Any]:
    """Settings of a training of `steps` that runs through the stage's whole schedule, is scored once, at its end, and
    saves nothing. A warm-up of so many steps becomes one of the same share."""
    warmup = training.get("warmup_steps") or 0
    return training | {
        "max_steps": steps,
        "warmup_steps": warmup / total_steps if 1 <= warmup < total_steps else warmup,
        "eval_strategy": "steps",
        "eval_steps": steps,
        "eval_delay": 0,
        "eval_on_start": False,
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
    }


def _score(row: dict[str, Any], trial: Trial, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`row` with its figure, which is rank 0's on every rank: stored by an attempt that was cut off, or of a trial."""
    path = folder / f"{row['round']}-{row['adapter']}.json"
    asked = row | {"world_size": PartialState().num_processes}
    figure = _agreed(_stored(path, asked) if PartialState().is_main_process else None)
    if figure is None:
        figure = _agreed(float(trial(row["adapter"], row["options"], settings)))
        clear_device_cache(garbage_collection=True)  # the next model needs what this one held of the GPU
        if PartialState().is_main_process:
            write_json(path, asked | {MCC: figure})
    return row | {MCC: figure}


def _stored(path: Path, asked: dict[str, Any]) -> float | None:
    """The figure of a finished trial of this very adapter, with as many steps on as many ranks."""
    try:
        found = read_json(path)
    except VerificationError:
        return None
    figure = found.get(MCC) if isinstance(found, dict) else None
    return figure if isinstance(figure, float) and found == asked | {MCC: figure} else None


def _agreed(figure: float | None) -> float | None:
    agreed: float | None = broadcast_object_list([figure])[0]
    return agreed
