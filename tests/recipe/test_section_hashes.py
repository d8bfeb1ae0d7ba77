"""Hashes of sections as the first version made them: a finished run stays current under every later one."""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from natix_hf.provenance.files import json_sha256
from natix_hf.recipe import load_recipe, packaged_recipes
from natix_hf.section import LATER, Section

STORED = Path(__file__).with_name("section_hashes.json")
SECTIONS = ("data", "model", *(f"phase{number}" for number in range(1, 7)), "data.slices", "data.exam")
# Overrides of gtsrb_roadwork: keys of ours and of TrainingArguments, of every type, with and without a default here.
OVERRIDES: dict[str, list[str]] = {
    "data": ["data.exam=true", "data.exam_views=8", "data.augment=challenge", "data.slices=[a]", "data.source=folder"],
    "model": ["model.backbone=null", "model.config={model_type: vit, layer_norm_eps: 1e-6}"],
    "numbers": ["phase1.num_train_epochs=3", "phase1.logging_steps=7", "phase1.warmup_steps=5", "phase1.seed=3"],
    "enums": ["phase1.eval_strategy=no", "phase1.save_strategy=no", "phase1.lr_scheduler_type=linear"],
    "nulls": ["phase1.report_to=null", "phase1.save_total_limit=null", "phase1.ddp_find_unused_parameters=null"],
    "no score": ["phase1.metric_for_best_model=null", "phase1.load_best_model_at_end=false"],
    "lists": ["phase1.report_to=[tensorboard]", "phase4.unfreeze_blocks=[0, -1]", "phase4.unlabelled=[folder, x/y]"],
    "others": [
        "phase1.gradient_accumulation_steps=4", "phase1.eval_steps=5", "phase1.optim=adafactor", "phase1.bf16=true",
        "phase1.lr_scheduler_kwargs={num_cycles: 1}", "phase1.logging_strategy=no", "phase3.max_steps=9",
    ],
    "epochs": ["phase4.max_steps=-1", "phase4.num_train_epochs=5", "phase4.max_grad_norm=1"],
    "stage": ["phase4.supervised={adapter: lora, adapter_options: {r: 4}, num_train_epochs: 3, adam_beta2: 0.9}"],
    "gate": ["phase3.method=confidnet", "phase3.learning_rate=1", "phase5.risk.alpha=0.1", "phase6.fold=none"],
    "hub": ["phase6.push=true", "phase6.repo_id=org/name", "phase6.tag=v1"],
}  # fmt: skip


def hashes(reference: str, overrides: list[str]) -> dict[str, str]:
    """One short hash a section: of what a manifest records and of what decides whether a run is current."""
    recipe = load_recipe(reference, overrides)
    return {name: json_sha256([recipe.section(name), recipe.section_sha256(name)])[:16] for name in SECTIONS}


def cases() -> dict[str, Any]:
    packaged: dict[str, tuple[str, list[str]]] = {path.stem: (path.stem, []) for path in packaged_recipes()}
    return packaged | {f"with {name}": ("gtsrb_roadwork", given) for name, given in OVERRIDES.items()}


def make_folder() -> None:
    """`folder` in the working directory: a local folder counts with what it holds."""
    Path("folder").mkdir()
    Path("folder", "file").write_text("text", encoding="utf-8")


@pytest.mark.parametrize("case", json.loads(STORED.read_text(encoding="utf-8")))
def test_a_finished_run_stays_current(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder()
    assert hashes(*cases()[case]) == json.loads(STORED.read_text(encoding="utf-8"))[case]


def test_a_later_key_at_its_default_changes_no_hash() -> None:
    @dataclass(frozen=True)
    class First(Section):
        a: int = 1

    @dataclass(frozen=True)
    class Second(First):
        b: int = field(default=2, metadata=LATER)
        c: list[int] = field(default_factory=list, metadata=LATER)

    assert Second().plain() == First().plain() == {"a": 1}
    assert Second(b=3, c=[4]).plain() == {"a": 1, "b": 3, "c": [4]}
    assert Second.build({"b": 3}) == Second(b=3) and Second().mapping() == {"a": 1, "b": 2, "c": []}


if __name__ == "__main__":  # after a change that must make finished runs stale, such as a new key without LATER
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        make_folder()
        lines = [f' "{name}": {json.dumps(hashes(*case))}' for name, case in cases().items()]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
