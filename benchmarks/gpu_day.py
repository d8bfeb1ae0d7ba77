"""Everything that is still owed a measurement on a GPU, in parts of at most nine minutes.

    python benchmarks/gpu_day.py [PART ...] [--out FOLDER] [--data SOURCE] [--again] [--tiny]

Without a PART all parts run in their order. A part that has left its file in FOLDER is not run again, so that a
second call goes on where the first was cut off. Each part prints its rows and appends them to RESULTS.md with the
card's name.

- steps: seconds, pictures and model FLOP utilisation (MFU) of an optimizer step of phases 1 and 4 for DINOv2-B and -L,
  on batches that lie ready, and the memory beside what `natix-hf estimate` says.
- precision: the same step in float32, TF32 and bfloat16.
- compile: with and without `torch_compile`, and what the first step costs.
- loader: pictures and `data_wait` of phase 1 with 1 to 16 workers, views made by workers and on the device.
- inference: pictures a second that a bundle's model answers, one and 32 at once, in float32 and bfloat16.
- explora: phase 4 with the DINO objective on the photographs: the probe before and after.
- smoke: how long `natix-hf smoke` takes for a base model, and its table.

The weights are random: neither time nor memory depends on them. `explora` starts from the packaged backbone.
`--tiny` takes small models and few steps, to see on any machine that every part works; such rows are only printed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import record
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from natix_hf.estimate.gpus import GPUS, Gpu, gpu_of
from natix_hf.estimate.shapes import Footprint, step_footprint
from natix_hf.models.adapters import add_adapter
from natix_hf.models.device import default_device, device_line
from natix_hf.models.tuner import Adapted
from natix_hf.provenance.manifest import read_manifest
from natix_hf.runs.graph import PHASES
from natix_hf.ssl.objectives import objective_class, settings_of
from natix_hf.trainers.arguments import training_arguments
from natix_hf.trainers.explora import ExploraTrainer
from natix_hf.trainers.explora_config import ExploraConfig
from natix_hf.trainers.pretraining import make_objective
from natix_hf.trainers.roadwork import RoadworkTrainer

_PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data" / "gtsrb_roadwork"
_SHAPES = {
    "DINOv2-B": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224},
    "DINOv2-L": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 224},
}
_TINY = {"tiny": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56}}
_PATCH = 14


class Ready(Dataset[dict[str, torch.Tensor]]):
    """The same item again and again: no loader is waited for."""

    def __init__(self, item: dict[str, torch.Tensor], count: int) -> None:
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: Any) -> dict[str, torch.Tensor]:
        return self.item


class Day:
    """What all parts share: the machine, the models, and how many steps are measured."""

    def __init__(self, tiny: bool, data: str, scratch: Path) -> None:
        self.tiny, self.data, self.scratch = tiny, data, scratch
        self.shapes = _TINY if tiny else _SHAPES
        self.steps = 4 if tiny else 24
        self.card = torch.cuda.get_device_name() if torch.cuda.is_available() else device_line()

    @property
    def gpu(self) -> Gpu | None:
        """The card's row in the table of `estimate`, if it has one."""
        named = self.card.removeprefix("NVIDIA ").lower()
        with contextlib.suppress(Exception):
            return gpu_of(named)
        return next((gpu for name, gpu in GPUS.items() if name in named.split()), None)

    def config(self, name: str) -> Any:
        return AutoConfig.for_model("dinov2", patch_size=_PATCH, **self.shapes[name])

    def size(self, name: str) -> int:
        return int(self.shapes[name]["image_size"])

    def arguments(self, batch: int, **fields: Any) -> Any:
        settings: dict[str, Any] = {"per_device_train_batch_size": batch, "learning_rate": 1e-5}
        settings |= {"max_steps": self.steps, "logging_steps": self.steps}
        settings |= {"save_strategy": "no", "eval_strategy": "no", "report_to": "none"}
        return training_arguments(settings | fields, self.scratch / "trainer")


def classifier(day: Day, name: str, adapter: str = "full") -> Any:
    model = AutoModelForImageClassification.from_config(day.config(name), dtype=torch.float32)
    return model if adapter == "full" else Adapted(add_adapter(model, adapter, {}, 100, 0, "phase1"))


def pixels(size: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(3, size, size), "labels": torch.zeros((), dtype=torch.int64)}


def objective(day: Day, name: str, method: str) -> Any:
    config = ExploraConfig(objective=method)
    backbone = AutoModel.from_config(day.config(name), dtype=torch.float32)
    return make_objective(
        backbone, config, day.size(name), 0, None, 1000, settings_of(objective_class(method), config)
    )


def crops(size: int, method: str) -> dict[str, torch.Tensor]:
    patches = (size // _PATCH) ** 2
    if method == "mae":
        return {"pixel_values": torch.randn(3, size, size), "noise": torch.rand(patches)}
    masks = torch.zeros(2, patches, dtype=torch.bool)
    masks[0, : round(0.3 * patches)] = True
    local = max(1, round(0.43 * size / _PATCH)) * _PATCH
    return {
        "global_crops": torch.randn(2, 3, size, size),
        "local_crops": torch.randn(8, 3, local, local),
        "masks": masks,
    }


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    if "labels" in batch:
        logits = model(pixel_values=batch["pixel_values"])["logits"].float()
        return nn.functional.cross_entropy(logits, batch["labels"])
    loss: torch.Tensor = model(**batch)["loss"]
    return loss


def measured(
    day: Day, make: Callable[[], Any], item: dict[str, torch.Tensor], batch: int, **fields: Any
) -> tuple[dict[str, Any], Footprint]:
    """Train for some steps, and estimate the same step."""
    arguments = day.arguments(batch, **fields)
    precision = torch.bfloat16 if fields.get("bf16") else None
    plain = day.arguments(batch, **{key: value for key, value in fields.items() if key not in ("bf16", "tf32")})
    footprint = step_footprint(make, item, loss_of, plain, precision)
    rows = Ready(item, batch * day.steps)
    if "labels" in item:
        trainer: Any = RoadworkTrainer(model=make(), args=arguments, train_dataset=rows, quiet=True)
    else:
        trainer = ExploraTrainer(model=make(), args=arguments, train_dataset=rows, probe=lambda _: {}, quiet=True)
        trainer.evaluate = lambda *args, **kwargs: {}
    trainer.train()
    found: dict[str, Any] = trainer.pace.facts()
    del trainer
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found, footprint


def told(day: Day, what: str, batch: int, pace: dict[str, Any], footprint: Footprint, dtype: str) -> str:
    """One row about a step."""
    seconds = pace["step_s"]
    line = f"{what}, batch {batch}: {seconds * 1000:.0f} ms a step, {batch / seconds:,.0f} pictures/s"
    if day.gpu is not None:
        line += f", MFU {footprint.flops / seconds / day.gpu.peak_flops(dtype):.2f} of {dtype}"
    if "allocated" in pace["memory"]:
        real, said = pace["memory"]["allocated"], footprint.peak
        line += f"; memory {real / 1e9:.2f} GB, estimated {said / 1e9:.2f} ({said / real:.2f} times)"
        line += f", reserved {pace['memory']['reserved'] / 1e9:.2f} GB"
    return line


def steps(day: Day) -> Iterator[str]:
    supervised, unlabelled = (8, 8) if day.tiny else (64, 32)
    for name in day.shapes:
        for adapter in ("full", "lora"):
            make = partial(classifier, day, name, adapter)
            done = measured(day, make, pixels(day.size(name)), supervised, bf16=True)
            yield told(day, f"phase 1, {name}, {adapter}, bf16", supervised, *done, "bf16")
        for method in ("dinov2", "mae"):
            make = partial(objective, day, name, method)
            done = measured(day, make, crops(day.size(name), method), unlabelled, bf16=True)
            yield told(day, f"phase 4, {name}, {method}, bf16", unlabelled, *done, "bf16")


def precision(day: Day) -> Iterator[str]:
    name, batch = next(iter(day.shapes)), 8 if day.tiny else 64
    for dtype in ("fp32", "tf32", "bf16"):
        if dtype == "tf32" and not torch.cuda.is_available():
            continue
        fields = {dtype: True} if dtype != "fp32" else {}
        done = measured(day, lambda: classifier(day, name), pixels(day.size(name)), batch, **fields)
        yield told(day, f"phase 1, {name}, full, {dtype}", batch, *done, dtype)


def compiled(day: Day) -> Iterator[str]:
    name, batch = next(iter(day.shapes)), 8 if day.tiny else 64
    for wanted in (False, True):
        begin = time.perf_counter()
        done = measured(day, lambda: classifier(day, name), pixels(day.size(name)), batch, bf16=True,
                        torch_compile=wanted)  # fmt: skip
        took = time.perf_counter() - begin
        yield told(day, f"phase 1, {name}, full, bf16, torch_compile {wanted}", batch, *done, "bf16") + (
            f"; {took:.0f} s with the start"
        )


def loader(day: Day) -> Iterator[str]:
    from datasets import Dataset as Rows
    from datasets import Image as ImageFeature
    from PIL import Image

    name, count, batch = next(iter(day.shapes)), 64 if day.tiny else 1024, 8 if day.tiny else 64
    rng, cells = np.random.default_rng(0), []
    for _ in range(16):
        coarse = Image.fromarray(rng.integers(0, 256, (27, 48, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((683, 384), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        cells.append({"bytes": buffer.getvalue(), "path": None})
    rows = Rows.from_dict({"image": [cells[i % 16] for i in range(count)], "label": [i % 2 for i in range(count)]})
    rows = rows.cast_column("image", ImageFeature())
    cores = (1, 2) if day.tiny else (1, 2, 4, 8, 16)
    for place in ("workers", "device"):
        for workers in cores:
            settings = {"dataloader_num_workers": workers, "dataloader_prefetch_factor": 2}
            arguments = day.arguments(batch, bf16=torch.cuda.is_available(), **settings)
            trainer = RoadworkTrainer(
                model=classifier(day, name), args=arguments, train_dataset=rows, quiet=True, views_on=place,
                image_size=day.size(name),
            )  # fmt: skip
            trainer.train()
            wait = [row["data_wait"] for row in trainer.state.log_history if "data_wait" in row]
            seconds = trainer.pace.facts()["step_s"]
            yield (
                f"loader, {name}, bf16, views on {place}, {workers} workers: {batch / seconds:,.0f} pictures/s, "
                f"waiting {wait[-1]:.2f} of the time"
            )


def inference(day: Day) -> Iterator[str]:
    from natix_hf.bundle.inference import torch_forward

    device = default_device()
    for name in day.shapes:
        for dtype in ("float32", "bfloat16"):
            forward = torch_forward(classifier(day, name).eval().to(device), device, dtype)
            for batch in (1, 32):
                pictures = torch.randn(batch, 3, day.size(name), day.size(name))
                for _ in range(3):
                    forward(pictures)
                begin, rounds = time.perf_counter(), 3 if day.tiny else 30
                for _ in range(rounds):
                    forward(pictures)
                rate = rounds * batch / (time.perf_counter() - begin)
                yield f"inference, {name}, {dtype}, {batch} at once: {rate:,.0f} pictures/s"


def explora(day: Day) -> Iterator[str]:
    budget = ["phase4.max_steps=8", "phase4.probe_steps=4"] if day.tiny else ["phase4.max_steps=1500"]
    given = [f"data.source={day.data}", "phase4.objective=dinov2", "phase4.use_labeled_data=false", *budget]
    given += ["phase4.bf16=true"] if torch.cuda.is_available() else []
    run = day.scratch / "explora"
    took = command(["run", "gtsrb_roadwork", *given, "--phases", "4", "--run-dir", str(run)])
    found = read_manifest(run / PHASES[4].folder)["metrics"]
    yield (
        f"ExPLoRA, DINO objective, {found['steps']} steps on the photographs: probe AUROC {found['score_before']:.3f} "
        f"before, {found['best_score']:.3f} after, {found['pace']['step_s'] * 1000:.0f} ms a step, {took:.0f} s in all"
    )


def smoke(day: Day) -> Iterator[str]:
    name = next(iter(day.shapes))
    shape = ", ".join(f"{key}: {value}" for key, value in day.shapes[name].items() if key != "image_size")
    model = f"model.config={{model_type: dinov2, patch_size: {_PATCH}, {shape}}}"
    given = [f"data.source={day.data}", "model.backbone=null", model, f"model.image_size={day.size(name)}"]
    given += ["phase1.bf16=true"] if torch.cuda.is_available() else []
    took = command(["smoke", "gtsrb_roadwork", *given])
    yield f"natix-hf smoke, {name}, every phase of gtsrb_roadwork: {took:.0f} s"


def command(arguments: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "natix_hf", *arguments], check=True)
    return time.perf_counter() - begin


PARTS: dict[str, Callable[[Day], Iterator[str]]] = {
    "steps": steps,
    "precision": precision,
    "compile": compiled,
    "loader": loader,
    "inference": inference,
    "explora": explora,
    "smoke": smoke,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_day"))
    parser.add_argument("--data", default=str(_PHOTOGRAPHS), help="the photographs of gtsrb_roadwork")
    parser.add_argument("--again", action="store_true", help="run parts again that have left their file")
    parser.add_argument("--tiny", action="store_true", help="small models, few steps, no rows in RESULTS.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        day = Day(given.tiny, given.data, Path(scratch))
        print(device_line(), flush=True)
        for part in given.parts or PARTS:
            left = given.out / f"{part}.json"
            if left.is_file() and not given.again:
                print(f"{part}: done before, in {left}")
                continue
            begin, rows = time.perf_counter(), []
            for row in PARTS[part](day):
                print(f"  {row}", flush=True)
                rows.append(row)
            print(f"{part}: {time.perf_counter() - begin:.0f} s", flush=True)
            given.out.mkdir(parents=True, exist_ok=True)
            left.write_text(json.dumps({"card": day.card, "rows": rows}, indent=1), encoding="utf-8")
            if not given.tiny:
                record(f"gpu_day.py {part}, {day.card}", "; ".join(rows))


if __name__ == "__main__":
    main()
