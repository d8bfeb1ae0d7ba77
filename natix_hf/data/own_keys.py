"""The keys of `data` that a bundle carries: they say how labels are written, and hold no path."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from natix_hf.data.config import DataConfig, SourceConfig
from natix_hf.intake.words import spelled

OWN_KEYS = ("image_column", "label_column", "positive_class", "exclude_classes", "label_rule")


def own_keys(config: DataConfig) -> dict[str, Any]:
    """The values for a bundle.

    They are those of the sources that are measured on and give labels themselves, where these agree, else those of
    `data`.
    """
    told = [source for source in config.sources if source.role != "train" and source.label is None]
    values = {}
    for key in OWN_KEYS:
        of_sources = [getattr(source, key) for source in told]
        agree = bool(told) and all(value == of_sources[0] for value in of_sources)
        values[key] = of_sources[0] if agree else getattr(config, key)
    return values


def known_keys(stored: Any) -> dict[str, Any]:
    """The keys that stand in a bundle's lineage. Older bundles have none, and foreign keys are passed over."""
    return {key: stored[key] for key in OWN_KEYS if key in stored} if isinstance(stored, Mapping) else {}


def without_strangers(source: SourceConfig, classes: Sequence[str | None], keys: Collection[str]) -> SourceConfig:
    """Take the classes that a source does not have out of `keys`: positive_class, exclude_classes or both."""
    held = {spelled(name) for name in classes if name is not None}
    excluded = [name for name in source.exclude_classes or [] if spelled(name) in held]
    fitting: dict[str, Any] = {}
    if "exclude_classes" in keys:
        fitting["exclude_classes"] = excluded
    if "positive_class" in keys and spelled(source.positive_class or "").removesuffix(".0") not in held:
        fitting["positive_class"] = None
    return replace(source, **fitting)
