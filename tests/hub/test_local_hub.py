"""The local Hub against the real clients: unmodified in a subprocess, and in this process."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TOKEN, tiny_backbone
from local_hub import LocalHub

# What a client sees of a push, a stale push and a pull, and of datasets and transformers that load a revision.
CLIENT = """
import json
from datasets import load_dataset
from huggingface_hub import CommitOperationAdd as Add, CommitOperationDelete as Delete, HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from pathlib import Path
from transformers import AutoModel

api = HfApi()
api.create_repo("lab/new", private=True)
first = api.model_info("lab/new").sha
add = [Add("config.json", b"{}"), Add("weights/model.safetensors", b"weights" * 99), Add("late.txt", b"late")]
pushed = api.create_commit("lab/new", add, commit_message="push", parent_commit=first).oid
try:
    api.create_commit("lab/new", [Delete("late.txt")], commit_message="stale", parent_commit=first)
except HfHubHTTPError as error:
    stale = error.response.status_code
api.create_tag("lab/new", tag="v1")
api.create_commit("lab/new", [Delete("late.txt")], commit_message="after")
folder = Path(snapshot_download("lab/new", revision="v1"))
files = {path.relative_to(folder).as_posix(): path.read_bytes().decode() for path in folder.rglob("*.*")}
rows = [load_dataset("lab/data", revision=revision)["train"]["x"][:] for revision in ("%s", "main")]
weights = [AutoModel.from_pretrained("lab/vit", revision=revision).embeddings.cls_token.flatten().tolist()
           for revision in ("v1", None)]
print(json.dumps([pushed, stale, folder.name, files, rows, weights]))
"""


def parquet(*rows: int) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": list(rows)}), buffer)
    return buffer.getvalue()


def test_unmodified_clients_push_pull_and_load(hub: LocalHub, tmp_path: Path) -> None:
    old = hub.create("lab/data", {"data/train-00000-of-00001.parquet": parquet(0, 1, 2)}, "dataset", private=True)
    hub.commit("lab/data", {"data/train-00000-of-00001.parquet": parquet(7, 8)})
    weights = []
    for seed in (1, 2):
        model = tiny_backbone("vit", layers=1, seed=seed)
        model.save_pretrained(tmp_path / "vit")
        saved = {file.name: file.read_bytes() for file in (tmp_path / "vit").iterdir()}
        if seed == 1:
            hub.repo("lab/vit").tags["v1"] = hub.create("lab/vit", saved, private=True)
        else:
            hub.commit("lab/vit", saved)
        weights.append(model.embeddings.cls_token.flatten().tolist())
    command = [sys.executable, "-c", CLIENT % old]
    done = subprocess.run(
        command, env=hub.environment(tmp_path / "home", TOKEN), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    pushed, stale, snapshot, files, rows, loaded = json.loads(done.stdout.splitlines()[-1])
    there = {name: data.decode() for name, data in hub.files("lab/new", "v1").items()}
    assert files | {".gitattributes": there[".gitattributes"]} == there and len(there) == 4
    assert (stale, snapshot, hub.tags("lab/new")) == (412, pushed, {"v1": pushed})
    assert "late.txt" not in hub.files("lab/new") and len(hub.commits("lab/new")) == 3
    assert rows == [[0, 1, 2], [7, 8]] and loaded == weights
    assert hub.asked("PUT", "^/lfs-storage/") and TOKEN not in repr(hub.requests)


def test_in_process_nothing_leads_elsewhere_and_all_is_undone(hub: LocalHub, tmp_path: Path) -> None:
    """What the fixture patched; no copy of the real address or of the developer's cache is left in a module."""

    def constants() -> dict[tuple[str, str], Any]:
        return {
            (module, name): value
            for module, loaded in sys.modules.items()
            if re.match("(huggingface_hub|datasets|transformers[.]utils)([.]|$)", module)
            for name, value in vars(loaded).items()
            if name.isupper() and isinstance(value, (str, bool, Path))
        }

    def elsewhere(name: str, value: Any) -> bool:
        if "DEFAULT" in name or name.startswith("CHECK_FOR"):  # not read again; of the command line
            return False
        return str(value).startswith(home) or ("ENDPOINT" in name and str(value) == "https://huggingface.co")

    from huggingface_hub import constants as hub_constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
        patch.setattr(hub_constants, "ENDPOINT", "https://huggingface.co")
        patch.setattr(hub_constants, "HF_HUB_CACHE", str(Path.home() / ".cache" / "huggingface" / "hub"))
        home, before = str(Path.home() / ".cache"), constants()
        with pytest.MonkeyPatch.context() as inner:
            hub.use_in_process(inner, tmp_path / "inner", TOKEN)
            assert [key for key, value in constants().items() if elsewhere(key[1], value)] == []
        assert constants() == before
