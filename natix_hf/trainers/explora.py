"""`ExploraTrainer`: self-supervised training of a backbone, with probes and a stop on collapse."""

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

from natix_hf.data.asked import Asked, ask
from natix_hf.data.config import Augment, AugmentConfig, ViewsOn
from natix_hf.data.plain import is_plain, rows_of
from natix_hf.data.rows import Rows
from natix_hf.errors import DataError, RunError, UsageError, VerificationError, cut
from natix_hf.models.classifier import build_decoder, load_backbone, save_model
from natix_hf.ssl.collapse import collapse_reason
from natix_hf.ssl.objective import Objective
from natix_hf.ssl.objectives import takes_decoder
from natix_hf.trainers.arguments import given_or_default, require_a_batch
from natix_hf.trainers.explora_config import ExploraConfig
from natix_hf.trainers.merge_validation import MergeValidationCallback
from natix_hf.trainers.pretraining import Pretraining, make_pretraining
from natix_hf.trainers.progress import SELF_SUPERVISED
from natix_hf.trainers.stage import first_images
from natix_hf.trainers.start import start_backbone
from natix_hf.trainers.stream import StreamTrainer

_LOGS_IN_A_ROW = 3
_WHERE = "ExploraTrainer"
MERGED = "merged"
UNTRAINED = "untrained.safetensors"
Probe = Callable[[nn.Module], dict[str, float]]


class ExploraTrainer(StreamTrainer):
    """Adapt a pretrained backbone to unlabelled images (ExPLoRA, Khanna et al., arXiv:2406.10973).

    A self-supervised objective trains LoRA on the queries and values of most blocks. The blocks `unfreeze_blocks`, the
    norms and the cls token are trained in full. When training ends, LoRA is merged, and the merged backbone is
    compared with the trained one. Evaluations probe the current backbone. With labelled rows the best backbone by
    linear probe is kept, otherwise the last one.

    Args:
        model (`str`, `Path` or [`~transformers.PreTrainedModel`]): Hub id or folder of a pretrained ViT, DINOv2 or
            DINOv3. Or a model, whose backbone is trained in place. Or an `Objective` that already holds a backbone;
            then `probe` is needed too.
        objective (`str`, *optional*): `"dinov2"`, `"mae"`, `"diet"`, or another name in
            `natix_hf.ssl.objectives.OBJECTIVES`. `None` takes `"dinov2"` for DINOv2 and DINOv3, and `"mae"` for a
            plain ViT.
        train_dataset (`datasets.Dataset`): Rows with an image column, or a list of such rows. Training uses no labels.
        args ([`~transformers.TrainingArguments`] or `dict`, *optional*): A dict overrides the project's defaults:
            2000 steps at learning rate 3e-4 (cosine, 10% warm-up), weight decay 0.04, batches of 64. `None` uses them.
            `TrainingArguments` are used unchanged, except that `probe_steps` decides when to evaluate and save.
        eval_dataset (`datasets.Dataset` or `dict`, *optional*): Labelled rows on which a probe is scored. The probe is
            fitted on the labels of `train_dataset`. A dict `{"train": ..., "test": ...}` gives rows for both.
        rank (`int`, defaults to 64): Rank of LoRA.
        alpha (`float`, *optional*): LoRA is scaled by `alpha / rank`. `None` sets it to `rank`.
        unfreeze_blocks (sequence of `int`, defaults to `(-1,)`): Blocks to train in full, without LoRA. -1 is the
            last block.
        trainable (`str`, defaults to `"explora"`): `"explora"`; `"blocks"` for only `unfreeze_blocks`; or `"all"` for
            plain self-supervised pre-training.
        settings (`dict`, *optional*): Settings of the objective, such as `{"mae": MaeConfig(mask_ratio=0.6)}`.
        probe_steps (`int`, defaults to 250): Steps between two probes. 0 makes no probes and keeps the last backbone.
        probe_rows (`int`, defaults to 4000): Largest number of rows of each dataset that a probe reads.
        augment (`AugmentConfig`, *optional*): Crop shape and flips for `"mae"` and `"diet"`, and rotation and erasing
            for `"diet"`.
        views_on (`str`, defaults to `"auto"`): Where training views are made: by `"workers"`, a batch at once on the
            `"device"`, or there if it is a GPU.
        processing_class (*optional*): Image processor with a square size. `None` makes one for the model.
        image_size (`int`, *optional*): Side of the square pictures in px. `None` takes the model's own, at most 224.
        image_column (`str`, defaults to `"image"`): Name of the image column.
        label_column (`str`, defaults to `"label"`): Name of the label column.
        probe (`Callable`, *optional*): Computes figures of `model.backbone()` if `model` is an `Objective`. It is
            called on one rank, and the other ranks get its figures.
        kwargs: Further arguments of [`~transformers.Trainer`], and `train_sampler` and `quiet` of `BaseTrainer`.

    Attributes:
        proof (`dict`): Figures of the merge. `None` until training has ended.

    Raises:
        [`UsageError`], [`RecipeError`]: If the model or a setting is invalid.
        [`DataError`]: If a column is missing, a label is not 0 or 1, a probe has only one label, or an image cannot be
            read.
        [`RunError`]: In training, if the features collapse (`collapse_reason`) or the loss becomes NaN or infinite.
        [`MergeMismatchError`]: At the end of training, if the merged backbone differs from the trained one.

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
        views_on: ViewsOn = "auto",
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
            with arguments.main_process_first(desc="images"):  # rank 0 decodes, the other ranks read its cache
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
                views_on=views_on,
            )
            given = dict(self._parts.given)
            probe = given.pop("probe")
        super().__init__(args=arguments, processing_class=processing_class, **given, **kwargs)
        trained: Any = self.model
        self.objective: Objective = trained
        self._probe: Probe = probe
        self._figures: dict[str, float] = {}
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
        """Figures of the comparison of the merged backbone with the trained one. None until training has ended."""
        return self._merge.proof if self._merge is not None else None

    def merged(self) -> PreTrainedModel:
        """Load the plain merged backbone from `<output_dir>/merged`, in evaluation mode.

        Returns:
            [`~transformers.PreTrainedModel`]: The backbone without an adapter, in float32 on the CPU.

        Raises:
            [`UsageError`]: If this trainer has not trained it yet.
        """
        folder = Path(str(self.args.output_dir)) / MERGED
        if self._parts is None or self.state.global_step == 0 or not (folder / "config.json").is_file():
            raise UsageError(f"{_WHERE}: call train() first, then merged()")
        backbone = load_backbone(folder)
        backbone.eval()
        return backbone

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, merge LoRA, and compare the merged backbone with the trained one. See `BaseTrainer.train`."""
        if self.proof is not None:
            raise UsageError(f"{_WHERE} has already merged its model: make a new trainer from merged() to train on")
        if resume_from_checkpoint:
            self.args.eval_on_start = False
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        self.accelerator.wait_for_everyone()  # the other ranks read the backbone that rank 0 has written
        return result

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the merged backbone and its processor. During training, save the trained tensors."""
        if _internal_call or self.state.global_step == 0 or self._parts is None:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            save_model(Path(str(output_dir or self.args.output_dir)), self.merged(), self.processing_class)

    def _save_merged(self, merged: PreTrainedModel) -> Path:
        folder = Path(str(self.args.output_dir)) / MERGED
        save_model(folder, merged, self.processing_class)
        return folder

    def _rows(self, train_dataset: Any, eval_dataset: Any) -> tuple[Rows, tuple[Asked, Asked] | None]:
        """Read the images, and the labelled pictures on which a probe is fitted and scored."""
        image_column, label_column = self._columns
        if not is_plain(train_dataset, image_column):
            raise DataError(f"{_WHERE}: train_dataset needs an image column {cut(image_column)}")
        images = rows_of(train_dataset, "train", image_column, None)
        if eval_dataset is None:
            return images, None
        fit, score = train_dataset, eval_dataset
        if isinstance(eval_dataset, dict):
            if set(eval_dataset) != {"train", "test"}:
                raise DataError(
                    f"{_WHERE}: eval_dataset has {', '.join(eval_dataset)}: give a dict of train and test, or rows"
                )
            fit, score = eval_dataset["train"], eval_dataset["test"]
        found = []
        for rows, role in ((fit, "train"), (score, "eval")):
            found.append(rows_of(rows, role, image_column, label_column))
            if len(set(found[-1].labels.tolist())) < 2:
                raise DataError(f"{_WHERE}: the {role} rows of the probe have only one label, they need both labels")
        return images, (ask(found[0]), ask(found[1]))

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

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name the parameters with weight decay. The objective may spare some beside biases and norms."""
        spared = self.objective.without_decay
        return [name for name in super().get_decay_parameter_names(model) if name.split(".")[-1] not in spared]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log figures, add those of the objective for the last batch, and stop training if they show a collapse."""
        if "loss" in logs:
            logs |= {name: round(float(value), 6) for name, value in self._figures.items()}
            # A single batch may look collapsed, and a new head is flat for some steps. Several logs in a row count.
            before = [row for row in self.state.log_history if "loss" in row]
            latest = [*before, logs][-_LOGS_IN_A_ROW:]
            if len(latest) == _LOGS_IN_A_ROW and all(collapse_reason(row) is not None for row in latest):
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
                "lower phase4.learning_rate, or use another phase4.objective"
            )

    def save_extra(self, checkpoint: Path) -> None:
        super().save_extra(checkpoint)
        save_file(self.objective.untrained_state(), checkpoint / UNTRAINED)

    def _load_weights(self, checkpoint: Path, model: nn.Module | None) -> None:
        super()._load_weights(checkpoint, model)
        try:
            state = load_file(checkpoint / UNTRAINED)
        except (OSError, SafetensorError) as error:
            raise VerificationError(f"{checkpoint / UNTRAINED} cannot be loaded: {error}") from None
        self.objective.load_untrained_state(state)


class _Steps(TrainerCallback):
    """Tell the objective about optimizer steps, set its weight decay, and probe after the last step."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.on_step_begin(state.global_step, state.max_steps)
        decay = self.objective.weight_decay(state.global_step, state.max_steps, args.weight_decay)
        # Trainer puts biases and norms into a second group without decay, which stays unchanged.
        kwargs["optimizer"].param_groups[0]["weight_decay"] = decay

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.on_gradients(state.global_step, state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.on_step_end(state.global_step, state.max_steps)
        if state.global_step >= state.max_steps:  # probe at least here, so that no collapsed backbone is kept
            control.should_evaluate = True
