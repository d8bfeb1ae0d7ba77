"""Nothing works on Linux only: the source is searched, workers are spawned, and what Windows refuses is refused."""

from __future__ import annotations

import ast
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY
from torch.utils.data import DataLoader, Dataset

from natix_hf.cli import doctor
from natix_hf.data import decode
from natix_hf.data.views import FeatureViews
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.features import cached_features
from natix_hf.pipeline import run_recipe
from natix_hf.provenance import files
from natix_hf.provenance.files import list_files
from natix_hf.runs.verify import find_problems

PACKAGE = Path(files.__file__).parents[1]

# --- the source ---

POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {
    "os": {
        "fork", "forkpty", "getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "killpg", "mkfifo",
        "nice", "sched_getaffinity", "setsid", "statvfs", "sysconf", "uname",
        "rename",  # over an existing file it fails on Windows: os.replace
    },
    "signal": {"SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "alarm", "pause", "setitimer"},
}  # fmt: skip
POSIX_FOLDERS = ("/proc", "/dev/", "/tmp", "/etc/", "/usr/", "/var/")
NOT_IN_NAMES = set('<>:"|?*\\')
SENT_TO_WORKERS = {"DataLoader", "Pool", "filter", "from_generator", "map"}


def linux_only(source: str) -> list[str]:
    """One line for everything in a module that macOS or Windows lacks or does otherwise."""
    return [f"line {node.lineno}: {why}" for node in ast.walk(ast.parse(source)) for why in _objections(node, source)]


def _objections(node: Any, source: str) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        module = node.module if isinstance(node, ast.ImportFrom) else None
        names = [alias.name for alias in node.names]
        unguarded = {name for name in {module, *names} & POSIX_MODULES if f'find_spec("{name}")' not in source}
        yield from (f"import {name}" for name in unguarded)
        yield from (f"{module}.{name}" for name in names if name in POSIX_NAMES.get(str(module), ()))
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        guarded = f'hasattr({node.value.id}, "{node.attr}")' in source
        if node.attr in POSIX_NAMES.get(node.value.id, ()) and not guarded:
            yield f"{node.value.id}.{node.attr}"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        if node.value.startswith(POSIX_FOLDERS) or node.value in ("fork", "forkserver"):
            yield node.value
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        as_text = {"read_text", "write_text"} if isinstance(node.func, ast.Attribute) else set()
        by_number = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "os"  # `os.open`
        if name in as_text or (name == "open" and not by_number and not _opens_bytes(node)):
            if "encoding" not in keywords:
                yield f"{name} without an encoding"
        elif {"text", "universal_newlines"} & set(keywords) and "encoding" not in keywords:
            yield f"{name} of text without an encoding"
        if name in SENT_TO_WORKERS and any(isinstance(a, ast.Lambda) for a in [*node.args, *keywords.values()]):
            yield f"a lambda goes to {name}: a spawned worker cannot be sent one"


def _opens_bytes(call: ast.Call) -> bool:
    """`open(path, "rb")`, `path.open("rb")`, or an opener that is not of text (PIL's, and those of archives)."""
    if ast.unparse(call.func) in ("Image.open", "tarfile.open", "archive.open"):
        return True
    mode = [*call.args[0 if isinstance(call.func, ast.Attribute) else 1 :][:1]]
    mode += [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    return any(isinstance(m, ast.Constant) and "b" in str(m.value) for m in mode)


@pytest.mark.parametrize(
    "planted",
    [
        "import fcntl", "from resource import getrusage", "from os import fork", "os.uname()", "os.getuid()",
        "os.rename(a, b)", "os.kill(pid, signal.SIGKILL)", "os.sysconf('SC_PHYS_PAGES')", "open(path)",
        "open(path, 'w')", "path.open()", "path.open(mode='a')", "path.read_text()", "path.write_text(text)",
        "subprocess.run(command, text=True)", "read('/proc/meminfo')", "get_context('fork')",
        "DataLoader(rows, collate_fn=lambda rows: rows)", "rows.map(lambda row: row)",
    ],
)  # fmt: skip
def test_the_search_finds(planted: str) -> None:
    assert len(linux_only(planted)) == 1


@pytest.mark.parametrize(
    "harmless",
    [
        'if find_spec("resource") is not None:\n    import resource',
        "open(path, 'rb')", "path.open('rb+')", "open(path, encoding='utf-8')", "path.read_text(encoding='utf-8')",
        "Image.open(value)", "os.replace(a, b)", 'if hasattr(os, "sysconf"): os.sysconf(name)', "rows.map(decode)",
        "subprocess.run(command, text=True, encoding='utf-8')", "sorted(rows, key=lambda row: row)", "value = '/'",
    ],
)  # fmt: skip
def test_the_search_passes(harmless: str) -> None:
    assert linux_only(harmless) == []


def test_the_source_uses_nothing_that_only_linux_has() -> None:
    modules = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "recipes").glob("*.py")]
    assert len(modules) > 50
    found = {str(path): linux_only(path.read_text(encoding="utf-8")) for path in modules}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_the_doctor_where_memory_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(fact.endswith(" GB") and fact.startswith("memory: ") for fact in doctor.check()[0])
    monkeypatch.delattr(os, "sysconf")
    assert any(fact.startswith("memory: ") and " GB" not in fact for fact in doctor.check()[0])


# --- spawned workers (tests/data has the views of pictures) ---


def test_spawned_workers_map_the_features_of_this_process(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 40, 256), dtype=np.float32)
    np.save(tmp_path / "features.npy", values)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    labels = np.arange(40) % 2
    views = FeatureViews(mapped, labels)
    assert len(pickle.dumps(views)) < 2000, "the worker is told where they are, not sent a copy"
    keys: Any = [(epoch, row) for epoch in range(3) for row in range(0, 40, 3)]
    batches = [
        list(DataLoader(views, batch_size=8, sampler=keys, num_workers=workers, multiprocessing_context=context))
        for workers, context in ((0, None), (1, "spawn"))
    ]
    for here, there in zip(*batches, strict=True):
        assert torch.equal(here["features"], there["features"]) and torch.equal(here["labels"], there["labels"])
    assert torch.equal(batches[0][0]["features"][1], torch.from_numpy(values[0, 3]))
    for part in (values, mapped[1:], mapped[:, 5:]):  # what is not the whole file is sent as it is
        again = pickle.loads(pickle.dumps(FeatureViews(part, labels)))
        assert np.array_equal(again.features, part)


def test_a_run_with_spawned_workers_gives_the_same_logits(
    tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS and Windows: every worker is a new process that is sent its work by pickle."""
    import multiprocess  # the fork of multiprocessing that `datasets` uses

    short = ["phase1.num_train_epochs=1", "phase1.load_best_model_at_end=false"]
    short += ["phase1.eval_strategy=no", "phase1.save_strategy=no"]
    one_process = run_recipe(str(tiny_recipe_file), [1], tmp_path / "one process", overrides=short)
    monkeypatch.setattr(decode, "ROWS_A_WORKER", 50)  # so that these few rows are decoded by two workers
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    methods = {library: library.get_start_method() for library in (multiprocessing, multiprocess)}
    try:
        for library in methods:
            library.set_start_method("spawn", force=True)
        short.append("phase1.dataloader_num_workers=1")
        run = run_recipe(str(tiny_recipe_file), [1], tmp_path / "run", overrides=short)
        assert {library.get_start_method() for library in methods} == {"spawn"}
    finally:
        for library, method in methods.items():
            library.set_start_method(method, force=True)
    decoded = [path.name for path in (tmp_path / "datasets" / "natix_hf").iterdir()]
    decoded = [name for name in decoded if not name.endswith(".lock")]
    assert len(decoded) == 2 and all("_of_00002" in name for name in decoded), "two workers decoded"
    there, here = (
        pq.read_table(folder / "phase1_baseline" / "logits" / "val_select.parquet") for folder in (run, one_process)
    )
    assert there.equals(here) and here.num_rows > 10


# --- what Windows refuses: to replace a folder, or to replace, move or delete a file that is open or mapped ---


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes the system refuse under `tmp_path` what Windows would, and notes it, even if nobody minds the refusal."""
    noted: list[str] = []
    replace, unlink, rmtree = os.replace, os.unlink, shutil.rmtree

    def refuse(what: str, *paths: Any) -> None:
        for path in map(str, paths):
            if set(os.path.basename(path)) & NOT_IN_NAMES:
                noted.append(f"{what} {path}: no such name is possible")
            if path.startswith(str(tmp_path)) and (held := _held_under(path)):
                noted.append(f"{what} {path} while {held[0]} is in use")
                raise PermissionError(13, noted[-1], path)

    def replace_as_windows(source: Any, target: Any, **kwargs: Any) -> None:
        refuse("replace", source, target)
        if os.path.isdir(target):
            noted.append(f"replace {source} over the folder {target}")
            raise PermissionError(13, noted[-1])
        replace(source, target, **kwargs)

    def unlink_as_windows(path: Any, *, dir_fd: int | None = None) -> None:
        if dir_fd is None:
            refuse("delete", path)
        unlink(path, dir_fd=dir_fd)

    def rmtree_as_windows(path: Any, ignore_errors: bool = False, **kwargs: Any) -> None:
        try:
            refuse("delete", path)
        except PermissionError:
            if not ignore_errors:
                raise
        else:
            rmtree(path, ignore_errors=ignore_errors, **kwargs)

    monkeypatch.setattr(os, "replace", replace_as_windows)
    monkeypatch.setattr(os, "unlink", unlink_as_windows)
    monkeypatch.setattr(os, "remove", unlink_as_windows)
    monkeypatch.setattr(shutil, "rmtree", rmtree_as_windows)
    return noted


def _held_under(path: str) -> list[str]:
    """Files at or under `path` that this process has open or mapped (macOS does not tell the mapped ones)."""
    process, maps = psutil.Process(), Path("/proc/self/maps")
    held = [file.path for file in process.open_files()]
    if maps.exists():  # psutil would have the sizes of a thousand areas counted
        held += [line.split(maxsplit=5)[-1] for line in maps.read_text(encoding="utf-8").splitlines()]
    elif hasattr(process, "memory_maps"):
        held += [area.path for area in process.memory_maps()]
    return [name for name in held if name == path or name.startswith(path + os.sep)]


def test_the_refusal_is_that_of_windows(tmp_path: Path, refused: list[str]) -> None:
    for name in ("open", "mapped", "free", "folder/inside", "other/inside"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{name}.npy", np.zeros(3))
    handle, mapped = (tmp_path / "open.npy").open("rb"), np.load(tmp_path / "mapped.npy", mmap_mode="r")
    inside = np.load(tmp_path / "folder" / "inside.npy", mmap_mode="r")
    with handle:
        for name in ("open", "mapped"):
            for act in (
                lambda path: os.replace(path, tmp_path / "new"),
                lambda path: os.replace(tmp_path / "free.npy", path),
                Path.unlink,
            ):
                with pytest.raises(PermissionError):
                    act(tmp_path / f"{name}.npy")
        for target in (tmp_path / "new", tmp_path / "other"):
            with pytest.raises(PermissionError):
                os.replace(tmp_path / "folder", target)
    shutil.rmtree(tmp_path / "folder", ignore_errors=True)
    assert (tmp_path / "folder" / "inside.npy").is_file() and len(refused) == 9
    del inside, mapped
    os.replace(tmp_path / "folder", tmp_path / "new")
    (tmp_path / "mapped.npy").unlink()
    assert len(refused) == 9


def test_a_run_changes_nothing_that_is_in_use(tiny_recipe_file: Path, tmp_path: Path, refused: list[str]) -> None:
    """Once with everything trained; then again in the same run with other settings, on cached features."""
    run = tmp_path / "run"
    quick = ["phase1.num_train_epochs=2", "phase1.save_total_limit=1"]
    on_features = ["phase1.adapter=none", "phase1.feature_views=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATIX_HF_CACHE", str(tmp_path / "cache"))
        for settings in (quick, [*quick, *on_features]):
            run_recipe(str(tiny_recipe_file), run_dir=run, overrides=settings)
            assert find_problems(str(run)) == []
    assert refused == []
    names = [*list_files(run), *list_files(tmp_path / "cache")]
    assert len(names) > 25
    assert [name for name in names if set(name) & NOT_IN_NAMES] == []
    assert max(map(len, names)) < 110, "with the folder that it lies in, a path has 260 characters there"


class Unplugged(Dataset[dict[str, torch.Tensor]]):
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index > 2:
            raise ConnectionError("unplugged")
        return {"pixel_values": torch.zeros(3, 28, 28)}


def features_of(dataset: Dataset[Any], rows: int) -> np.ndarray:
    model = build_classifier(ModelConfig(config=TINY["vit"], image_size=28), seed=0)
    return cached_features(model, [(dataset, range(rows))], "key", 2, 0, torch.device("cpu"))


def test_an_error_amid_features_is_not_hidden_by_the_cleaning_up(
    tmp_path: Path, refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATIX_HF_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError):
        features_of(Unplugged(), 4)
    assert refused == [] and not any(path.is_file() for path in tmp_path.rglob("*") if path.suffix != ".lock")


@pytest.mark.parametrize("other_run_finished", [True, False])
def test_features_that_another_run_wrote_and_reads_meanwhile(
    other_run_finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATIX_HF_CACHE", str(tmp_path))

    def refuse(source: Path, target: Path) -> None:
        if other_run_finished:
            shutil.copyfile(source, target)
        raise PermissionError(13, "in use", str(target))

    monkeypatch.setattr(files.os, "replace", refuse)
    if other_run_finished:
        assert features_of(Unplugged(), 3).shape == (1, 3, 32)
    else:
        with pytest.raises(PermissionError):
            features_of(Unplugged(), 3)
