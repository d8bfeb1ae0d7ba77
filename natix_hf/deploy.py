"""From a trained classifier to a bundle in one call: threshold, calibration, folding, files and checks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import nn
from transformers import PreTrainedModel

from natix_hf.bundle.build import build_bundle
from natix_hf.bundle.licences import LICENCES, OTHER
from natix_hf.bundle.policy import Fold, Policy
from natix_hf.bundle.push import REPO_PLACEHOLDER
from natix_hf.calibration.temperature import Method
from natix_hf.data.asked import Asked, ask
from natix_hf.data.plain import rows_of
from natix_hf.data.views import AskedViews
from natix_hf.errors import DataError, UsageError, cut
from natix_hf.labels import names_in
from natix_hf.metrics import select_threshold
from natix_hf.metrics.table import told_metrics
from natix_hf.models.architectures import architecture_of
from natix_hf.provenance.hub import is_repo_id
from natix_hf.provenance.manifest import git_state, package_versions
from natix_hf.report.metadata import card_metadata, told_licence
from natix_hf.report.reading import in_code
from natix_hf.resources import resource_folder
from natix_hf.results.answers import compute_answers, save_candidate
from natix_hf.results.calibration import fit_on
from natix_hf.results.card_figures import table_rows
from natix_hf.results.evaluation import Evaluation, evaluate

if TYPE_CHECKING:
    from natix_hf.bundle.load import Bundle
    from natix_hf.trainers.roadwork import RoadworkTrainer

_TEMPLATE = "trained.md.jinja"
_COMPARED = 50  # pictures on which the bundle is compared with the trained model
_RESAMPLES = 1000


def bundle_of(
    trainer: RoadworkTrainer,
    folder: str | Path,
    eval_dataset: Any = None,
    test_dataset: Any = None,
    *,
    group_by: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    target_prior: float | None = None,
    calibration: Method = "temperature",
    fold: Fold = "decision",
    model_name: str = "A yes/no image classifier",
    license: str | None = None,
) -> Bundle:
    """Build a bundle from a classifier that a [`RoadworkTrainer`] has trained.

    The decision threshold (largest MCC) and the calibration are fitted on the evaluation rows. Their figures on the
    same rows are optimistic, so pass test rows if you want figures to publish. A recipe run does more: it makes
    leak-free splits, a gate and a guarantee. The bundle's answers have the names in the trainer's model; the subnet's
    official miner reads the label `Roadwork` only.

    Args:
        trainer ([`RoadworkTrainer`]): The trainer, after `train()`.
        folder (`str` or `Path`): The bundle folder to create. It must not exist.
        eval_dataset (`datasets.Dataset`, *optional*): Labelled rows with an image and a label column. Defaults to the
            trainer's own evaluation set, if it holds pictures.
        test_dataset (`datasets.Dataset`, *optional*): Labelled rows that played no part in training or in any choice.
            Without them the model card says that nothing was measured.
        group_by (`str`, *optional*): A column of `test_dataset`. Rows with the same value are not independent.
        image_column (`str`, defaults to `"image"`): The image column of both datasets.
        label_column (`str`, defaults to `"label"`): The label column of both datasets, with 0 and 1.
        target_prior (`float`, *optional*): Share of label 1 in use, from 0 to 1. Defaults to the share in the rows.
        calibration (`str`, defaults to `"temperature"`): `"temperature"`, `"platt"` or `"none"`.
        fold (`str`, defaults to `"decision"`): What a plain cut at 0.5 follows: `"decision"` (the fitted threshold),
            `"calibration"` (the calibrated probability) or `"none"`.
        model_name (`str`): The title of the model card.
        license (`str`, *optional*): Licence of the model, an identifier of the Hub such as `"apache-2.0"`. Without one
            the card says that none was stated.

    Returns:
        [`Bundle`]: Loaded from the folder after every file was checked.

    Raises:
        [`UsageError`]: if the trainer holds no plain two-label model, if there are no evaluation rows, if the folder
            exists, or if the Hub knows no such licence.
        [`DataError`]: if the rows cannot be used.
        [`RunError`]: if the bundle does not answer like the model.

    Example:

        >>> import natix_hf
        >>> trainer = natix_hf.RoadworkTrainer(  # doctest: +SKIP
        ...     model="facebook/dinov2-small", train_dataset=rows["train"], eval_dataset=rows["validation"]
        ... )
        >>> trainer.train()  # doctest: +SKIP
        >>> bundle = natix_hf.bundle_of(trainer, "my_bundle", test_dataset=rows["test"])  # doctest: +SKIP
        >>> bundle.predict("street.jpg")  # doctest: +SKIP
    """
    from natix_hf.bundle.load import load_bundle

    target = Path(folder)
    if target.exists():
        raise UsageError(f"bundle_of: {target} already exists: name a new folder")
    if license is not None and license not in LICENCES - {OTHER}:
        raise UsageError(
            f"bundle_of: license is {cut(str(license))}: give an identifier of the Hub, such as apache-2.0"
        )
    model: Any = trainer.model
    if not isinstance(model, PreTrainedModel) or getattr(model.config, "num_labels", 0) != 2:
        raise UsageError(
            f"bundle_of: the trainer holds a {type(model).__name__}, not a plain two-label model: call train() first"
        )
    shown = trainer.eval_dataset
    if eval_dataset is not None:
        asked = ask(rows_of(eval_dataset, "eval", image_column, label_column))
    elif isinstance(shown, AskedViews):
        asked = shown.asked
    else:
        raise UsageError("bundle_of: the trainer has no evaluation rows with pictures: pass eval_dataset=")
    config: Any = model.config
    try:
        labels = names_in(config.id2label)
    except UsageError as error:
        raise UsageError(f"bundle_of: the trainer's model has names that no bundle can have: {error}") from None
    config.label2id = labels.label2id  # whoever sets id2label may not know of the other
    with tempfile.TemporaryDirectory() as scratch:
        candidate = save_candidate(Path(scratch) / "trained", model, trainer.processing_class)
        nn.Module.to(model, device=trainer.args.device)
        table, _ = compute_answers(candidate, asked, workers=0)
        chosen = select_threshold(table.logits, table.labels, target_prior=target_prior)
        fitted, _ = fit_on(table, calibration, target_prior)
        policy = Policy(chosen.threshold, candidate.sha256, "", calibration=fitted, fold=fold, labels=labels)
        measured = None
        if test_dataset is not None:
            rows = ask(rows_of(test_dataset, "test", image_column, label_column))
            if group_by is not None:
                rows = _grouped(rows, test_dataset, group_by)
            answers, _ = compute_answers(candidate, rows, workers=0)
            every = np.ones(len(rows), dtype=bool)
            measured = evaluate(answers, policy, every, {}, target_prior, _RESAMPLES, group_by is not None)
        compared = np.linspace(0, len(asked) - 1, min(_COMPARED, len(asked))).round().astype(int)
        made_by = {"made_by": "natix_hf.bundle_of", "candidate_sha256": candidate.sha256}
        build_bundle(
            target,
            candidate.model,
            policy,
            evaluation=measured.content() if measured is not None else {"schema": Evaluation.SCHEMA, "rows": 0},
            card=_card(model_name, policy, len(asked), chosen.value, measured, trainer, license),
            model_card=None,
            plots=[],
            lineage=made_by | {"git": git_state(), "packages": package_versions()},
            images=[asked.picture(int(i)) for i in compared],
            expected_logits=table.logits[compared],
        )
    return load_bundle(target)


def _grouped(asked: Asked, dataset: Any, column: str) -> Asked:
    if column not in getattr(dataset, "column_names", []):
        raise DataError(f"bundle_of: test_dataset has no column {cut(column)} to group by")
    groups = np.asarray([f"group:{value}" for value in dataset[column]])
    return Asked(asked.row_ids, groups, asked.row_labels, asked.exam, asked.cells, max_megapixels=asked.max_megapixels)


def _card(
    model_name: str,
    policy: Policy,
    eval_rows: int,
    eval_mcc: float,
    measured: Evaluation | None,
    trainer: RoadworkTrainer,
    licence: str | None,
) -> str:
    config: Any = trainer.model.config  # type: ignore[union-attr]  # it was checked
    architecture, base = str(config.model_type), str(getattr(config, "_name_or_path", ""))
    # Only what came from the Hub has a commit: a folder of this machine may be called org/name too.
    base_model = base if is_repo_id(base) and getattr(config, "_commit_hash", None) else None
    stated = {"license": licence} if licence is not None else None
    environment = Environment(
        loader=FileSystemLoader(resource_folder("model_cards")), undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(_TEMPLATE).render(
        model_name=model_name,
        labels=policy.labels,
        code=in_code,
        policy=policy,
        eval_rows=eval_rows,
        eval_mcc=eval_mcc,
        measured=measured,
        head=getattr(architecture_of(architecture), "head", None),
        rows=table_rows(measured) if measured else [],
        notes=measured.notes({name: name.replace("_", " ") for name in told_metrics(card=True)}) if measured else [],
        architecture=architecture,
        card_data=card_metadata(
            labels=policy.labels, architecture=architecture, evaluation=measured, licence=stated, base_model=base_model
        ).to_yaml(),
        told_licence=told_licence(stated),
        base_model=base_model,
        settings=trainer.args,
        repo=REPO_PLACEHOLDER,
        packages=package_versions(),
    )
