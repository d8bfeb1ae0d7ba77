"""What somebody might have put into a bundle whose manifest is right, and what nobody means who loads one."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import describe, edit, read
from conftest import Command, refused
from facts import tells

from natix_hf.bundle.contents import bundle_problems, is_allowed, policy_problems
from natix_hf.bundle.load import Bundle, load_bundle
from natix_hf.bundle.names import BUNDLE_MANIFEST
from natix_hf.errors import UsageError, VerificationError
from natix_hf.models.classifier import build_backbone, load_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import load_processor
from natix_hf.provenance.files import file_sha256
from natix_hf.selective.classifier import SelectiveClassifier


def the_problem(bundle: Path, *facts: object) -> bool:
    """Whether there is one problem, and its line tells these facts."""
    (problem,) = bundle_problems(bundle)
    return tells(problem, *facts)


def described(bundle: Path) -> dict[str, Any]:
    """What the manifest says of the card."""
    return dict(read(bundle / BUNDLE_MANIFEST)["files"]["README.md"])


def of_manifest(bundle: Path, name: str, facts: Any) -> None:
    """Puts other facts of one file into the manifest."""
    edit(bundle / BUNDLE_MANIFEST, files=read(bundle / BUNDLE_MANIFEST)["files"] | {name: facts})


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
    with refused(VerificationError, name, next(iter(change))):
        load_bundle(bundle, verify=verify)


@pytest.mark.parametrize("labels", [{"0": "Roadwork", "1": "None"}, {"0": "LABEL_0", "1": "LABEL_1"}, None])
def test_labels_by_which_a_stock_pipeline_would_answer_otherwise(labels: Any, bundle: Path) -> None:
    """`predict` goes by the place of a label, a stock pipeline and the miner by its name."""
    edit(bundle / "config.json", id2label=labels, label2id={name: int(key) for key, name in (labels or {}).items()})
    describe(bundle)
    assert the_problem(bundle, "config.json", "None", "Roadwork")


def test_nobody_is_asked_whether_to_run_code(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left open, transformers asks whoever sits there: of a model, of an image processor, and of a backbone."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    code = {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M", "AutoImageProcessor": "evil.P"}
    edit(bundle / "config.json", model_type="evil", auto_map=code)
    edit(bundle / "preprocessor_config.json", image_processor_type="EvilImageProcessor", auto_map=code)
    (bundle / "evil.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    for load in (load_classifier, load_processor):
        with pytest.raises(VerificationError):
            load(bundle)
    with refused(UsageError, "model.backbone"):
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
    with refused(VerificationError, "model.safetensors"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", [BUNDLE_MANIFEST, "config.json", "preprocessor_config.json", "policy.json"])
@pytest.mark.parametrize("number", ["9" * 5000, "1e999"], ids=["digits", "infinity"])
def test_numbers_without_end(number: str, name: str, bundle: Path) -> None:
    key = {"policy.json": "threshold_logit", "config.json": "hidden_size", BUNDLE_MANIFEST: "schema"}.get(name, "size")
    content = read(bundle / name) | {key: "HERE"}
    (bundle / name).write_text(json.dumps(content).replace('"HERE"', number), encoding="utf-8")
    if name != BUNDLE_MANIFEST:
        describe(bundle)
    with pytest.raises(VerificationError) as caught:
        load_bundle(bundle).predict([])
    assert name in str(caught.value) or str(bundle) in str(caught.value)


@pytest.mark.parametrize("change", [{"lineage": None}, {"lineage": []}, {"files": []}, {"files": None}, {"schema": 3}])
def test_a_manifest_of_another_shape(change: dict[str, Any], bundle: Path) -> None:
    edit(bundle / BUNDLE_MANIFEST, **change)
    assert the_problem(bundle, bundle / BUNDLE_MANIFEST)


WRONG: dict[str, tuple[str, bytes, tuple[Any, ...]]] = {
    "tensors missing": ("model.safetensors", _header(b"8"), ("'a'", 8)),
    "bytes behind": ("model.safetensors", _header(b"4") + b"evil", (8, 4)),
    "no safetensors": ("model.safetensors", b"\x80\x04" * 64, ()),
    "a list": ("model.safetensors", struct.pack("<Q", 2) + b"[]", ()),
    "a header of no length": ("model.safetensors", b"\0" * 8, ()),
    "a header that is not JSON": ("model.safetensors", struct.pack("<Q", 64) + b"\xff" * 64, ()),
    "too short for a header": ("model.safetensors", b"abc", ()),
    "remote code for images": ("preprocessor_config.json", b'{"auto_map": {}}', ("auto_map",)),
    "a policy of another schema": ("policy.json", b'{"schema": 99}', ()),
    "no JSON": ("config.json", b"{", ()),
    "no object": ("preprocessor_config.json", b"[]", ()),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_known_before_anything_is_loaded(what: str, bundle: Path) -> None:
    """By the bundle's own check: transformers has not seen it."""
    name, content, facts = WRONG[what]
    (bundle / name).write_bytes(content)
    describe(bundle)
    if name != "policy.json":
        edit(bundle / "policy.json", model_sha256=file_sha256(bundle / "model.safetensors"))
    describe(bundle)
    assert the_problem(bundle, name, *facts)


# What is done, and what the line of it holds.
DAMAGES: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "missing": (lambda b: (b / "config.json").unlink(), ("config.json",)),
    "no policy": (lambda b: (b / "policy.json").unlink(), ("policy.json",)),
    "no manifest": (lambda b: (b / BUNDLE_MANIFEST).unlink(), (BUNDLE_MANIFEST,)),
    "no JSON": (lambda b: (b / BUNDLE_MANIFEST).write_text("{"), (BUNDLE_MANIFEST,)),
    "a folder": (lambda b: [(b / BUNDLE_MANIFEST).unlink(), (b / BUNDLE_MANIFEST).mkdir()], (BUNDLE_MANIFEST,)),
    "a list": (lambda b: (b / BUNDLE_MANIFEST).write_text("[]"), (BUNDLE_MANIFEST,)),
    "absolute": (lambda b: of_manifest(b, "/etc/passwd", {"sha256": "", "size": 0}), ("/etc/passwd",)),
    "pickle named": (lambda b: [(b / "pytorch_model.bin").write_text("x"), describe(b)], ("pytorch_model.bin",)),
    "no weights": (lambda b: [(b / "model.safetensors").unlink(), describe(b)], ("model.safetensors",)),
    "no card": (lambda b: [(b / "README.md").unlink(), describe(b)], ("README.md",)),
    "no size": (lambda b: of_manifest(b, "README.md", {"sha256": "0" * 64}), (BUNDLE_MANIFEST, "size")),
    "no facts": (lambda b: of_manifest(b, "README.md", 3), (BUNDLE_MANIFEST, "size")),
    "another sha256": (lambda b: of_manifest(b, "README.md", described(b) | {"sha256": "0" * 64}),
                       ("README.md", "sha256")),
    "another size": (lambda b: of_manifest(b, "README.md", described(b) | {"size": 1}), ("README.md", " 1")),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, bundle: Path) -> None:
    act, facts = DAMAGES[damage]
    act(bundle)
    problems = bundle_problems(bundle)
    assert any(all(fact in problem for fact in facts) for problem in problems), problems
    if damage.startswith("another"):
        assert len(problems) == 1
    with pytest.raises((VerificationError, UsageError)):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "training_args.bin", "adapter_model.safetensors", "adapter_config.json", "modeling.py",
        "optimizer.pt", "plots/a.svg", "plots/../x.png", "plots/a/b.png", "../config.json", "/config.json",
        "config.json\n", "x/config.json", "bundle_manifest.json", "model.safetensors.index.json",
    ],
)  # fmt: skip
def test_what_a_bundle_may_not_hold(name: str) -> None:
    assert not is_allowed(name)


def test_the_first_of_several_problems_is_told_and_the_others_are_counted(bundle: Path) -> None:
    for number in range(3):
        (bundle / f"{number}.py").write_bytes(b"")
        with refused(VerificationError, "0.py", *([f"and {number} more"] if number else [])):
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
@pytest.mark.parametrize(("what", "name"), [
    *((what, "plots/x.png") for what in STRANGERS), ("a file", ".tmp-x"), ("a pipe", ".tmp-x"), ("a file", ".hidden"),
    ("a link to a folder", ".cache"), ("a link to a file", "modeling.py"),
])  # fmt: skip
def test_whatever_else_lies_there_is_named(what: str, name: str, bundle: Path) -> None:
    STRANGERS[what](bundle / name)
    assert the_problem(bundle, bundle / name)


@pytest.mark.parametrize("name", [".cache/x", ".cache/huggingface", ".cache/other/x", ".gitattributes/x"])
def test_only_the_notes_of_a_download_are_overlooked(name: str, bundle: Path) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(b"")
    assert the_problem(bundle, bundle / name)


def test_the_hubs_own_files_are_no_strangers(bundle: Path) -> None:
    for name in (".gitattributes", ".cache/huggingface/x.metadata"):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text("x", encoding="utf-8")
    assert bundle_problems(bundle) == []


def test_links_are_for_the_hubs_cache(bundle: Path, tmp_path: Path) -> None:
    """A folder beside one called `blobs` is none unless it is called as the cache calls it."""
    for parent, allowed in (("snapshots", True), ("elsewhere", False)):
        folder = tmp_path / parent / "repo" / parent / "commit"
        blobs = folder.parent.parent / "blobs"
        blobs.mkdir(parents=True)
        shutil.copytree(bundle, folder)
        (folder / "config.json").rename(blobs / "x")
        (folder / "config.json").symlink_to(blobs / "x")
        assert bundle_problems(folder) == [] if allowed else the_problem(folder, folder / "config.json", "link")


def test_what_the_manifest_may_not_name_is_not_even_looked_at(bundle: Path, tmp_path: Path) -> None:
    """No checksum is made of a file outside, and no second line tells whether it is there."""
    of_manifest(bundle, "../outside", {"sha256": "0" * 64, "size": 1})
    assert the_problem(bundle, bundle / BUNDLE_MANIFEST, "../outside")


# The gate.


def test_a_gate_is_the_one_of_the_policy(bundle: Path) -> None:
    """With another, with one that no policy knows, or without the one that it knows, nothing is loaded."""
    (bundle / "gate.safetensors").write_bytes(_header(b"4"))
    describe(bundle)
    weights = file_sha256(bundle / "model.safetensors")
    assert the_problem(bundle, "policy.json", "gate.safetensors")
    for verify in (True, False):
        with refused(VerificationError, "policy.json", "gate.safetensors"):
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


@pytest.mark.parametrize("reference", ["nothing", "bad name/with spaces", "a/b/c", "org/name.git", "-x/.."])
def test_what_can_be_no_repository_is_not_looked_for(reference: str) -> None:
    with refused(UsageError, reference, "org/name"):
        load_bundle(reference)


@pytest.mark.parametrize("what", ["the policy", "the weights"])
def test_a_policy_of_other_weights_is_refused(what: str, bundle: Path) -> None:
    """Even unverified, and even where the manifest was made anew."""
    if what == "the policy":
        edit(bundle / "policy.json", model_sha256="0" * 64)
    else:
        content = bytearray((bundle / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (bundle / "model.safetensors").write_bytes(content)
    describe(bundle)
    assert the_problem(bundle, "policy.json", "model.safetensors")
    for verify in (True, False):
        with refused(VerificationError, "policy.json", "model.safetensors"):
            load_bundle(bundle, verify=verify)


@pytest.mark.parametrize("lacking", [("model_sha256",), ("candidate_sha256",), ("model_sha256", "candidate_sha256")])
def test_a_policy_of_no_weights_is_refused(lacking: tuple[str, ...], bundle: Path) -> None:
    edit(bundle / "policy.json", **dict.fromkeys(lacking))
    describe(bundle)
    assert the_problem(bundle, "policy.json", "weights of a bundle")
    for verify in (True, False):
        with refused(VerificationError, "policy.json", "weights of a bundle"):
            load_bundle(bundle, verify=verify)


def test_the_policy_of_a_foreign_model_is_refused(bundle: Path) -> None:
    """As `natix-hf certify` writes it, for the same two names."""
    labels = np.arange(400) % 2
    names = tuple(json.loads((bundle / "policy.json").read_text(encoding="utf-8"))["labels"].values())
    SelectiveClassifier.fit(8.0 * labels - 4, labels, names=names).save(bundle.parent / "policy.json")
    (bundle / "policy.json").write_bytes((bundle.parent / "policy.json").read_bytes())
    describe(bundle)
    assert the_problem(bundle, "policy.json", "model.safetensors", "certify")
    for verify in (True, False):
        with refused(VerificationError, "policy.json", "model.safetensors"):
            load_bundle(bundle, verify=verify)


def test_a_pinned_bundle(bundle: Path) -> None:
    right = file_sha256(bundle / BUNDLE_MANIFEST)
    for expected in (right, "0" * 64, ""):
        with refused(UsageError, "expected", "verify=False"):
            load_bundle(bundle, verify=False, expected=expected)
    with refused(VerificationError, BUNDLE_MANIFEST, right, "0" * 64):
        load_bundle(bundle, expected="0" * 64)
    assert isinstance(load_bundle(bundle, expected=right), Bundle)
    edit(bundle / BUNDLE_MANIFEST, lineage={"recipe": "another"})
    assert bundle_problems(bundle) == []  # sealed anew, and nothing else holds it: that is what pinning is for
    with refused(VerificationError, BUNDLE_MANIFEST, right):
        load_bundle(bundle, expected=right)


def test_a_folder_has_no_revision(bundle: Path, tmp_path: Path, command: Command, monkeypatch: Any) -> None:
    """Least of all one that lies where the name of a repository leads: whoever pins means the Hub's."""
    monkeypatch.chdir(tmp_path)
    Path("lab").mkdir()
    bundle.rename("lab/roadwork")
    for reference in ("lab/roadwork", tmp_path / "lab" / "roadwork"):
        with refused(UsageError, "v1", reference):
            load_bundle(reference, revision="v1")
    load_bundle("lab/roadwork")
    Path("x.png").write_bytes(b"")
    code, _, err = command("predict", "lab/roadwork", "x.png", "--revision", "v1")
    assert code == 2 and "v1" in err and "lab/roadwork" in err
