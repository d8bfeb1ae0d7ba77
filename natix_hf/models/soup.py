"""Soups: one plain model whose weights are a mean of the weights of several models that share a start.

Uniform and greedy soups are those of Wortsman et al. 2022 (arXiv 2203.05482). `interpolate_models` is WiSE-FT, of
Wortsman et al. 2022 (arXiv 2109.01903).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from natix_hf.errors import MergeMismatchError, UsageError, VerificationError, cut
from natix_hf.models.classifier import load_classifier, share_weights
from natix_hf.models.preprocess import Preprocess, load_processor
from natix_hf.provenance.durable import remove_folder
from natix_hf.provenance.files import atomic_folder, read_json

_WEIGHTS, _CONFIG, _PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
_HEAD = "classifier."
# What two configs of the same model may differ in.
_NOT_OF_THE_MODEL = (
    "_name_or_path", "architectures", "dtype", "problem_type", "torch_dtype", "transformers_version", "use_cache",
)  # fmt: skip
_Member = TypeVar("_Member")


def greedy_soup(members: Sequence[_Member], score: Callable[[Sequence[_Member]], float]) -> list[_Member]:
    """Choose members by the greedy recipe: from the best to the worst, each is kept if the score does not fall.

    The score of the chosen is at least that of the best member alone, because the choice begins with it.

    Args:
        members: The models, in any form that `score` takes; at least one.
        score: Scores the mean of some members on held-out rows, larger is better. It is called with each alone, then
            once for each that is tried, in the order in which they are added.

    Returns:
        The chosen members, the best first.

    Raises:
        ValueError: If there are no members, or a score is NaN.
    """
    alone = [score([member]) for member in members]
    if not alone or any(math.isnan(value) for value in alone):
        raise ValueError(f"a soup needs members, each with a score that is a number, not {alone}")
    first, *others = sorted(range(len(members)), key=lambda i: -alone[i])  # stable: of equals the first
    chosen, best = [members[first]], alone[first]
    for i in others:
        tried = score([*chosen, members[i]])
        if tried >= best:
            chosen, best = [*chosen, members[i]], tried
    return chosen


def average_models(folders: Sequence[str | Path], to: str | Path) -> Path:
    """Average the weights of plain models with equal settings, and save the mean as a plain model.

    The mean makes sense only if the models were trained from one start: the same backbone and the same fresh head.
    Nothing in a folder says so; in a run, phase 2 checks it (`phase2.soup`). The mean is computed in float64, saved in
    float32, and compared with the tensors that transformers loads from `to`.

    Args:
        folders: Folders as `save_pretrained` writes them, each with its image processor.
        to: The folder to write: a new or empty one, or that of an earlier soup, which is replaced.

    Returns:
        `to`.

    Raises:
        UsageError: If there are no folders, a folder differs from the first in settings, names, shapes or types, or
            holds NaN, or if `to` is one of them or holds anything but a model.
        MergeMismatchError: If the saved model does not hold the mean. It is then removed.

    Example:

        >>> natix_hf.average_models(["outputs/a/model", "outputs/b/model"], "soup")  # doctest: +SKIP
    """
    models, target = [Path(folder) for folder in folders], Path(to)
    return _leave(models, target, lambda name: [1] * len(models))


def interpolate_models(start: Path, trained: Path, to: Path, share: int, of: int) -> Path:
    """Save the model between a start and what was trained from it: `share / of` of the trained backbone, the rest of
    the start's. The head is the trained one: that of the start is fresh and answers nothing.

    Raises:
        As `average_models`.
    """
    return _leave([start, trained], to, lambda name: [0, 1] if name.startswith(_HEAD) else [of - share, share])


def mean_tensor(tensors: Sequence[torch.Tensor], shares: Sequence[int]) -> torch.Tensor:
    """The weighted mean of float32 tensors, computed in float64 and returned in float32.

    Args:
        shares: Weight of each tensor, with a sum above 0.
    """
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total += tensor.double() * share
    return (total / sum(shares)).float()


def average_problem(folder: Path, members: Sequence[Path]) -> str | None:
    """One line if the weights in `folder` are not the mean of those of the members; else None."""
    if not members:
        return f"{folder / _WEIGHTS} is the mean of no model"
    try:
        for name, tensor in _mean(members, lambda name: [1] * len(members)).items():
            with safe_open(folder / _WEIGHTS, "pt") as file:
                if not torch.equal(file.get_tensor(name), tensor):
                    return f"{folder / _WEIGHTS} is not the mean of its members in {name}"
    except (OSError, SafetensorError, RuntimeError, UsageError) as error:
        return f"{folder / _WEIGHTS} cannot be compared with its members ({error})"
    return None


def _leave(folders: list[Path], to: Path, shares: Callable[[str], list[int]]) -> Path:
    _require_alike(folders)
    _require_free(to, folders)
    with atomic_folder(to) as temporary:
        for name in (_CONFIG, _PROCESSOR):
            shutil.copyfile(folders[-1] / name, temporary / name)
        save_file(_mean(folders, shares), temporary / _WEIGHTS, metadata={"format": "pt"})
        share_weights(temporary)
    try:
        _prove(to, folders, shares)
    except (MergeMismatchError, VerificationError):
        remove_folder(to)  # nobody shall take it for the mean
        raise
    return to


def _require_free(to: Path, folders: Sequence[Path]) -> None:
    """Refuse a target that would lose something: the soup replaces the whole folder."""
    if any(to.resolve() == folder.resolve() for folder in folders):
        raise UsageError(f"{to} is a member of the soup, which would replace it: name another folder")
    held = [path.name for path in to.iterdir()] if to.is_dir() else [to.name] if to.exists() else []
    other = min((name for name in held if name not in (_WEIGHTS, _CONFIG, _PROCESSOR)), default=None)
    if other is not None:
        raise UsageError(f"{to} holds {other}, and the soup would replace the whole folder: name a new one")


def _mean(folders: Sequence[Path], shares: Callable[[str], list[int]]) -> dict[str, torch.Tensor]:
    """The mean of the files' tensors, read one name at a time.

    Raises:
        UsageError: If a folder holds NaN or infinity.
    """
    files: list[Any] = [safe_open(folder / _WEIGHTS, "pt") for folder in folders]
    means = {}
    for name in files[0].keys():
        tensors = [file.get_tensor(name) for file in files]
        broken = next((f for f, tensor in zip(folders, tensors, strict=True) if not tensor.isfinite().all()), None)
        if broken is not None:
            raise UsageError(f"{broken / _WEIGHTS} holds NaN or infinity in {name}: leave that model out")
        means[name] = mean_tensor(tensors, shares(name))
    return means


def _require_alike(folders: Sequence[Path]) -> None:
    if not folders:
        raise UsageError("a soup needs at least one model: name their folders")
    first = folders[0]
    for folder in folders:
        missing = next((name for name in (_WEIGHTS, _CONFIG, _PROCESSOR) if not (folder / name).is_file()), None)
        if missing is not None:
            raise UsageError(
                f"{folder} has no {missing}: a soup is made of plain models, as save_pretrained writes them"
            )
        for name in (_CONFIG, _PROCESSOR):
            one, other = _settings(first / name), _settings(folder / name)
            key = next((key for key in {**one, **other} if one.get(key) != other.get(key)), None)
            if key is not None:
                raise UsageError(
                    f"{folder / name} has {key} {cut(other.get(key))}, but {first / name} has {cut(one.get(key))}: a "
                    "soup is made of models with equal settings"
                )
        one, other = _shapes(first), _shapes(folder)
        differs = next((tensor for tensor in {**one, **other} if one.get(tensor) != other.get(tensor)), None)
        if differs is not None:
            raise UsageError(
                f"{folder / _WEIGHTS} has {other.get(differs, 'nothing')} as {differs}, but {first / _WEIGHTS} has "
                f"{one.get(differs, 'nothing')}: a soup is made of models of one architecture"
            )
        kind = next((f"{name} as {facts}" for name, facts in other.items() if not facts.startswith("F32 ")), None)
        if kind is not None:
            raise UsageError(f"{folder / _WEIGHTS} holds {kind}: a soup is made of float32 weights")


def _settings(path: Path) -> dict[str, Any]:
    return {key: value for key, value in read_json(path).items() if key not in _NOT_OF_THE_MODEL}


def _shapes(folder: Path) -> dict[str, str]:
    """Type and shape of each tensor of a folder, by name."""
    try:
        with safe_open(folder / _WEIGHTS, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            return {name: f"{part.get_dtype()} {part.get_shape()}" for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{folder / _WEIGHTS} cannot be read ({error})") from None


@torch.inference_mode()
def _prove(to: Path, folders: list[Path], shares: Callable[[str], list[int]]) -> None:
    """Load the saved model with transformers, and compare it with the mean by numpy of the others, loaded alike: every
    tensor, and the answers to noise, to the bit."""
    sums: dict[str, Any] = {}
    for i, folder in enumerate(folders):
        model = load_classifier(folder)
        for name, tensor in model.state_dict().items():
            sums[name] = sums.get(name, 0.0) + tensor.numpy().astype(np.float64) * shares(name)[i]
    means = {name: torch.from_numpy((total / sum(shares(name))).astype(np.float32)) for name, total in sums.items()}
    saved = load_classifier(to)
    other = next((name for name, tensor in saved.state_dict().items() if not torch.equal(tensor, means[name])), None)
    model.load_state_dict(means)  # the last model's settings, which all have
    size = Preprocess(load_processor(to)).image_size
    noise = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    same = torch.equal(*(one.eval()(pixel_values=noise).logits for one in (saved, model)))
    if other is not None or not same:
        raise MergeMismatchError(
            f"{to} does not hold the mean of its {len(folders)} models in {other or 'its answers'}"
        )
