"""`ExploraTrainer`: self-supervised training of a backbone, probed as it goes, stopped when it collapses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from natix_hf.data.config import Augment, AugmentConfig
from natix_hf.data.plain import is_plain, rows_of
from natix_hf.data.rows import Rows
from natix_hf.errors import DataError, RunError, UsageError, VerificationError
from natix_hf.models.classifier import build_decoder, load_backbone, save_model
from natix_hf.ssl.collapse import collapse_reason
from natix_hf.ssl.objective import Objective
from natix_hf.ssl.objectives import takes_decoder
from natix_hf.trainers.arguments import given_or_default, require_a_batch
from natix_hf.trainers.base import BaseTrainer
from natix_hf.trainers.explora_config import ExploraConfig
from natix_hf.trainers.merge_validation import MergeValidationCallback
from natix_hf.trainers.pretraining import Pretraining, make_pretraining
from natix_hf.trainers.progress import SELF_SUPERVISED
from natix_hf.trainers.stage import first_images
from natix_hf.trainers.start import start_backbone

_LOGS_IN_A_ROW = 3
_WHERE = "ExploraTrainer"
MERGED = "merged"
UNTRAINED = "untrained.safetensors"
Probe = Callable[[nn.Module], dict[str, float]]


class ExploraTrainer(BaseTrainer):
    """Adapt a pretrained backbone to unlabelled images (ExPLoRA, Khanna et al., arXiv 2406.10973).

    LoRA on the queries and values of most blocks, and whole blocks, norms and cls token, are trained by a
    self-supervised objective; then LoRA is merged and the merged backbone is proven to answer as the trained one. An
    evaluation is a probe of the backbone that would be kept; with labels the best one by linear probe is kept, without
    labels the last one.

    Args:
        model (`str`, `Path` or `PreTrainedModel`): a Hub id or folder of a pretrained ViT or DINOv2, or a model, whose
            backbone is trained in place; or an `Objective`, made around one before.
        objective (`str`, *optional*): "dinov2" or "mae", or another name of `natix_hf.ssl.objectives.OBJECTIVES`;
            None: dinov2 for the DINOv2 family, mae for a plain ViT.
        train_dataset (`datasets.Dataset`): with an image column, or a list of such rows. Labels are not trained on.
        args (`TrainingArguments` or `dict`, *optional*): a dict overrides the project's defaults, None takes them:
            2000 steps at learning rate 3e-4 (cosine, 10% warm-up), weight decay 0.04, batches of 64.
            `TrainingArguments` are taken as they are, but that `probe_steps` decides when to evaluate and save.
        eval_dataset (`datasets.Dataset`, *optional*): labelled rows that a probe is scored on. It is fitted on the
            labels of `train_dataset`, or, where this is a dict {"train": ..., "test": ...}, on those of "train".
        rank (`int`): r of LoRA.
        alpha (`float`, *optional*): LoRA is scaled by alpha / rank; None: alpha = rank.
        unfreeze_blocks (sequence of `int`): blocks trained as they are, without LoRA; -1 is the last.
        trainable (`str`): "explora"; "blocks", those blocks alone; or "all", plain self-supervised pre-training.
        settings (`dict`, *optional*): sections of the objective, as `{"mae": MaeConfig(mask_ratio=0.6)}`.
        probe_steps (`int`): steps between two probes; 0: none, the last backbone is kept.
        probe_rows (`int`): rows of each dataset that a probe reads at most.
        augment (`AugmentConfig`, *optional*): crop shape and flips for "mae".
        processing_class (*optional*): image processor with a square size; None: one is made for the model.
        image_size (`int`, *optional*): px of the square pictures; None: the model's own, at most 224.
        image_column, label_column (`str`): names of the columns.
        probe: figures of `model.backbone()` for a `model` that is an `Objective`; called on one rank, the others get
            its figures.
        kwargs: further arguments of `transformers.Trainer`, and `train_sampler` and `quiet` of `BaseTrainer`.

    Attributes:
        proof: figures of the merge, once training has ended; None before, and on other ranks.

    Raises:
        UsageError, RecipeError: the model or a setting cannot be right. DataError: as `RoadworkTrainer`.
        RunError (in training): the representation has collapsed (`collapse_reason`), or the loss became NaN.
        MergeMismatchError (at the end of training): the merged backbone does not answer as the trained one did.

    Example:
        ```python
        from natix_hf import ExploraTrainer, RoadworkTrainer

        trainer = ExploraTrainer("facebook/dinov2-base", objective="dinov2", train_dataset=images)
        trainer.train()
        trainer.merged().save_pretrained("adapted")
        RoadworkTrainer("adapted", train_dataset=rows["train"], eval_dataset=rows["test"]).train()
        ```
    """

    columns = SELF_SUPERVISED

    def __init__(
        self,
        model: Any = None,
        objective: str | None = None,
        train_dataset: Any = None,
        args: TrainingArguments | dict[str, Any] | None = None,
        *,
        eval_dataset: Any = None,
        rank: int = 64,
        alpha: float | None = None,
        unfreeze_blocks: Sequence[int] = (-1,),
        trainable: Literal["explora", "blocks", "all"] = "explora",
        settings: dict[str, Any] | None = None,
        probe_steps: int = 250,
        probe_rows: int = 4000,
        augment: Augment | None = None,
        processing_class: Any = None,
        image_size: int | None = None,
        image_column: str = "image",
        label_column: str = "label",
        probe: Probe | None = None,
        **kwargs: Any,
    ) -> None:
        self._parts: Pretraining | None = None
        self._merge: MergeValidationCallback | None = None
        arguments = given_or_default(args, ExploraConfig().training_fields(), _WHERE)
        given = {"model": model, "train_dataset": train_dataset, "eval_dataset": eval_dataset}
        if probe is None:
            self._columns = (image_column, label_column)
            config = ExploraConfig(
                objective=objective, trainable=trainable, rank=rank, alpha=alpha, probe_steps=probe_steps,
                unfreeze_blocks=list(unfreeze_blocks), probe_rows=probe_rows,
            )  # fmt: skip
            backbone, processing_class, source = start_backbone(
                model, processing_class, image_size, arguments.seed, _WHERE
            )
            decoder = build_decoder(source) if source is not None and takes_decoder(objective) else None
            with arguments.main_process_first(desc="images"):  # the others read what rank 0 has decoded
                images, labelled = self._rows(train_dataset, eval_dataset)
            require_a_batch(arguments, len(images), _WHERE)
            self._parts = make_pretraining(
                backbone,
                processing_class,
                images,
                labelled,
                config,
                AugmentConfig() if augment is None else augment,
                arguments,
                decoder,
                settings,
            )
            given = dict(self._parts.given)
            probe = given.pop("probe")
        super().__init__(args=arguments, processing_class=processing_class, **given, **kwargs)
        trained: Any = self.model
        self.objective: Objective = trained
        self._probe: Probe = probe
        self._figures: dict[str, float] = {}
        self._suspicious = 0
        self.add_callback(_Steps(self.objective))
        if self._parts is not None:
            pictures = self._parts.pictures
            self._merge = MergeValidationCallback(
                model=self.objective.backbone(),
                images=lambda: first_images(pictures),
                save=self._save_merged,
                load=load_backbone,
            )
            self.add_callback(self._merge)

    @property
    def proof(self) -> dict[str, Any] | None:
        """Figures of the proof that the merged backbone answers as the trained one did."""
        return self._merge.proof if self._merge is not None else None

    def merged(self) -> PreTrainedModel:
        """Return the plain merged backbone, read back from `<output_dir>/merged`, in evaluation mode.

        Raises:
            UsageError: it has not been trained by this trainer.
        """
        folder = Path(str(self.args.output_dir)) / MERGED
        if self._parts is None or self.state.global_step == 0 or not (folder / "config.json").is_file():
            raise UsageError(f"{_WHERE}: call train() first, then merged()")
        backbone = load_backbone(folder)
        backbone.eval()
        return backbone

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, merge and prove. See `BaseTrainer.train`."""
        if self.proof is not None:
            raise UsageError(f"{_WHERE} has merged what it trained: make a new one to train on from merged()")
        if resume_from_checkpoint:
            self.args.eval_on_start = False
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        self.accelerator.wait_for_everyone()  # the other ranks read the backbone that the first has written
        return result

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the merged backbone and its processor; while training, what is trained."""
        if _internal_call or self.state.global_step == 0 or self._parts is None:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            save_model(Path(str(output_dir or self.args.output_dir)), self.merged(), self.processing_class)

    def _save_merged(self, merged: PreTrainedModel) -> Path:
        folder = Path(str(self.args.output_dir)) / MERGED
        save_model(folder, merged, self.processing_class)
        return folder

    def _rows(self, train_dataset: Any, eval_dataset: Any) -> tuple[Rows, tuple[Rows, Rows] | None]:
        """The images, and the labelled rows to fit a probe on and to score it on."""
        image_column, label_column = self._columns
        if not is_plain(train_dataset, image_column):
            raise DataError(f"{_WHERE}: train_dataset needs an image column {image_column!r}")
        images = rows_of(train_dataset, "train", image_column, None)
        if eval_dataset is None:
            return images, None
        fit, score = train_dataset, eval_dataset
        if isinstance(eval_dataset, dict):
            if set(eval_dataset) != {"train", "test"}:
                raise DataError(f"{_WHERE}: eval_dataset has {', '.join(eval_dataset)}: give train and test, or rows")
            fit, score = eval_dataset["train"], eval_dataset["test"]
        found = []
        for rows, role in ((fit, "train"), (score, "eval")):
            found.append(rows_of(rows, role, image_column, label_column))
            if len(set(found[-1].labels.tolist())) < 2:
                raise DataError(f"{_WHERE}: the {role} rows of a probe need both labels")
        return images, (found[0], found[1])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        outputs = model(**inputs)
        self._figures = {name: value for name, value in outputs.items() if name != "loss"}
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objective's own figures, of the last batch, and stop training on a collapse that they show."""
        if "loss" in logs:
            logs |= {name: round(float(value), 6) for name, value in self._figures.items()}
            # One batch may look alike, and a fresh head is flat for some steps: several in a row do not.
            self._suspicious = self._suspicious + 1 if collapse_reason(logs) is not None else 0
            if self._suspicious >= _LOGS_IN_A_ROW:
                self._require_no_collapse(logs)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.is_in_train:
            self._require_finite_loss()
        found: list[Any] = [self._probe(self.objective.backbone()) if self.is_world_process_zero() else None]
        figures: dict[str, float] = broadcast_object_list(found)[0] if self.args.world_size > 1 else found[0]
        self._require_no_collapse(figures)
        metrics = {f"eval_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _require_no_collapse(self, figures: dict[str, float]) -> None:
        reason = collapse_reason(figures)
        if reason is not None:
            raise RunError(
                f"self-supervised training has collapsed at step {self.state.global_step}: {reason}; "
                "lower phase4.learning_rate, or take the other phase4.objective"
            )

    def save_extra(self, checkpoint: Path) -> None:
        save_file(self.objective.untrained_state(), checkpoint / UNTRAINED)

    def _load_weights(self, checkpoint: Path, model: nn.Module | None) -> None:
        super()._load_weights(checkpoint, model)
        try:
            state = load_file(checkpoint / UNTRAINED)
        except (OSError, SafetensorError) as error:
            raise VerificationError(f"{checkpoint / UNTRAINED} cannot be loaded: {error}") from None
        self.objective.load_untrained_state(state)


class _Steps(TrainerCallback):
    """Tell the objective about optimizer steps, set the weight decay that it wants, and probe the last step too."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.on_step_begin(state.global_step, state.max_steps)
        decay = self.objective.weight_decay(state.global_step, state.max_steps, args.weight_decay)
        # Trainer gives biases and norms a second group, without decay: it stays without.
        kwargs["optimizer"].param_groups[0]["weight_decay"] = decay

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.on_gradients(state.global_step, state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.on_step_end(state.global_step, state.max_steps)
        if state.global_step >= state.max_steps:  # without any other probe too: nothing collapsed is kept
            control.should_evaluate = True
