"""What is in the wheel and the sdist, and that the installed wheel runs the quickstart where no checkout is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import refused
from lowest import ROOT, lowest, requirements
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from natix_hf.resources import resource_folder
from natix_hf.runs.verify import find_problems

PACKAGED = ("recipes", "accelerate_configs", "model_cards")
GENERATED = ("api.md", "keys.md")  # of docs/
# Every phase with its defaults of the quickstart and the packaged backbone, on as few scenes as can be divided.
TINY = [
    "data.synthetic.videos=40", "data.synthetic.frames=1", "phase1.num_train_epochs=1",
    "phase1.dataloader_num_workers=0", "phase2.n_resamples=100", "phase6.n_resamples=100",
    "phase4.max_steps=2", "phase4.probe_steps=1", "phase4.dataloader_num_workers=0",
    "phase3.num_train_epochs=2", "phase3.n_resamples=100", "phase5.n_resamples=100",
]  # fmt: skip


def run_python(*arguments: str, cwd: Path, **environment: str) -> str:
    env = dict(os.environ) | environment
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout


def build(kind: str, tree: Path, target: Path) -> Path:
    run_python("-m", "hatchling", "build", "-t", kind, "-d", str(target), cwd=tree)
    return next(target.iterdir())


def files_under(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout without what git ignores, so that building leaves nothing in it."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").replace("/\n", "\n").split()
    copy = tmp_path_factory.mktemp("checkout") / "natix_hf"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", *ignored))
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tree / "recipes" / "__pycache__"  # what a checkout that was used has, and a wheel must not
    cache.mkdir()
    (cache / "phase1.cpython-311.pyc").touch()
    try:
        return build("wheel", tree, tmp_path_factory.mktemp("wheel"))
    finally:
        shutil.rmtree(cache)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    run_python(
        "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder), str(wheel), cwd=folder
    )
    return folder


def test_the_wheel_holds_the_package_and_its_folders_and_nothing_else(tree: Path, wheel: Path) -> None:
    expected = {f"natix_hf/{name}" for name in files_under(tree / "natix_hf")}
    for folder in PACKAGED:
        expected |= {f"natix_hf/_packaged/{folder}/{name}" for name in files_under(tree / folder)}
    expected |= {f"natix_hf/_packaged/docs/{name}" for name in GENERATED}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        facts = {name.split("/", 1)[1]: name for name in names if ".dist-info/" in name}
        assert names - set(facts.values()) == expected
        assert set(facts) == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
        assert archive.read(facts["entry_points.txt"]).decode() == "[console_scripts]\nnatix-hf = natix_hf.cli:main\n"
        for folder in PACKAGED:
            for name in files_under(tree / folder):
                assert archive.read(f"natix_hf/_packaged/{folder}/{name}") == (tree / folder / name).read_bytes()
        for name in GENERATED:
            assert archive.read(f"natix_hf/_packaged/docs/{name}") == (tree / "docs" / name).read_bytes()
    named = {"natix_hf/py.typed", "natix_hf/_packaged/recipes/quickstart.yaml", "natix_hf/_packaged/recipes/phase1.py"}
    named |= {f"natix_hf/_packaged/recipes/backbones/{name}/model.safetensors" for name in ("warm_start_camera_a",)}
    assert named <= expected, "the folders that the expectation is made of hold what they must"


def test_the_sdist_is_the_whole_checkout_and_makes_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tree, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = next(tmp_path.glob("natix_hf-*"))
    assert files_under(unpacked) - {"PKG-INFO"} == files_under(tree)
    again = build("wheel", unpacked, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        record = next(name for name in one.namelist() if name.endswith("/RECORD"))
        assert one.read(record) == other.read(record), "every file, with its sha256"


def test_the_installed_wheel_runs_the_quickstart_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {"PYTHONPATH": str(installed), "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    ask = "import natix_hf; print(natix_hf.__file__); from natix_hf.cli import main; main(['recipes'])"
    at, *listed = run_python("-c", ask, cwd=empty, **environment).splitlines()
    assert Path(at) == installed / "natix_hf" / "__init__.py"
    assert [line.split()[0] for line in listed] == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))

    said = run_python("-m", "natix_hf", "run", "quickstart", *TINY, cwd=empty, **environment)
    assert [path.name for path in empty.iterdir()] == ["outputs"]
    run = next((empty / "outputs" / "quickstart").iterdir())
    assert str(run / "phase6_export" / "bundle") in said
    assert find_problems(str(run)) == []
    explora = json.loads((run / "phase4_explora" / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert explora["steps"] == 2 and explora["merge"]["max_difference"] <= 1e-4
    manifest = json.loads((run / "phase1_baseline" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["git"] is None, "the code that ran lies in no checkout"
    assert manifest["section"]["model"]["backbone"] == "packaged:warm_start_camera_a"

    # The phase scripts lie there too, and go on with the newest run.
    before = (run / "phase2_threshold" / "manifest.json").stat().st_mtime_ns
    script = installed / "natix_hf" / "_packaged" / "recipes" / "phase2.py"
    assert str(run) in run_python(str(script), *TINY, cwd=empty, **environment)
    assert (run / "phase2_threshold" / "manifest.json").stat().st_mtime_ns == before, "current, so skipped"


def test_an_editable_install_reads_the_folders_of_the_checkout(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    target.mkdir()
    make = "import sys; from hatchling.build import build_editable; print(build_editable(sys.argv[1]))"
    name = run_python("-c", make, str(target), cwd=tree).split()[-1]
    with zipfile.ZipFile(target / name) as archive:
        archive.extractall(target)
    # Without site-packages, so that the editable install that runs this test does not answer in its place.
    ask = (
        "import sys, site; site.addsitedir(sys.argv[1]); from natix_hf.resources import resource_folder\n"
        "for name in sys.argv[2:]: print(resource_folder(name))"
    )
    told = run_python("-S", "-P", "-c", ask, str(target), *PACKAGED, cwd=tmp_path, PYTHONPATH="").splitlines()
    assert told == [str(tree / folder) for folder in PACKAGED]
    assert [resource_folder(folder) for folder in PACKAGED] == [ROOT / folder for folder in PACKAGED]


def test_every_dependency_has_a_lower_bound_that_the_pins_satisfy() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    assert len(requirements()) > 20
    for requirement in requirements():
        name, least = lowest(requirement)
        if name == "trackio":  # it needs Pillow below 13: without constraints.txt pip finds one
            assert "trackio" not in pinned
            continue
        version = Version(pinned[canonicalize_name(name)])
        assert version in Requirement(requirement).specifier, requirement
        assert Version(least) <= version


def test_a_dependency_without_a_lower_bound_is_refused() -> None:
    assert lowest("transformers>=5.23,<6") == ("transformers", "5.23")
    for loose in ("numpy", "numpy==2.0", "numpy<3", "numpy<3,>=2.0"):
        with refused(SystemExit, "numpy"):
            lowest(loose)


def test_every_tracked_name_is_one_that_windows_takes(tree: Path) -> None:
    names = files_under(tree)
    assert [name for name in names if set(name) & set('<>:"|?*\\') or name.endswith((".", " "))] == []
    assert len({name.lower() for name in names}) == len(names)
