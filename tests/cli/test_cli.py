"""The command line: exit codes, one line for an error, and nothing heavy before it is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from PIL import Image

from natix_hf import cli
from natix_hf.errors import NatixError
from natix_hf.recipe import packaged_recipes


def _one_line(errors: str) -> str:
    """The error, after whatever libraries said."""
    assert "Traceback" not in errors
    lines = [line for line in errors.splitlines() if line.startswith("natix-hf: ")]
    assert len(lines) == 1 and errors.endswith(lines[0] + "\n")
    return lines[0]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), (200, 90, 20)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


# Exit code 0.


def test_run_that_is_current(command: Command, finished_run: Path, tiny_recipe_file: Path) -> None:
    code, out, err = command("run", tiny_recipe_file, "--run-dir", finished_run)
    assert (code, err) == (0, "")
    assert "current, skipped" in out
    assert "test MCC" in out and "4 groups, few groups" in out
    assert f"natix-hf predict {finished_run / 'phase6_export' / 'bundle'} image.jpg" in out
    assert f"report   {finished_run / 'phase6_export' / 'report.html'}\n" in out


def test_run_of_some_phases(command: Command, finished_run: Path, tiny_recipe_file: Path) -> None:
    """Options after overrides, phases in any order; the old bundle's figures are not those of a new threshold."""
    code, out, _ = command(
        "run", tiny_recipe_file, "phase2.objective=f1", "--phases", "2,1", "--run-dir", finished_run
    )
    assert code == 0
    assert "phase 1 phase1_baseline: current, skipped" in out and "its settings changed" in out
    assert "test MCC" not in out and f"done: {finished_run}" in out


def test_recipes(command: Command) -> None:
    code, out, err = command("recipes")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [path.stem for path in packaged_recipes()]
    assert all(len(line.split()) > 3 for line in lines)


def test_verify(command: Command, finished_run: Path) -> None:
    for reference in (finished_run, finished_run / "phase6_export" / "bundle"):
        assert command("verify", reference) == (0, f"{reference}: intact\n", "")


def test_predict(command: Command, finished_run: Path, picture: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(picture, tmp_path / "other one.png"))
    code, out, err = command("predict", finished_run, picture, other)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 2
    for line, path in zip(out.splitlines(), (picture, other), strict=True):
        assert line.startswith(str(path)) and "P(Roadwork) 0." in line
        assert line.removeprefix(str(path)).split()[0] in ("Roadwork", "None")


def test_predict_json(command: Command, finished_run: Path, picture: Path) -> None:
    code, out, _ = command("predict", finished_run, picture, picture, "--json", "--batch-size", 1)
    assert code == 0
    for line in out.splitlines():
        answer = json.loads(line)
        assert set(answer) == {"image", "probability", "label", "accepted", "decision"}
        assert 0 <= answer["probability"] <= 1 and answer["image"] == str(picture)


def test_doctor(command: Command) -> None:
    import torch
    import transformers

    code, out, err = command("doctor")
    assert (code, err) == (0, "")
    for part in (
        f"torch {torch.__version__.partition('+')[0]}", f"transformers {transformers.__version__}", "python 3.",
        "cores:", "memory:", "disk for outputs:", "disk for cache:", "Hub: offline by HF_HUB_OFFLINE",
    ):  # fmt: skip
        assert part in out
    assert "not installed" not in out


def test_doctor_warns(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from natix_hf.cli import doctor

    nearly_full = shutil._ntuple_diskusage(10**12, 10**12 - 10**9, 10**9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: nearly_full)
    monkeypatch.setattr(doctor, "package_versions", lambda: {"python": "3.11.0", "peft": "not installed"})
    monkeypatch.setenv("NATIX_HF_CACHE", str(tmp_path / "not" / "there" / "yet"))
    code, out, _ = command("doctor")
    assert code == 0
    assert "warning: peft is not installed" in out
    assert "warning: only 1.0 GB are free for outputs" in out and "warning: only 1.0 GB are free for cache" in out


def test_help_of_every_command(command: Command) -> None:
    for name in ("run", "recipes", "verify", "report", "predict", "doctor"):
        code, out, _ = command(name, "--help")
        assert code == 0 and name in out


# Exit code 1: a check or a run failed.


def test_verify_of_damage(command: Command, finished_run: Path) -> None:
    damaged = finished_run / "phase1_baseline" / "model" / "config.json"
    damaged.write_text("{}", encoding="utf-8")
    code, out, err = command("verify", finished_run)
    assert (code, err) == (1, "")
    assert str(damaged) in out and "1 problems" in out.splitlines()[-1]


def test_predict_with_a_damaged_bundle(command: Command, finished_run: Path, picture: Path) -> None:
    weights = finished_run / "phase6_export" / "bundle" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    code, out, err = command("predict", finished_run, picture)
    assert (code, out) == (1, "")
    assert str(weights) in _one_line(err)


def test_a_failed_run_leaves_no_manifest(
    command: Command, finished_run: Path, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from natix_hf.bundle import build

    monkeypatch.setattr(build, "RELOAD_TOLERANCE", -1.0)
    code, _, err = command("run", tiny_recipe_file, "phase6.version=0.2.0", "--run-dir", finished_run)
    assert code == 1
    assert "it is not written" in _one_line(err)
    assert not (finished_run / "phase6_export" / "manifest.json").exists()
    assert not (finished_run / "phase6_export" / "bundle").exists()


def test_an_interruption(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("natix_hf.recipe.packaged_recipes", interrupt)
    code, _, err = command("recipes")
    assert code == 1
    assert "the same --run-dir continues" in err and "Traceback" not in err


def test_the_system_refuses(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "/some/file")

    monkeypatch.setattr("natix_hf.recipe.packaged_recipes", refuse)
    code, _, err = command("recipes")
    assert code == 1
    assert "Permission denied /some/file" in _one_line(err)


# Exit code 2: bad usage, recipe or input.


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("run", "gtsrb_roadwrk"), "did you mean 'gtsrb_roadwork'"),
        (("run", "nowhere.yaml"), "nowhere.yaml"),
        (("run", "RECIPE", "data.sede=1"), "did you mean 'seed'"),
        (("run", "RECIPE", "phase1.hub_token=secret"), "refused"),
        (("run", "RECIPE", "phase1.lr_scheduler_type=nonsense"), "phase1.lr_scheduler_type"),
        (("run", "RECIPE", "--phases", "9"), "no phase 9"),
        (("run", "RECIPE", "--phases", "one"), "1,2,6, or all"),
        (("run", "RECIPE", "phases=[9]"), "no phase 9"),
        (("run", "RECIPE", "--accelerate-config", "none.yaml"), "none.yaml"),
        (("run", "RECIPE", "data.source=./nowhere"), "nowhere"),
        (("run", "RECIPE", "data.slices=[nope]"), "nope"),
        (("run", "RECIPE", "--phases", "6"), "--phases 2 --run-dir"),
        (("verify", "nothing"), "nothing"),
        (("verify", "."), "not a bundle"),
        (("predict", "nothing", "PICTURE"), "nothing"),
        (("predict", "nothing", "absent.png"), "absent.png: there is no such file"),
        (("predict", "nothing", "."), "."),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], part: str, command: Command, tiny_recipe_file: Path, picture: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = {"RECIPE": tiny_recipe_file, "PICTURE": picture}
    code, _, err = command(*[given.get(argument, argument) for argument in arguments])
    assert code == 2
    assert part in _one_line(err)


def test_predict_refuses_a_name_that_is_none(command: Command, finished_run: Path, picture: Path) -> None:
    code, out, err = command("predict", finished_run, picture, picture.parent / "absent.png")
    assert (code, out) == (2, "")
    assert "absent.png" in _one_line(err)


@pytest.mark.parametrize("options", [(), ("--json",), ("--bf16",), ("--bf16", "--json")])
def test_predict_reports_a_bad_image_in_its_place(
    options: tuple[str, ...], command: Command, finished_run: Path, picture: Path
) -> None:
    bad = picture.parent / "text.png"
    bad.write_text("no image", encoding="utf-8")
    code, out, err = command("predict", finished_run, picture, bad, picture, "--batch-size", 1, *options)
    assert code == 1
    if "--bf16" in options:
        flips, err = err.split("\n", 1)
        assert "0 of 2 decisions are others in float32" in flips
    assert "1 of 3 images cannot be read" in _one_line(err)
    first, second, third = out.splitlines()
    assert first == third and str(picture) in first
    if "--json" in options:
        told = json.loads(second)
        assert set(told) == {"image", "error"} and told["image"] == str(bad) and "no known format" in told["error"]
        assert ("float32_decision" in json.loads(first)) == ("--bf16" in options)
    else:
        assert second.startswith(f"{bad}  error") and "no known format" in second


def test_predict_reads_names_as_they_come(
    command: Command, finished_run: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """An answer is out before the names have ended, and no more than two batches of them are read ahead."""
    given, answered = [], []

    def names() -> Any:
        for _ in range(50):
            answered.append(capsys.readouterr().out.count("P(Roadwork)") + (answered[-1] if answered else 0))
            given.append(1)
            yield f"{picture}\n"
        yield "\n"
        yield f"{picture.parent / 'absent.png'}\r\n"

    monkeypatch.setattr("sys.stdin", names())
    code, out, _ = command("predict", finished_run, "-", "--batch-size", 4)
    assert code == 1 and "absent.png: there is no such file" in out
    assert max(i - done for i, done in enumerate(answered)) <= 8 and answered[-1] >= 40


def test_predict_names_what_bfloat16_flips(
    command: Command, finished_run: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from natix_hf.bundle import inference

    real = inference.torch_forward

    def planted(model: Any, device: Any, precision: Any = "float32") -> Any:
        forward = real(model, device, precision)

        def moved(pixels: Any) -> Any:
            logits, features = forward(pixels)
            return (-logits, features) if precision == "bfloat16" else (logits, features)

        return moved

    code, before, _ = command("predict", finished_run, picture)
    monkeypatch.setattr(inference, "torch_forward", planted)
    code, out, err = command("predict", finished_run, picture, "--bf16")
    assert code == 0 and "1 of 1 decisions are others in float32" in err
    decision = before.removeprefix(str(picture)).split()[0]
    assert out.endswith(f"(float32: {decision})\n") and out.split()[1] != decision


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("run",), ("predict",), ("predict", "bundle"), ("run", "x", "--nonsense"), ("verify",)],
)
def test_usage(arguments: tuple[str, ...], command: Command) -> None:
    code, _, err = command(*arguments)
    assert code == 2
    assert "Usage: natix-hf" in err and "Traceback" not in err


def test_run_dir_of_something_else(command: Command, tiny_recipe_file: Path, picture: Path) -> None:
    for folder in (picture, picture.parent):
        code, _, err = command("run", tiny_recipe_file, "--run-dir", folder)
        assert code == 2 and str(folder) in _one_line(err)


def test_inside_a_launch(command: Command, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = command("run", tiny_recipe_file)
    assert code == 2 and "accelerate launch" in _one_line(err)


@pytest.mark.parametrize("arguments", [("--debug", "verify", "nothing"), ("verify", "nothing", "--debug")])
def test_debug_lets_the_error_out(arguments: tuple[str, ...]) -> None:
    with pytest.raises(NatixError):
        cli.main(list(arguments))


# Nothing heavy.


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=dict(os.environ))


_HEAVY = ("torch", "transformers", "datasets", "sklearn", "scipy", "pandas", "accelerate", "peft", "matplotlib")
_REPORT = f"import sys; print([n for n in {_HEAVY!r} if n in sys.modules])"


@pytest.mark.parametrize(
    "code",
    [
        "import natix_hf",
        "import natix_hf.cli",
        "import natix_hf; natix_hf.metrics",
        "import natix_hf.recipe; natix_hf.recipe.load_recipe('gtsrb_roadwork')",
        "from natix_hf.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from natix_hf.cli import main\ntry: main(['recipes'])\nexcept SystemExit: pass",
        "from natix_hf.cli import main\ntry: main(['run', 'nonsense'])\nexcept SystemExit: pass",
    ],
)
def test_what_answers_at_once_imports_nothing_heavy(code: str) -> None:
    done = _python("-c", f"{code}\n{_REPORT}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_is_the_command() -> None:
    done = _python("-X", "importtime", "-m", "natix_hf", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: natix-hf") or "Usage: natix-hf" in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {*_HEAVY, "numpy", "yaml"}


def test_import_without_a_warning() -> None:
    done = _python("-W", "error", "-c", "import natix_hf; print(natix_hf.__version__)")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_in_a_real_process() -> None:
    done = _python("-m", "natix_hf", "run", "nonsense")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("natix-hf: no recipe 'nonsense'")
    assert "Traceback" in _python("-m", "natix_hf", "--debug", "run", "nonsense").stderr


def test_lazy_names() -> None:
    import natix_hf

    for name in natix_hf.__all__:
        assert getattr(natix_hf, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        natix_hf.nonsense  # noqa: B018
