"""What stands in `model.backbone`, found from file names and two small JSON files, before any weight is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from natix_hf.errors import HubError, UsageError
from natix_hf.models.architectures import ARCHITECTURES, VIT_MAE
from natix_hf.provenance.hub import hub_errors, is_repo_id

CONFIG, ADAPTER, WEIGHTS = "config.json", "adapter_config.json", "model.safetensors"
SUPPORTED = " | ".join((*ARCHITECTURES, VIT_MAE))
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".safetensors")
# What a Trainer leaves beside the weights.
_OF_A_TRAINING = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")
_NEEDS = f"a backbone is a folder with {CONFIG} and {WEIGHTS}, as save_pretrained writes it"
_LFS = b"version https://git-lfs"
_SIZES = ("small", "large", "giant", "base")


def refuse_folder(backbone: str, source: str) -> None:
    """Raise a `UsageError` if a folder or file holds no backbone that transformers can load here.

    Args:
        backbone: What the recipe says, for the message.
        source: The place. What does not exist is taken for a name on the Hub.
    """
    path = Path(source)
    if path.is_file():
        raise UsageError(f"model.backbone: {backbone} is a file: name its folder; {_NEEDS}")
    if not path.is_dir():
        return
    names = sorted(each.name for each in path.iterdir())
    why = why_unusable(names, lambda name: (path / name).read_bytes())
    if why is None and (path / WEIGHTS).is_file():
        with (path / WEIGHTS).open("rb") as stream:
            if stream.read(len(_LFS)) == _LFS:
                why = f"has a Git LFS pointer as {WEIGHTS}, not the weights: run `git lfs pull` there"
    if why is None:
        return
    below = sorted(found.parent.name for found in path.glob(f"*/{CONFIG}")) if CONFIG not in names else []
    hint = f" (there is one in {below[0]})" if below else ""
    raise UsageError(f"model.backbone: {backbone} {why}{hint}")


def refuse_repo(backbone: str, revision: str | None) -> None:
    """Raise a `UsageError` if a repository on the Hub holds no backbone that transformers can load here.

    A repository that cannot be looked at now, because it is missing, closed or out of reach, is not judged.
    """
    from huggingface_hub import HfApi, hf_hub_download

    if backbone.startswith(("timm/", "hf-hub:")):
        raise UsageError(f"model.backbone: {backbone} {_of_timm(backbone)}")
    if not is_repo_id(backbone):
        return

    def read(name: str) -> bytes:
        return Path(hf_hub_download(backbone, name, revision=revision)).read_bytes()

    try:
        with hub_errors(backbone, "look up", "nothing was loaded"):
            info: Any = HfApi().model_info(backbone, revision=revision)
            why = why_unusable([each.rfilename for each in info.siblings or []], read)
    except (HubError, UsageError):
        return
    if why is not None:
        raise UsageError(f"model.backbone: {backbone} {why}")


def why_unusable(names: list[str], read: Callable[[str], bytes]) -> str | None:
    """Say why files are no backbone, as the end of a sentence. None: they may be one, or transformers says why not.

    Args:
        names: The files of the folder or repository.
        read: Gives the content of one of them.
    """
    config = _json(read, CONFIG) if CONFIG in names else None
    if isinstance(config, dict) and _is_timm(config):
        return _of_timm(str(config.get("architecture", "")))
    if ADAPTER in names:
        base = (_json(read, ADAPTER) or {}).get("base_model_name_or_path") or "a model that it does not name"
        if WEIGHTS in names:
            return f"holds an adapter ({ADAPTER}) beside a model: merge it into the model, or take it out"
        return (
            f"holds only an adapter of {base}: name that as model.backbone, or merge the adapter first "
            "(peft: merge_and_unload, then save_pretrained)"
        )
    if "config_sentence_transformers.json" in names or "modules.json" in names:
        return f"is a sentence-transformers model: supported are {SUPPORTED}"
    weights = [
        name
        for name in names
        if name.endswith(_OTHER_WEIGHTS) and "/" not in name and not name.startswith(_OF_A_TRAINING)
    ]
    if CONFIG not in names:
        held = f"holds {weights[0]} but no {CONFIG}" if weights else f"has no {CONFIG}"
        return f"{held}: {_NEEDS}, of one of {SUPPORTED}"
    if config is None:
        return None
    if not config.get("model_type"):
        return f"has a {CONFIG} without a model_type: supported are {SUPPORTED}"
    if config["model_type"] not in (*ARCHITECTURES, VIT_MAE):
        return None
    if WEIGHTS in names or f"{WEIGHTS}.index.json" in names:
        return None
    if not weights:
        return f"holds no weights: {_NEEDS}"
    if any(name.endswith(".safetensors") for name in weights):
        return f"holds {weights[0]}, but transformers reads {WEIGHTS}: rename it"
    return (
        f"holds {weights[0]} and no safetensors: convert it once, with transformers' "
        "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), and name NEW_FOLDER"
    )


def _json(read: Callable[[str], bytes], name: str) -> dict[str, Any] | None:
    """A JSON object, an empty one for another JSON value, or None if the file is no JSON: transformers says so."""
    try:
        content = json.loads(read(name))
    except ValueError:
        return None
    return content if isinstance(content, dict) else {}


def _is_timm(config: dict[str, Any]) -> bool:
    wrapped = config.get("model_type") == "timm_wrapper"
    return wrapped or ("model_type" not in config and bool({"architecture", "pretrained_cfg"} & set(config)))


def _of_timm(name: str) -> str:
    size = next((size for size in _SIZES if size in name), "base")
    family = "dinov2-with-registers" if re.search(r"reg\d", name) else "dinov2"
    return f"is a timm checkpoint, which is not supported: use a transformers one, such as facebook/{family}-{size}"
