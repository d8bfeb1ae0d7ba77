"""`MergeValidationCallback()` without an argument, in a plain `transformers.Trainer`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from datasets import Dataset
from facts import tells
from peft import AdaLoraConfig, LoraConfig, OFTConfig, PromptTuningConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from natix_hf.errors import MergeMismatchError, UsageError
from natix_hf.trainers.merge_validation import MERGED, UNMERGED, MergeValidationCallback

# PEFT 0.21 under transformers 5.23, not about what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
VIT = {key: value for key, value in TINY["vit"].items() if key != "model_type"} | {"image_size": 28}


def pictures(n: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Sorted by class, as many data sets are."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, 28, 28, generator=generator)
    return [{"pixel_values": image, "labels": int(i >= n // 2)} for i, image in enumerate(images)]


def vit(**config: Any) -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**VIT | {"initializer_range": 0.2} | config))


def lora(model: Any = None, **options: Any) -> Any:
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]} | options
    adapted = get_peft_model(vit() if model is None else model, LoraConfig(**settings))
    return stir(adapted)


@torch.no_grad()
def stir(model: Any) -> Any:
    """As after a longer training: every trained weight has moved, the second factor of LoRA too."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += (0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    return model


def trainer_of(model: Any, folder: Path, callback: Any = None, **options: Any) -> Trainer:
    datasets = {name: options.pop(name) for name in ("train_dataset", "eval_dataset") if name in options}
    others = {name: options.pop(name) for name in ("processing_class", "data_collator") if name in options}
    settings = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": []}
    arguments = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **settings | options)
    datasets = {"train_dataset": pictures(), "eval_dataset": pictures(40, 1)} | datasets
    return Trainer(model, arguments, callbacks=[callback or MergeValidationCallback()], **datasets, **others)


def proof_of(trainer: Trainer) -> dict[str, Any]:
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, MergeValidationCallback))
    assert callback.proof is not None
    return callback.proof


def is_plain(trainer: Trainer, kind: type[nn.Module]) -> bool:
    model: Any = trainer.model
    assert type(model) is kind and trainer.model_wrapped is model and trainer.callback_handler.model is model
    assert not any(type(module).__module__.startswith("peft.") for module in model.modules())
    return True


def test_modules_to_save(tmp_path: Path) -> None:
    """The case that was reported: a right merge was refused, and the Trainer was left with an empty PeftModel."""
    adapted = lora()
    head = "base_model.model.classifier.modules_to_save.default.weight"
    trainer = trainer_of(adapted, tmp_path, eval_strategy="epoch")
    trainer.train()
    proof = proof_of(trainer)
    assert proof["max_difference"] <= 1e-5 and proof["adapter_effect"] > 0.1 and proof["max_weight_difference"] <= 1e-6
    assert (proof["images"], proof["rows_from"], proof["merged_layers"]) == (32, "evaluation", 4)
    assert json.loads(json.dumps(proof)) == proof
    stored = AutoModelForImageClassification.from_pretrained(tmp_path / MERGED)
    assert is_plain(trainer, ViTForImageClassification)
    assert torch.equal(stored.classifier.weight, adapted.get_parameter(head))
    assert all(torch.equal(value, stored.state_dict()[name]) for name, value in trainer.model.state_dict().items())
    assert not list((tmp_path / MERGED).glob("adapter_*"))


def test_the_trainer_goes_on_with_the_plain_model(tmp_path: Path) -> None:
    adapted = lora()
    trainer = trainer_of(adapted, tmp_path, save_strategy="no")
    trainer.train()
    with torch.no_grad():
        images = torch.stack([row["pixel_values"] for row in pictures(40, 1)])
        wanted = adapted.eval()(pixel_values=images).logits.numpy()
    assert trainer.evaluate()["eval_loss"] > 0
    assert np.abs(trainer.predict(trainer.eval_dataset).predictions - wanted).max() <= 1e-5
    trainer.save_model(str(tmp_path / "again"))
    again = ViTForImageClassification.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in trainer.model.state_dict().items())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        "config.json", "model.safetensors", "training_args.bin"
    ]  # fmt: skip
    # Another training trains the plain model, with an optimizer of its own.
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved >= {"vit.layers.0.attention.q_proj.weight", "vit.layers.0.mlp.fc1.weight", "classifier.weight"}
    assert proof_of(trainer)["merged_layers"] == 0


@pytest.mark.parametrize(
    ("options", "source", "rows"),
    [({"eval_dataset": None}, "training", 12), ({"eval_dataset": {"a": pictures(5), "b": []}}, "evaluation", 5)],
    ids=["no evaluation set", "several"],
)
def test_where_the_rows_come_from(options: dict[str, Any], source: str, rows: int, tmp_path: Path) -> None:
    trainer = trainer_of(lora(), tmp_path, save_strategy="no", **options)
    trainer.train()
    proof = proof_of(trainer)
    assert (proof["rows_from"], proof["images"]) == (source, rows)


class _Counted(torch.utils.data.Dataset[Any]):
    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 101

    def __getitem__(self, row: int) -> dict[str, Any]:
        self.asked.append(row)
        return pictures()[row % 12]


def test_rows_are_spread(tmp_path: Path) -> None:
    rows = _Counted()
    trainer_of(lora(), tmp_path, MergeValidationCallback(rows=5), eval_dataset=rows, save_strategy="no").train()
    assert rows.asked == [0, 25, 50, 75, 100]


class _Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(pictures(7))


def test_rows_of_a_stream_are_its_first(tmp_path: Path) -> None:
    trainer = trainer_of(lora(), tmp_path, MergeValidationCallback(rows=5), eval_dataset=_Stream(), save_strategy="no")
    trainer.train()
    assert proof_of(trainer)["images"] == 5


def test_a_datasets_dataset_with_the_best_checkpoint_and_a_processor(tmp_path: Path) -> None:
    rows = Dataset.from_list([row | {"pixel_values": row["pixel_values"].numpy(), "name": "x"} for row in pictures()])
    trainer = trainer_of(
        lora(), tmp_path, train_dataset=rows, eval_dataset=rows, processing_class=ViTImageProcessor(),
        num_train_epochs=3, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="loss", greater_is_better=True,  # the first epoch is kept, not the last
        save_total_limit=1, gradient_accumulation_steps=2, activation_checkpointing=True,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_global_step < trainer.state.global_step
    best = load_file(Path(trainer.state.best_model_checkpoint) / "adapter_model.safetensors")
    assert torch.equal(trainer.model.classifier.weight, best["base_model.model.classifier.weight"])
    assert proof_of(trainer)["images"] == 12
    assert {"preprocessor_config.json", "config.json", "model.safetensors"} <= {
        p.name for p in (tmp_path / MERGED).iterdir()
    }
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-4)


def test_mixed_precision_does_not_blur_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 outputs would differ by 0.01 and more; the user's own setting holds again afterwards."""
    seen: list[str] = []
    _spoil(monkeypatch, lambda model: seen.append(torch.get_float32_matmul_precision()))
    torch.set_float32_matmul_precision("medium")
    try:
        trainer = trainer_of(lora(), tmp_path, bf16=True, save_strategy="no")
        trainer.train()
        assert seen == ["highest"] and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert proof_of(trainer)["max_difference"] <= 1e-5
    assert trainer.evaluate()["eval_loss"] > 0


def test_device_and_dtypes_are_kept(tmp_path: Path) -> None:
    """The file is float32, whatever the dtype of the model that was trained."""
    model = vit().to(torch.bfloat16)
    model.vit.layernorm.to(torch.float32)
    dtypes = {name: value.dtype for name, value in model.state_dict().items()}
    trainer = trainer_of(lora(model), tmp_path, bf16=True, save_strategy="no")
    trainer.train()
    assert {name: value.dtype for name, value in trainer.model.state_dict().items()} == dtypes
    assert {value.dtype for value in load_file(tmp_path / MERGED / "model.safetensors").values()} == {torch.float32}
    assert trainer.model.device == trainer.args.device and proof_of(trainer)["max_difference"] <= 1e-5


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (LoraConfig(r=4, target_modules="all-linear", use_rslora=True, lora_bias=True), 13),
        (LoraConfig(r=4, target_modules=["q_proj"], bias="lora_only", modules_to_save=["classifier", "layernorm"]), 2),
        (LoraConfig(r=4, target_modules=["projection", "q_proj"]), 3),  # the patch embedding, a convolution
        (LoraConfig(r=4, target_modules=["v_proj"], use_dora=True, modules_to_save=["classifier"]), 2),
        (OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj"], modules_to_save=["classifier"]), 2),
        (AdaLoraConfig(init_r=4, target_r=2, total_step=100, target_modules=["q_proj"]), 2),
    ],
    ids=["rslora", "biases", "patches", "dora", "oft", "adalora"],
)
def test_other_adapters(config: Any, layers: int, tmp_path: Path) -> None:
    trainer = trainer_of(stir(get_peft_model(vit(), config)), tmp_path, save_strategy="no", max_steps=1)
    trainer.train()
    proof = proof_of(trainer)
    assert proof["merged_layers"] == proof["weights_recomputed"] == layers and proof["adapter_effect"] > 1e-3
    assert is_plain(trainer, ViTForImageClassification)


def test_several_active_adapters_are_merged_together(tmp_path: Path) -> None:
    adapted = lora(modules_to_save=None)
    adapted.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj", "fc1"]))
    adapted.base_model.set_adapter(["default", "second"])
    trainer = trainer_of(stir(adapted), tmp_path, save_strategy="no")
    trainer.train()
    assert proof_of(trainer)["merged_layers"] == 6 and is_plain(trainer, ViTForImageClassification)


BERT = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WORDS = [{"input_ids": [2, 3 + i % 15, 4], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(12)]


@pytest.mark.parametrize("task", [None, "SEQ_CLS"])
def test_texts(task: str | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**BERT))
    targets = ["query", "word_embeddings"]
    adapted = lora(model, task_type=task, target_modules=targets)
    trainer = trainer_of(adapted, tmp_path, train_dataset=WORDS, eval_dataset=WORDS, save_strategy="no")
    trainer.train()
    assert proof_of(trainer)["weights_recomputed"] == 2 and is_plain(trainer, BertForSequenceClassification)


def test_an_encoder_and_decoder_with_tied_embeddings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    adapted = lora(T5ForConditionalGeneration(config), target_modules=["q", "v"], modules_to_save=None)
    rows = [{"input_ids": [2, 3 + i % 15], "labels": [4, 5]} for i in range(12)]
    trainer = trainer_of(adapted, tmp_path, train_dataset=rows, eval_dataset=rows, save_strategy="no")
    trainer.train()
    assert proof_of(trainer)["merged_layers"] == 6 and is_plain(trainer, T5ForConditionalGeneration)


@pytest.mark.parametrize("kind", [ViTModel, BertModel])
def test_a_base_model_without_its_pooler(kind: Any, tmp_path: Path) -> None:
    """`from_pretrained` would add one, with random weights."""

    class Summed(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            inputs.pop("labels", None)
            outputs = model(**inputs)
            loss = outputs.last_hidden_state.square().mean()
            return (loss, outputs) if return_outputs else loss

    config = ViTConfig(**VIT) if kind is ViTModel else BertConfig(**BERT)
    rows = pictures() if kind is ViTModel else WORDS
    adapted = lora(kind(config, add_pooling_layer=False), modules_to_save=None,
                   target_modules=["q_proj"] if kind is ViTModel else ["query"])  # fmt: skip
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], max_steps=1, remove_unused_columns=False)
    trainer = Summed(adapted, arguments, train_dataset=rows, callbacks=[MergeValidationCallback])
    trainer.train()
    assert is_plain(trainer, kind) and proof_of(trainer)["rows_from"] == "training"


def _refused(trainer: Trainer) -> MergeMismatchError:
    with pytest.raises(MergeMismatchError) as refused:
        trainer.train()
    return refused.value


def _spoil(monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    """Of every model that is saved as a whole."""
    right = PreTrainedModel.save_pretrained

    @torch.no_grad()
    def save(self: Any, folder: Any, **kwargs: Any) -> None:
        fault(self)
        right(self, folder, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)


def _one_entry(model: Any) -> None:
    model.vit.layers[0].attention.q_proj.weight[1, 5] += 1e-3


def _head_lost(model: Any) -> None:
    nn.init.normal_(model.classifier.weight)


def _base_touched(model: Any) -> None:
    model.vit.layernorm.bias += 1e-7


def _nan(model: Any) -> None:
    model.vit.layers[1].attention.q_proj.bias[0] = float("nan")


@pytest.mark.parametrize(
    ("fault", "says"),
    [(_one_entry, "layers.0.attention.q_proj.weight"), (_head_lost, "classifier.weight"),
     (_base_touched, "vit.layernorm.bias"), (_nan, "q_proj.bias holds NaN")],
)  # fmt: skip
def test_a_refused_merge_leaves_the_trainer_usable(
    fault: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = lora()
    with torch.no_grad():  # the input of `_one_entry` is 0 in every row
        norm = adapted.get_base_model().vit.layers[0].layernorm_before
        norm.weight[5] = norm.bias[5] = 0.0
    trainer = trainer_of(adapted, tmp_path, save_strategy="no")
    _spoil(monkeypatch, fault)
    error = _refused(trainer)
    assert tells(error, says, tmp_path / MERGED, "max_difference")
    if fault is _one_entry:
        assert tells(error, "differs by 0.001", "tolerance 0.0001")
        assert float(str(error).partition("max_difference ")[2].partition(",")[0]) < 1e-5
    kept = load_file(tmp_path / UNMERGED)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert kept.keys() == trained.keys() and all(torch.equal(kept[name], p) for name, p in trained.items())
    assert trainer.model is adapted and trainer.evaluate()["eval_loss"] > 0
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_a_wrong_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = LoraLinear.get_delta_weight
    monkeypatch.setattr(LoraLinear, "get_delta_weight", lambda self, adapter: 2 * right(self, adapter))
    assert tells(_refused(trainer_of(lora(), tmp_path, save_strategy="no")), "q_proj.weight", "max_weight_difference")


def test_an_adapter_that_was_left_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / MERGED).mkdir()
    (tmp_path / MERGED / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert tells(_refused(trainer_of(lora(), tmp_path, save_strategy="no")), "adapter_config.json", tmp_path / MERGED)


class _Quantised(ViTForImageClassification):
    hf_quantizer = SimpleNamespace(is_trainable=True)


def _prompt() -> Any:
    model = BertForSequenceClassification(BertConfig(**BERT))
    return get_peft_model(model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))


def _without_peft_model() -> Any:
    model = vit()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    return model


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_prompt, ["prompt_tuning", "cannot be merged"]),
        (_without_peft_model, ["ViTForImageClassification", "get_peft_model"]),
        (lambda: lora(_Quantised(ViTConfig(**VIT))), ["quantised", "bfloat16"]),
        (lambda: get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"])), ["Sequential"]),
    ],
    ids=["prompt", "no PeftModel", "quantised", "no transformers model"],
)
def test_what_cannot_be_proven_is_refused_before_training(make: Any, says: list[str], tmp_path: Path) -> None:
    trainer = trainer_of(make(), tmp_path, save_strategy="no", remove_unused_columns=False)
    with pytest.raises(UsageError) as refused:
        trainer.train()
    assert tells(refused.value, *says) and trainer.state.global_step == 0


def test_arguments() -> None:
    with pytest.raises(UsageError) as refused:
        MergeValidationCallback(rows=0)
    assert tells(refused.value, "rows is 0", "at least 1")
    with pytest.raises(UsageError) as alone:
        MergeValidationCallback().on_train_begin(None, None, None)  # type: ignore[arg-type]
    assert tells(alone.value, "Trainer")


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python of docs/merge.md runs as it stands."""
    page = Path(__file__).parents[2] / "docs" / "merge.md"
    code = page.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {})
    name, outputs, weights = capsys.readouterr().out.split("\n")[-2].split()
    assert name == "ViTForImageClassification" and float(outputs) < 1e-4 and float(weights) < 1e-5
    assert (tmp_path / "out" / MERGED / "model.safetensors").is_file()
