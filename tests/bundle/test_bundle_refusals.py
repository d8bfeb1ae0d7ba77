"""What somebody might have put into a bundle whose manifest is right, and what nobody means who loads one."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

from natix_hf.bundle.contents import BUNDLE_MANIFEST, bundle_problems, policy_problems
from natix_hf.bundle.load import load_bundle
from natix_hf.errors import UsageError, VerificationError
from natix_hf.models.classifier import build_backbone
from natix_hf.models.config import ModelConfig
from natix_hf.provenance.files import describe_files, file_sha256, list_files, write_json


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def bundle(finished_run: Path) -> Path:
    return finished_run / "phase6_export" / "bundle"


def describe(bundle: Path, **changed: Any) -> None:
    """Makes the manifest anew: every checksum is right."""
    manifest = _read(bundle / BUNDLE_MANIFEST)
    files = describe_files(bundle, [name for name in list_files(bundle) if name != BUNDLE_MANIFEST])
    write_json(bundle / BUNDLE_MANIFEST, manifest | {"files": files} | changed)


def edit(path: Path, **changed: Any) -> None:
    write_json(path, _read(path) | changed)


# Configs.


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", {"auto_map": {"AutoModelForImageClassification": "evil.Model"}}),
        ("config.json", {"custom_pipelines": {"image-classification": {"impl": "evil.Pipeline"}}}),
        ("config.json", {"transformers_weights": "gate.safetensors"}),
        ("config.json", {"attn_implementation": "evil/kernel"}),
        ("config.json", {"_attn_implementation": "kernels-community/flash-attn"}),
        ("config.json", {"experts_implementation": "evil/kernel"}),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil.Processor"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_code_and_weights_from_elsewhere(name: str, change: dict[str, Any], verify: bool, bundle: Path) -> None:
    """By `transformers_weights` transformers loads that file, whatever the policy says of model.safetensors."""
    edit(bundle / name, **change)
    describe(bundle)
    with pytest.raises(VerificationError) as caught:
        load_bundle(bundle, verify=verify)
    assert name in str(caught.value) and f"asks by {next(iter(change))} for code or weights" in str(caught.value)


@pytest.mark.parametrize("labels", [{"0": "Roadwork", "1": "None"}, {"0": "LABEL_0", "1": "LABEL_1"}, None])
def test_labels_by_which_a_stock_pipeline_would_answer_otherwise(labels: Any, bundle: Path) -> None:
    """`predict` goes by the place of a label, a stock pipeline and the miner by its name."""
    edit(bundle / "config.json", id2label=labels)
    describe(bundle)
    (problem,) = bundle_problems(bundle)
    assert "config.json has other labels than None and Roadwork" in problem


def test_nobody_is_asked_whether_to_run_code(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left open, transformers asks whoever sits there: of a model, of an image processor, and of a backbone."""
    from natix_hf.models.classifier import load_classifier
    from natix_hf.models.preprocess import load_processor

    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    code = {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M", "AutoImageProcessor": "evil.P"}
    edit(bundle / "config.json", model_type="evil", auto_map=code)
    edit(bundle / "preprocessor_config.json", image_processor_type="EvilImageProcessor", auto_map=code)
    (bundle / "evil.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    for load in (load_classifier, load_processor):
        with pytest.raises(VerificationError):
            load(bundle)
    with pytest.raises(UsageError, match=r"model\.backbone"):
        build_backbone(ModelConfig(backbone=str(bundle), image_size=28), seed=0)
    assert asked == []


# Numbers and files that no writer leaves.


def _header(end: bytes) -> bytes:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,' + end + b"]}}"
    return struct.pack("<Q", len(header)) + header + b"\0\0\0\0"


@pytest.mark.parametrize("end", [b"Infinity", b"1e999", b"NaN", b"9" * 5000, b'"x"', b"[4]", b"-4", b"null"], ids=len)
def test_a_header_with_absurd_offsets(end: bytes, bundle: Path) -> None:
    (bundle / "model.safetensors").write_bytes(_header(end))
    describe(bundle)
    with pytest.raises(VerificationError, match=r"model\.safetensors"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", [BUNDLE_MANIFEST, "config.json", "preprocessor_config.json", "policy.json"])
@pytest.mark.parametrize("number", ["9" * 5000, "1e999"], ids=["digits", "infinity"])
def test_numbers_without_end(number: str, name: str, bundle: Path) -> None:
    key = {"policy.json": "threshold_logit", "config.json": "hidden_size", BUNDLE_MANIFEST: "schema"}.get(name, "size")
    content = _read(bundle / name) | {key: "HERE"}
    (bundle / name).write_text(json.dumps(content).replace('"HERE"', number), encoding="utf-8")
    if name != BUNDLE_MANIFEST:
        describe(bundle)
    with pytest.raises(VerificationError) as caught:
        load_bundle(bundle).predict([])
    assert name in str(caught.value) or str(bundle) in str(caught.value)


@pytest.mark.parametrize("change", [{"lineage": None}, {"lineage": []}, {"files": []}, {"files": None}, {"schema": 2}])
def test_a_manifest_of_another_shape(change: dict[str, Any], bundle: Path) -> None:
    edit(bundle / BUNDLE_MANIFEST, **change)
    assert bundle_problems(bundle) == [f"{bundle / BUNDLE_MANIFEST} is not a bundle manifest of schema 1"]


WRONG: dict[str, tuple[str, bytes, str]] = {
    "tensors missing": ("model.safetensors", _header(b"8"), "holds 4 bytes of tensors, its header says 8"),
    "bytes behind": ("model.safetensors", _header(b"4") + b"evil", "holds 8 bytes of tensors, its header says 4"),
    "no safetensors": ("model.safetensors", b"\x80\x04" * 64, "bytes: it is no safetensors file"),
    "a list": ("model.safetensors", struct.pack("<Q", 2) + b"[]", "has a header that is not that of a safetensors"),
    "no JSON": ("config.json", b"{", "config.json is not readable JSON"),
    "no object": ("preprocessor_config.json", b"[]", "cannot be used: it holds no JSON object"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_known_before_anything_is_loaded(what: str, bundle: Path) -> None:
    """By the bundle's own check: transformers has not seen it."""
    name, content, told = WRONG[what]
    (bundle / name).write_bytes(content)
    describe(bundle)
    edit(bundle / "policy.json", model_sha256=file_sha256(bundle / "model.safetensors"))
    describe(bundle)
    (problem,) = bundle_problems(bundle)
    assert name in problem and told in problem


def test_the_first_of_several_problems_is_told_and_the_others_are_counted(bundle: Path) -> None:
    for number in range(3):
        (bundle / f"{number}.py").write_bytes(b"")
        more = rf" \(and {number} more\)$" if number else "$"
        with pytest.raises(VerificationError, match=rf"0\.py is not in the manifest{more}"):
            load_bundle(bundle)


@pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")
def test_a_bundle_may_be_reached_through_links(bundle: Path, tmp_path: Path) -> None:
    """To its own folder, or to one above it: what counts is what lies in it."""
    (tmp_path / "direct").symlink_to(bundle, target_is_directory=True)
    (tmp_path / "above").symlink_to(bundle.parent, target_is_directory=True)
    for folder in (tmp_path / "direct", tmp_path / "above" / bundle.name):
        assert bundle_problems(folder) == []


STRANGERS: dict[str, Callable[[Path], None]] = {
    "a link to a folder": lambda path: path.symlink_to(path.parent.parent, target_is_directory=True),
    "a link to nowhere": lambda path: path.symlink_to(path.parent / "nothing"),
    "a link to a file": lambda path: path.symlink_to(path.parent / "config.json"),
    "a pipe": lambda path: os.mkfifo(path),
    "a file": lambda path: path.write_bytes(b""),
}


@pytest.mark.skipif(os.name == "nt", reason="links and pipes as POSIX has them")
@pytest.mark.parametrize("name", ["modeling.py", "plots/x.png", ".cache", ".tmp-x", "__init__.py", ".hidden"])
@pytest.mark.parametrize("what", STRANGERS)
def test_whatever_else_lies_there_is_named(what: str, name: str, bundle: Path) -> None:
    STRANGERS[what](bundle / name)
    problems = bundle_problems(bundle)
    assert problems == [f"{bundle / name} is not in the manifest"]


@pytest.mark.parametrize("name", [".cache/x", ".cache/huggingface", ".cache/other/x", ".gitattributes/x"])
def test_only_the_notes_of_a_download_are_overlooked(name: str, bundle: Path) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(b"")
    assert bundle_problems(bundle) == [f"{bundle / name} is not in the manifest"]


def test_links_are_for_the_hubs_cache(bundle: Path, tmp_path: Path) -> None:
    """A folder beside one called `blobs` is none unless it is called as the cache calls it."""
    for parent, allowed in (("snapshots", True), ("elsewhere", False)):
        folder = tmp_path / parent / "repo" / parent / "commit"
        blobs = folder.parent.parent / "blobs"
        blobs.mkdir(parents=True)
        for name in list_files(bundle):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((bundle / name).read_bytes())
        (folder / "config.json").rename(blobs / "x")
        (folder / "config.json").symlink_to(blobs / "x")
        told = [] if allowed else [f"{folder / 'config.json'} is a link, not a file"]
        assert bundle_problems(folder) == told


def test_what_the_manifest_may_not_name_is_not_even_looked_at(bundle: Path, tmp_path: Path) -> None:
    """No checksum is made of a file outside, and no second line tells whether it is there."""
    manifest = _read(bundle / BUNDLE_MANIFEST)
    manifest["files"]["../outside"] = {"sha256": "0" * 64, "size": 1}
    write_json(bundle / BUNDLE_MANIFEST, manifest)
    problems = bundle_problems(bundle)
    assert problems == [f"{bundle / BUNDLE_MANIFEST} names ../outside, which a bundle may not hold"]


@pytest.mark.parametrize("key", ["sha256", "size"])
def test_both_facts_of_a_file_are_compared(key: str, bundle: Path) -> None:
    manifest = _read(bundle / BUNDLE_MANIFEST)
    manifest["files"]["README.md"][key] = {"sha256": "0" * 64, "size": 1}[key]
    write_json(bundle / BUNDLE_MANIFEST, manifest)
    told = {"sha256": "README.md was changed", "size": "its manifest says 1"}[key]
    (problem,) = bundle_problems(bundle)
    assert told in problem


# The gate.


def test_a_gate_is_the_one_of_the_policy(bundle: Path) -> None:
    """With another, with one that no policy knows, or without the one that it knows, nothing is loaded."""
    (bundle / "gate.safetensors").write_bytes(_header(b"4"))
    describe(bundle)
    weights = file_sha256(bundle / "model.safetensors")
    (problem,) = bundle_problems(bundle)
    assert "policy.json belongs to another gate.safetensors, or to none" in problem
    for verify in (True, False):
        with pytest.raises(VerificationError, match=r"another gate\.safetensors, or to none"):
            load_bundle(bundle, verify=verify)
    gate = file_sha256(bundle / "gate.safetensors")
    edit(bundle / "policy.json", gate={"kind": "learned", "method": "correctness", "sha256": gate})
    for given, fine in ((gate, True), ("0" * 64, False), (None, False)):
        hashes = {"model.safetensors": weights} | ({"gate.safetensors": given} if given else {})
        assert (policy_problems(bundle, hashes) == []) == fine


# What is asked for.


def test_unverified_means_that_files_are_not_compared(bundle: Path) -> None:
    (bundle / "README.md").write_text("changed", encoding="utf-8")
    (bundle / "notes.txt").write_text("a stranger", encoding="utf-8")
    with pytest.raises(VerificationError):
        load_bundle(bundle)
    assert load_bundle(bundle, verify=False).predict([]) == []


@pytest.mark.parametrize("reference", ["nothing", "bad name/with spaces", "a/b/c", "org/name.git"])
def test_what_can_be_no_repository_is_not_looked_for(reference: str) -> None:
    with pytest.raises(UsageError, match=f"there is no bundle {reference}: name a folder, or a Hub repository"):
        load_bundle(reference)


def test_the_weights_of_another_are_found_unverified_too(bundle: Path) -> None:
    content = bytearray((bundle / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (bundle / "model.safetensors").write_bytes(content)
    with pytest.raises(VerificationError, match="other weights"):
        load_bundle(bundle, verify=False)


def test_expected_needs_the_checks_that_make_it_hold(bundle: Path) -> None:
    right = file_sha256(bundle / BUNDLE_MANIFEST)
    for expected in (right, "0" * 64, ""):
        with pytest.raises(UsageError, match="expected= says nothing with verify=False"):
            load_bundle(bundle, verify=False, expected=expected)
    with pytest.raises(VerificationError, match="not the one expected"):
        load_bundle(bundle, expected="")
    load_bundle(bundle, expected=right)


def test_a_folder_has_no_revision(bundle: Path, tmp_path: Path, command: Command, monkeypatch: Any) -> None:
    """Least of all one that lies where the name of a repository leads: whoever pins means the Hub's."""
    monkeypatch.chdir(tmp_path)
    Path("lab").mkdir()
    bundle.rename("lab/roadwork")
    for reference in ("lab/roadwork", tmp_path / "lab" / "roadwork"):
        with pytest.raises(UsageError, match=r"revision 'v1' is for a repository .*roadwork lies here"):
            load_bundle(reference, revision="v1")
    load_bundle("lab/roadwork")
    Path("x.png").write_bytes(b"")
    code, _, err = command("predict", "lab/roadwork", "x.png", "--revision", "v1")
    assert code == 2 and "revision 'v1' is for a repository on the Hub" in err
