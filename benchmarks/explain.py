"""Is a heatmap about the model? Deletion curves against random and central orders, and heat of shuffled weights.

    python benchmarks/explain.py BUNDLE SOURCE [--pictures 100] [--group-by COLUMN] [--no-record]

SOURCE is anything that the package reads; its test split if it has one, else all of it. Use pictures that the model
has not been trained on. Half of those drawn are answered yes, if there are as many.

Deletion: the cells of a view are replaced one after the other, in the order of the heatmap's evidence, and the logit
difference towards the answer is followed. The area under that curve, from nothing to everything deleted, is in logits;
small is good. A deleted cell shows the view blurred, its mean colour, black, or white; the default method begins with
the same four. Other orders: five random ones, averaged; from the middle outwards (a Gaussian of a quarter of the
side), because photographers put things there; and each cell by what deleting it alone does, at a pass for each cell.
Differences are paired by picture, with 95% intervals from a bootstrap of the groups.

Randomised weights (Adebayo et al. 2018, arXiv 1810.03292): the values of each tensor of the model are shuffled, and
the evidence for the same answer is compared with the trained model's, by rank correlation. Also with the classifier
layer alone shuffled.

It fails where the default method does not beat random by the interval under every replacement.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import record
from scipy.stats import spearmanr

from natix_hf import load_bundle
from natix_hf.bundle.load import Bundle
from natix_hf.data.config import DataConfig
from natix_hf.data.images import open_image
from natix_hf.data.sources import load_unlabelled
from natix_hf.errors import DataError
from natix_hf.models.architectures import ARCHITECTURES
from natix_hf.models.explain import METHODS, Explainer

STEPS, RANDOM, RESAMPLES = 12, 5, 2000
REPLACED = ("blur", "mean", "black", "white")
Orders = dict[str, list[np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("source")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--group-by", help="a column: its pictures belong together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true", help="print, and leave RESULTS.md alone")
    given = parser.parse_args()
    bundle = load_bundle(given.bundle)
    rng = np.random.default_rng(given.seed)
    cells, groups = draw(bundle, given.source, given.pictures, given.group_by, rng)
    explainer = Explainer(bundle.folder)
    methods = [name for name in METHODS if name == "gradient" or not ARCHITECTURES[explainer.model_type].stages]
    shuffled = {"all": shuffle(explainer, rng, ""), "classifier": shuffle(explainer, rng, "classifier.")}
    areas: dict[str, dict[str, list[float]]] = {how: {} for how in REPLACED}
    alike: dict[str, list[float]] = {f"{name}, {what}": [] for name in methods for what in shuffled}
    seconds, said_yes = dict.fromkeys(methods, 0.0), []
    for number, cell in enumerate(cells, 1):
        orders: Orders = {}
        for name in methods:
            begin = time.perf_counter()
            found = bundle.explain(cell, name)
            seconds[name] += (time.perf_counter() - begin) / len(cells)
            orders[name] = [ranked(found.evidence)]
            yes = found.prediction.label == bundle.policy.labels.yes
            pixels = np.asarray(bundle.preprocess(open_image(cell)), dtype=np.float32)
            for what, other in shuffled.items():
                with_other = other.evidence(pixels, yes, name)
                alike[f"{name}, {what}"].append(float(spearmanr(found.evidence.ravel(), with_other.ravel())[0]))
        said_yes.append(yes)
        side = found.evidence.shape[0]
        orders["random"] = [rng.permutation(side * side) for _ in range(RANDOM)]
        orders["centre"] = [from_the_middle(side)]
        view = torch.from_numpy(pixels)
        for how, replacement in explainer.starts(view).items():
            delete = Deletion(explainer, view, replacement, side, 1.0 if yes else -1.0)
            ordered = orders | {"each alone": [ranked(delete.alone())]}
            for name, of_name in ordered.items():
                areas[how].setdefault(name, []).append(delete.area(of_name))
        print(f"\r{number} of {len(cells)} pictures", end="", flush=True)
    print()
    told = {how: table(how, of_how, groups, np.asarray(said_yes)) for how, of_how in areas.items()}
    for name, values in alike.items():
        size = np.nanmean(np.abs(values))
        print(f"rank correlation with {name} shuffled: mean {np.nanmean(values):+.3f}, mean size {size:.3f}")
    print("time of an explanation:", ", ".join(f"{name} {1000 * spent:.0f} ms" for name, spent in seconds.items()))
    for name in methods:
        beaten = ", ".join(f"{how}: {told[how][name]}" for how in REPLACED)
        shuffles = ", ".join(f"{what} {np.nanmean(alike[f'{name}, {what}']):+.2f}" for what in shuffled)
        outcome = f"area under random's in logits, {beaten}; rank correlation with shuffled weights: {shuffles}"
        outcome += f"; {len(cells)} pictures of {len(set(groups))} groups"
        if given.no_record:
            print(outcome)
        else:
            record(f"explain {name}, {explainer.model_type}, {Path(given.source).name}", outcome)
    failed = [how for how in REPLACED if gain(areas[how], "gradient", "random", groups)[1] <= 0]
    if failed:
        raise SystemExit(f"gradient does not beat random under {' and '.join(failed)}: do not trust its heatmaps here")


def draw(
    bundle: Bundle, source: str, most: int, group_by: str | None, rng: np.random.Generator
) -> tuple[list[Any], np.ndarray]:
    """Pictures, and the group of each: half of them answered yes, if there are as many, one or few of a group."""
    config = DataConfig.build({})
    part = load_unlabelled(source, config)
    rows = np.flatnonzero(np.asarray([split == "test" for split in part.splits]))
    rows = rng.permutation(rows if len(rows) else len(part.ids))
    groups = np.asarray([str(value) for value in part.columns[group_by]] if group_by else part.ids)
    nth: dict[str, int] = {}  # first one picture of every group, then a second one
    turn = [_count(nth, groups[row]) for row in rows]
    rows = rows[np.argsort(turn, kind="stable")]
    chosen: dict[bool, list[tuple[Any, str]]] = {True: [], False: []}
    looked = [part.images[int(row)][config.image_column] for row in rows[: 20 * most]]
    for row, cell, answer in zip(rows, looked, bundle.stream(looked), strict=False):
        if hasattr(answer, "problem"):
            continue
        of_kind = chosen[answer.label == bundle.policy.labels.yes]
        if len(of_kind) < most:
            of_kind.append((cell, groups[row]))
        if min(map(len, chosen.values())) >= most - most // 2:
            break
    yes = chosen[True][: max(most // 2, most - len(chosen[False]))]
    found = yes + chosen[False][: most - len(yes)]
    if not found:
        raise DataError(f"{source} has no picture that can be read")
    return [cell for cell, _ in found], np.asarray([group for _, group in found])


def _count(seen: dict[str, int], name: str) -> int:
    seen[name] = seen.get(name, 0) + 1
    return seen[name]


def shuffle(explainer: Explainer, rng: np.random.Generator, only: str) -> Explainer:
    """The same model with the values of its tensors shuffled, of all or of those whose name begins so."""
    other = copy.copy(explainer)
    other.model = copy.deepcopy(explainer.model)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for name, tensor in other.model.named_parameters():
        if name.startswith(only):
            order = torch.randperm(tensor.numel(), generator=generator)
            tensor.data.copy_(tensor.data.flatten()[order].view_as(tensor))
    return other


def ranked(evidence: np.ndarray) -> np.ndarray:
    return np.argsort(-evidence.ravel(), kind="stable")


def from_the_middle(side: int) -> np.ndarray:
    away = (np.arange(side) - (side - 1) / 2) ** 2
    return ranked(np.exp(-(away[:, None] + away) / (2 * (side / 4) ** 2)))


class Deletion:
    """The logit towards an answer while cells of a view are replaced."""

    def __init__(
        self, explainer: Explainer, view: torch.Tensor, replacement: torch.Tensor, side: int, sign: float
    ) -> None:
        self.explainer, self.view, self.replacement, self.side, self.sign = explainer, view, replacement, side, sign

    def logits(self, deleted: np.ndarray) -> np.ndarray:
        """float64 [n] of masks of cells, bool [n, side * side]."""
        cell, px = self.explainer.cell, self.view.shape[-1]
        masks = deleted.reshape(-1, self.side, self.side).repeat(cell, axis=1).repeat(cell, axis=2)[:, None, :px, :px]
        pixels = torch.where(torch.from_numpy(masks), self.replacement, self.view)
        with torch.inference_mode():
            parts = [self.explainer.model(pixel_values=part).logits for part in torch.split(pixels, 32)]
        logits = torch.cat(parts).double().numpy()
        return np.asarray(self.sign * (logits[:, 1] - logits[:, 0]))

    def area(self, orders: Sequence[np.ndarray]) -> float:
        """Under the curve, over the share that is deleted; the mean of the orders."""
        cells = self.side**2
        counts = np.unique(np.rint(np.linspace(0, cells, STEPS + 1)).astype(int))
        places = np.stack([np.argsort(order) for order in orders])  # when each cell goes
        z = self.logits((places[:, None, :] < counts[None, :, None]).reshape(-1, cells)).reshape(len(orders), -1)
        return float(np.trapezoid(z, counts / cells, axis=1).mean())

    def alone(self) -> np.ndarray:
        """How far deleting each cell alone lowers the logit, float64 [side * side]."""
        each = np.eye(self.side**2, dtype=bool)
        return np.asarray(self.logits(np.zeros_like(each[:1]))[0] - self.logits(each))


def gain(
    areas: dict[str, list[float]], name: str, other: str, groups: np.ndarray, kept: np.ndarray | None = None
) -> tuple[float, float, float]:
    """By how much the area of one order lies under that of another: mean and 95% interval."""
    less = np.asarray(areas[other]) - np.asarray(areas[name])
    of = np.ones(len(less), bool) if kept is None else kept
    _, at = np.unique(groups[of], return_inverse=True)
    sums, counts = np.bincount(at, less[of]), np.bincount(at)
    drawn = np.random.default_rng(0).integers(0, len(counts), (RESAMPLES, len(counts)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))
    return float(less[of].mean()), float(low), float(high)


def table(how: str, areas: dict[str, list[float]], groups: np.ndarray, yes: np.ndarray) -> dict[str, str]:
    print(f"deleted cells show: {how} ({len(yes)} pictures of {len(set(groups))} groups, {yes.sum()} answered yes)")
    print(f"{'order':>12} {'area':>8}   {'under random':<26} {'under centre':<26} {'under random, yes':<26} no")
    said = {}
    for name, values in sorted(areas.items(), key=lambda item: float(np.mean(item[1]))):
        columns = [gain(areas, name, other, groups) for other in ("random", "centre")]
        columns += [gain(areas, name, "random", groups, kept) if kept.any() else (np.nan,) * 3 for kept in (yes, ~yes)]
        shown = [f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in columns]
        print(f"{name:>12} {np.mean(values):8.3f}   {'  '.join(f'{text:<25}' for text in shown)}")
        said[name] = shown[0]
    return said


if __name__ == "__main__":
    main()
