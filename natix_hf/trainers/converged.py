"""The start of a training: the stock backbone under a fresh head, or for PROFIT a classifier with its own head."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import PreTrainedModel

from natix_hf.bundle.folding import unfold
from natix_hf.bundle.names import POLICY, WEIGHTS
from natix_hf.bundle.policy import read_policy
from natix_hf.errors import UsageError
from natix_hf.labels import LabelNames
from natix_hf.models.classifier import build_classifier, head_of
from natix_hf.models.config import ModelConfig
from natix_hf.models.resolved import resolve_backbone
from natix_hf.provenance.files import file_sha256


def start_of_training(config: ModelConfig, seed: int, labels: LabelNames, keep_head: bool) -> PreTrainedModel:
    """Build the classifier that a training begins with.

    With `keep_head` a bundle goes on as the candidate that it was made of: threshold and temperature, which are folded
    into its classifier layer, are no part of what was learned. The other arguments and the errors are those of
    `build_classifier`.

    Raises:
        UsageError: With `keep_head`, also if the `policy.json` beside the weights belongs to others, or if nobody can
            tell whether there is one.
        VerificationError: With `keep_head`, if it is damaged.
    """
    model = build_classifier(config, seed, labels, keep_head)
    path = _beside(config, POLICY) if keep_head else None
    if path is None:
        return model
    policy = read_policy(path)
    weights = _beside(config, WEIGHTS)
    if policy.model_sha256 is None or weights is None or file_sha256(weights) != policy.model_sha256:
        raise UsageError(
            f"model.backbone: the {POLICY} in {config.backbone} belongs to other weights: take the bundle as it was "
            f"made, or a folder without {POLICY}"
        )
    unfold(head_of(model), policy)
    return model


def _beside(config: ModelConfig, name: str) -> Path | None:
    """A file of the backbone's folder or Hub repository, if it has one."""
    source = resolve_backbone(str(config.backbone))
    if Path(source).is_dir():
        return Path(source, name) if Path(source, name).is_file() else None
    if try_to_load_from_cache(source, name, revision=config.revision) is _CACHED_NO_EXIST:
        return None
    try:
        return Path(hf_hub_download(source, name, revision=config.revision))
    except LocalEntryNotFoundError:  # a kind of EntryNotFoundError that says nothing about the repository
        raise UsageError(
            f"model.backbone: profit needs to know whether {source} has a {name}, and neither the cache nor the Hub "
            "says so now: try again online"
        ) from None
    except EntryNotFoundError:
        return None
