"""The bake-off of `adapter: auto`: short trainings of several adapters of similar size, to choose the best.

The method is successive halving (Jamieson and Talwalkar, arXiv:1502.07943). All adapters train for an eighth of the
stage's steps, the better half for a quarter, and so on until one is left. With four adapters this takes as many steps
as the stage itself.
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
from natix_hf.models.targets import common_width, target_modules
from natix_hf.models.tuner import count_trainable
from natix_hf.provenance.files import read_json, write_json
from natix_hf.terminal import tell
from natix_hf.trainers.supervised_config import SupervisedConfig

TOLERANCE = 0.1  # allowed deviation from the budget, as a share
MCC = "val_select_mcc_optimistic"
_FIRST_SHARE = 8  # the first round trains for 1/8 of the stage's steps
_LEAST_STEPS = 2  # AdaLoRA's schedule needs at least two

# (adapter, its options, settings of the training) -> MCC on val_select at the best threshold of a newly trained model
Trial = Callable[[str, dict[str, Any], dict[str, Any]], float]


def bake_off(
    model: PreTrainedModel, config: SupervisedConfig, total_steps: int, trial: Trial, folder: Path
) -> tuple[SupervisedConfig, dict[str, Any]]:
    """Choose the adapter of a stage whose recipe says `auto`. Every rank must call it and gets the same result.

    Args:
        model: The model of the stage. It is not changed.
        config: Settings of the stage.
        total_steps: Optimizer steps of the whole training. The trials take shares of it.
        trial: Trains one adapter and returns its score.
        folder: Folder for the figures of finished trials. After an interruption these are not trained again; an
            unfinished trial starts over.

    Returns:
        The configuration with the winner as its adapter, and the facts: `adapter`, `adapter_options`, and `bakeoff`,
        rows of {adapter, options, trainable_parameters, round, steps, val_select_mcc_optimistic, kept}. A row of an
        adapter that did not take part has the reason in `left_out`.

    Raises:
        RecipeError: If there are too few steps, or an option does not fit the model.
    """
    if total_steps < _LEAST_STEPS:
        raise RecipeError(
            f"{config.where}.adapter is 'auto', which compares trainings of {_LEAST_STEPS} steps or more, and "
            f"there is {total_steps} step: train longer, or name an adapter"
        )
    entrants = entrants_for(model, config.adapter_options, config.where)
    rows = [row | {"round": 0, "steps": 0, MCC: None, "kept": False} for row in entrants if "left_out" in row]
    left = [row for row in entrants if "left_out" not in row]
    number, steps = 1, max(_LEAST_STEPS, total_steps // _FIRST_SHARE)
    while len(left) > 1:
        settings = trial_settings(config.training_fields(), steps, total_steps)
        scored = [_score(row | {"round": number, "steps": steps}, trial, settings, folder) for row in left]
        # Sorting is stable, so adapters with equal score and size keep the order of the table.
        best = sorted(scored, key=lambda row: (-row[MCC], row["trainable_parameters"]))[: (len(scored) + 1) // 2]
        rows += [row | {"kept": row in best} for row in scored]
        left = [row for row, result in zip(left, scored, strict=True) if result in best]
        number, steps = number + 1, min(2 * steps, total_steps)
    name, options = left[0]["adapter"], left[0]["options"]
    if PartialState().is_main_process:
        told = ", ".join(f"{row['adapter']} {row[MCC]:.3f} at {row['steps']}" for row in rows if row["round"])
        tell(f"{config.where}.adapter=auto takes {name} (optimistic MCC on val_select by number of steps: {told})")
    facts = {"adapter": name, "adapter_options": options, "bakeoff": rows}
    return replace(config, adapter=name, adapter_options=options), facts


def entrants_for(model: PreTrainedModel, options: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """List the adapters that take part, in the order of the table, each with a size close to the budget.

    The budget is the number of trainable parameters of `lora` at rank `options["r"]`, or 8 if it is not given.

    Args:
        model: The model. It may be on the meta device.
        options: `r` and `target_modules`; both are optional.
        where: Name of the section, for error messages.

    Returns:
        Rows of {adapter, options, trainable_parameters}, without the classifier layer. A row has `left_out` if no rank
        comes within 10% of the budget.

    Raises:
        RecipeError: If `target_modules` names nothing in the model, or modules that PEFT cannot adapt.
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
    width = common_width(shell, target_modules(shell, modules.get("target_modules", ADAPTERS[name].targets), where))
    factor = next((number for number in range(2, width) if width % number == 0), width)

    def options(rank: int) -> dict[str, Any]:
        return _sized(name, rank, factor) | modules

    count = functools.cache(lambda rank: _count(shell, name, options(rank), where))
    # At lora's rank, times the factor for lokr, every adapter except a saturated lokr has reached the budget.
    ranks = range(1, (factor if name == "lokr" else 1) * rank + 1)
    reached = ranks[min(bisect_left(ranks, budget, key=count), len(ranks) - 1)]
    nearest = min([max(1, reached - 1), reached], key=lambda rank: abs(count(rank) - budget))
    row = {"adapter": name, "options": options(nearest), "trainable_parameters": count(nearest)}
    if abs(count(nearest) - budget) > TOLERANCE * budget:
        row["left_out"] = f"its nearest size, {count(nearest)}, is more than 10 % off the budget of {budget}"
    return row


def _sized(name: str, rank: int, factor: int = 2) -> dict[str, Any]:
    """Options of an adapter of this rank. The scale is 1, as in the defaults of the table."""
    if name == "adalora":
        # It starts with 1.5 times its final rank. The optimizer sees the starting rank, so that one counts.
        return {"init_r": rank, "target_r": max(1, rank * 2 // 3), "lora_alpha": rank}
    if name == "lokr":
        # A matrix [m, n] is the Kronecker product of [factor, factor] and [m / factor, n / factor]; the latter has
        # this rank. At factor times lora's rank it has factor² more parameters than lora. The smallest factor reaches
        # the largest budgets and the finest steps. A factor of 1 would be lora times a number.
        return {"r": rank, "alpha": rank, "decompose_factor": factor}
    return {"r": rank, "lora_alpha": rank}


def _count(shell: PreTrainedModel, name: str, options: dict[str, Any], where: str) -> int:
    """Count the trainable parameters of the adapter alone, on a copy of the model on the meta device."""
    with torch.device("meta"):
        wrapped = add_adapter(copy.deepcopy(shell), name, options, total_steps=10**6, seed=0, where=where)
    return count_trainable(wrapped) - count_trainable(head_of(shell))


def trial_settings(training: dict[str, Any], steps: int, total_steps: int) -> dict[str, Any]:
    """Settings of a trial of `steps` steps.

    The trial runs through the whole schedule, is scored once at its end, and saves nothing. A warm-up given as a
    number of steps becomes the same share of the trial.
    """
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
    """Add the score to `row`, from an interrupted attempt or from a new trial. Every rank gets rank 0's score."""
    path = folder / f"{row['round']}-{row['adapter']}.json"
    asked = row | {"world_size": PartialState().num_processes}
    figure = _agreed(_stored(path, asked) if PartialState().is_main_process else None)
    if figure is None:
        figure = _agreed(float(trial(row["adapter"], row["options"], settings)))
        clear_device_cache(garbage_collection=True)  # free the GPU memory for the next model
        if PartialState().is_main_process:
            write_json(path, asked | {MCC: figure})
    return row | {MCC: figure}


def _stored(path: Path, asked: dict[str, Any]) -> float | None:
    """Score of a finished trial with the same adapter, steps and number of ranks, or None."""
    try:
        found = read_json(path)
    except VerificationError:
        return None
    figure = found.get(MCC) if isinstance(found, dict) else None
    return figure if isinstance(figure, float) and found == asked | {MCC: figure} else None


def _agreed(figure: float | None) -> float | None:
    agreed: float | None = broadcast_object_list([figure])[0]
    return agreed
