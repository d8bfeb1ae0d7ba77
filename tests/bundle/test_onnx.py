"""`model.onnx` answers as the safetensors or is not written, belongs to its weights, and reads no other file."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY, striped_image
from local_hub import LocalHub
from PIL import Image
from safetensors.torch import load_file, save_file

import natix_hf
from natix_hf.bundle import build, load, onnx_export
from natix_hf.bundle.build import build_bundle
from natix_hf.bundle.contents import bundle_problems
from natix_hf.bundle.fetch import pull_bundle
from natix_hf.bundle.inference import ImageList, Inference
from natix_hf.bundle.load import load_bundle
from natix_hf.bundle.onnx_check import onnx_problems
from natix_hf.bundle.onnx_export import check_onnx, onnx_answers_problems, onnx_difference
from natix_hf.bundle.policy import Policy
from natix_hf.bundle.push import push_bundle
from natix_hf.calibration import Calibration
from natix_hf.errors import RunError, UsageError, VerificationError
from natix_hf.models.classifier import ARCHITECTURES, build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.provenance.files import describe_files, file_sha256, list_files, write_json
from natix_hf.results.answers import save_candidate
from natix_hf.results.candidate import Candidate
from natix_hf.runs.verify import find_problems

# The last two as Meta's: the positions of 37 x 37 patches are interpolated to those of the images.
MODELS = {name: TINY[name] for name in ARCHITECTURES} | {
    f"{name} at 518": TINY[name] | {"image_size": 518} for name in ("dinov2", "dinov2_with_registers")
}


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [striped_image(n % 2, rng) for n in range(12)]


def make_candidate(folder: Path, config: dict[str, Any], seed: int = 0) -> Candidate:
    model = ModelConfig(None, None, {"initializer_range": 0.3} | config, image_size=28)
    return save_candidate(folder, build_classifier(model, seed=seed), make_processor(model))


def make_bundle(target: Path, candidate: Candidate, images: list[Any], **options: Any) -> Policy:
    plain = Inference(candidate.model, "cpu")
    z = plain.logits(ImageList(images, plain.preprocess))
    middle = np.sort(z)[len(z) // 2 - 1 : len(z) // 2 + 1]
    assert np.ptp(middle) > 1e-3
    policy = Policy(float(middle.mean()), candidate.sha256, "", calibration=Calibration("temperature", 0.6))
    return build_bundle(
        target, candidate.model, policy, evaluation={"rows": 0}, card="# card\n", model_card=None, plots=[],
        lineage={}, images=images, expected_logits=z, onnx=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, images: list[Any]) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    make_bundle(folder / "bundle", make_candidate(folder / "candidate", TINY["dinov2"]), images)
    return folder / "bundle"


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A private copy: tests may damage it."""
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def redo_manifest(bundle: Path, retie: bool) -> None:
    """What somebody would do who means it: the manifest fits again, with `retie` the policy too."""
    policy = json.loads((bundle / "policy.json").read_text(encoding="utf-8"))
    if retie:
        policy["onnx"]["sha256"] = file_sha256(bundle / "model.onnx")
        write_json(bundle / "policy.json", policy)
    manifest = json.loads((bundle / "bundle_manifest.json").read_text(encoding="utf-8"))
    names = [name for name in list_files(bundle) if name != "bundle_manifest.json"]
    write_json(bundle / "bundle_manifest.json", manifest | {"files": describe_files(bundle, names)})


# What it answers.


@pytest.mark.parametrize("name", MODELS)
def test_it_answers_as_the_safetensors_does(name: str, images: list[Any], tmp_path: Path) -> None:
    policy = make_bundle(tmp_path / "bundle", make_candidate(tmp_path / "candidate", MODELS[name]), images)
    assert policy.onnx is not None and policy.onnx["max_difference"] < 2e-5
    # Interpolating for every image costs time, and the two runtimes do it differently; so does attention in parts.
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "bundle" / "model.onnx").graph.node)
    assert (kinds["Resize"], kinds["Softmax"], kinds["Attention"]) == (0, 0, 2)
    fast, plain = load_bundle(tmp_path / "bundle", device="cpu"), load_bundle(tmp_path / "bundle", backend="torch")
    assert (fast.backend, plain.backend) == ("onnx", "torch")
    z = plain.logits(images)
    assert np.ptp(z) > 0.1  # else anything would be within the tolerance
    for batch_size in (1, 5, 32):
        np.testing.assert_allclose(fast.logits(images, batch_size), z, atol=2e-5, rtol=0)
    features = [b._inference.answer(torch.stack([b.preprocess(image) for image in images]))[1] for b in (fast, plain)]
    np.testing.assert_allclose(*features, atol=2e-5, rtol=1e-5)
    assert [p.decision for p in fast.predict(images)] == [p.decision for p in plain.predict(images)]


def test_onnxruntime_alone_gives_what_the_card_promises(made: Path, images: list[Any]) -> None:
    """Without this package's inference: the folded threshold is the stock cut at .5."""
    session = onnxruntime.InferenceSession(made / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = np.stack([np.asarray(image.crop((3, 0, 33, 30)).resize((28, 28), 3)) for image in images])
    pixels = ((pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(0, 3, 1, 2)
    logits, features = session.run(None, {"pixel_values": pixels.astype(np.float32)})
    weights = load_file(made / "model.safetensors")
    by_hand = features @ weights["classifier.weight"].numpy().T + weights["classifier.bias"].numpy()
    np.testing.assert_allclose(logits, by_hand, atol=1e-5)
    answers = ["Roadwork" if roadwork > none else "None" for none, roadwork in logits]
    assert answers == [p.label for p in load_bundle(made, backend="torch").predict(images)]
    assert len(set(answers)) == 2


def test_it_names_no_machine_and_is_the_same_every_time(made: Path, images: list[Any], tmp_path: Path) -> None:
    content = (made / "model.onnx").read_bytes()
    for secret in (b"site-packages", b".py", b"/home", b"/tmp", str(Path.cwd()).encode()):
        assert secret not in content
    assert len(content) < 1.3 * (made / "model.safetensors").stat().st_size  # no trace of the exporter's notes
    make_bundle(tmp_path / "bundle", make_candidate(tmp_path / "candidate", TINY["dinov2"]), images)
    assert (tmp_path / "bundle" / "model.onnx").read_bytes() == content


def test_a_learned_gate_reads_its_features(images: list[Any], tmp_path: Path) -> None:
    from safetensors.numpy import save_file as save_arrays

    candidate = make_candidate(tmp_path / "candidate", TINY["dinov2"])
    rng = np.random.default_rng(0)
    width = load_file(candidate.model / "model.safetensors")["classifier.weight"].shape[1] + 2
    gate = {
        "mean": np.zeros(width), "std": np.ones(width), "layers.0.weight": rng.normal(size=(4, width)),
        "layers.0.bias": np.zeros(4), "layers.2.weight": rng.normal(size=(1, 4)), "layers.2.bias": np.zeros(1),
    }  # fmt: skip
    save_arrays({name: values.astype(np.float32) for name, values in gate.items()}, tmp_path / "gate.safetensors")
    plain = Inference(candidate.model, "cpu")
    z = plain.logits(ImageList(images, plain.preprocess))
    policy = Policy(
        float(np.median(z)), candidate.sha256, "",
        gate={"kind": "learned", "method": "x", "sha256": file_sha256(tmp_path / "gate.safetensors")},
    )  # fmt: skip
    build_bundle(
        tmp_path / "b", candidate.model, policy, evaluation={}, card="", model_card=None, plots=[], lineage={},
        images=images, expected_logits=z, gate=tmp_path / "gate.safetensors", onnx=True,
    )  # fmt: skip
    confidences = []
    for backend in ("onnx", "torch"):
        loaded = load_bundle(tmp_path / "b", backend=backend)
        z, features = loaded._inference.answer(torch.stack([loaded.preprocess(image) for image in images]))
        confidences.append(loaded._confidence(loaded.policy.unfold(z), features))
    np.testing.assert_allclose(*confidences, rtol=1e-4, atol=1e-4)
    assert np.ptp(confidences[0]) > 1e-2


# Which of the two runs.


def test_the_fastest_exact_one_that_is_present(
    bundle: Path, images: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert natix_hf.load_bundle(bundle).backend == "onnx"
    assert load_bundle(bundle, device="cpu").backend == "onnx"
    assert load_bundle(bundle, backend="torch").backend == "torch"
    assert load_bundle(bundle, precision="bfloat16").backend == "torch"
    monkeypatch.setattr(load, "default_device", lambda: torch.device("meta"))  # as if there were an accelerator
    assert load._backend(bundle, True, None, None, "float32") == "torch"
    assert load._backend(bundle, True, None, "onnx", "float32") == "onnx"  # asked for
    assert load._backend(bundle, True, "cpu", None, "float32") == "onnx"
    monkeypatch.undo()
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    assert load_bundle(bundle).backend == "torch"


def test_what_cannot_be_had_is_said(made: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, told in (
        ({"backend": "tensorrt"}, "backend is 'tensorrt': allowed is torch | onnx"),
        ({"precision": "int8"}, "precision is 'int8': allowed is float32 | bfloat16"),
        ({"backend": "onnx", "precision": "bfloat16"}, "float32 on the CPU"),
        ({"backend": "onnx", "device": "cuda"}, "float32 on the CPU"),
    ):
        with pytest.raises(UsageError, match=told.replace("|", "\\|")):
            load_bundle(made, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"phase6\.onnx=true"):
        load_bundle(finished_run, backend="onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"pip install 'natix_hf\[onnx\]'"):
        load_bundle(made, backend="onnx")


def test_refused_before_any_work(monkeypatch: pytest.MonkeyPatch, tiny_recipe_file: Path, tmp_path: Path) -> None:
    from natix_hf.pipeline import run_recipe

    with torch.device("meta"):
        check_onnx(torch.nn.Linear(10_000, 50_000))
        with pytest.raises(UsageError, match=r"at most 2 GB, this model has 2\.4"):
            check_onnx(torch.nn.Linear(10_000, 60_000))
    finder = onnx_export.importlib.util
    real = finder.find_spec
    monkeypatch.setattr(finder, "find_spec", lambda name, *rest: None if name == "onnxscript" else real(name, *rest))
    with pytest.raises(UsageError, match=r"phase6\.onnx needs onnxscript: pip install"):
        run_recipe(str(tiny_recipe_file), run_dir=tmp_path / "run", overrides=["phase6.onnx=true"])
    assert not (tmp_path / "run").exists()


# It is checked against the safetensors, or not written.


def _times(logits: Any, features: Any) -> tuple[Any, Any]:
    return logits, features * 1.001


@pytest.mark.parametrize("fault", ["first block", "features"])
def test_one_that_answers_otherwise_is_not_written(
    fault: str, images: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnx_export.load_classifier
    candidate = make_candidate(tmp_path / "candidate", TINY["dinov2"])

    def planted(folder: Path) -> Any:
        model = real(folder)
        if fault == "first block":
            next(model.base_model.encoder.parameters()).data[:] *= 1.01
        return model

    monkeypatch.setattr(onnx_export, "load_classifier", planted)
    if fault == "features":
        forward = onnx_export._LogitsAndFeatures.forward
        monkeypatch.setattr(
            onnx_export._LogitsAndFeatures, "forward", lambda self, pixel_values: _times(*forward(self, pixel_values))
        )
    with pytest.raises(RunError, match="not written"):
        make_bundle(tmp_path / "bundle", candidate, images)
    assert not (tmp_path / "bundle").exists()


def test_every_image_is_compared_with_the_candidate(
    images: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the direct comparison has seen nothing."""
    candidate = make_candidate(tmp_path / "candidate", TINY["dinov2"])
    real = onnx_export.load_classifier

    def planted(folder: Path) -> Any:
        model = real(folder)
        model.classifier.bias.data += torch.tensor([0.0, 2e-4])
        return model

    monkeypatch.setattr(onnx_export, "load_classifier", planted)
    monkeypatch.setattr(build, "onnx_difference", lambda *_: 0.0)
    with pytest.raises(RunError, match="differs from the candidate"):
        make_bundle(tmp_path / "bundle", candidate, images)


def test_batch_and_single_are_both_compared(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert onnx_difference(made) < 2e-5
    real = Inference.answer
    for wrong in (lambda n: n == 1, lambda n: n > 1):

        def answer(self: Any, pixels: Any, wrong: Any = wrong) -> Any:
            z, features = real(self, pixels)
            return z + 0.5 * (self.backend == "onnx" and wrong(len(pixels))), features

        monkeypatch.setattr(Inference, "answer", answer)
        assert onnx_difference(made) == pytest.approx(0.5, abs=1e-4)


# It belongs to the weights that lie beside it.


def test_an_onnx_of_other_weights_is_found(bundle: Path, images: list[Any], tmp_path: Path) -> None:
    make_bundle(tmp_path / "other", make_candidate(tmp_path / "candidate", TINY["dinov2"], seed=1), images)
    shutil.copyfile(tmp_path / "other" / "model.onnx", bundle / "model.onnx")
    assert any("model.onnx was changed" in problem for problem in bundle_problems(bundle))
    redo_manifest(bundle, retie=False)
    assert bundle_problems(bundle) == [
        f"{bundle / 'policy.json'} belongs to another model.onnx, or to none: download the bundle again"
    ]
    for verify in (True, False):
        with pytest.raises(VerificationError, match=r"another model\.onnx"):
            load_bundle(bundle, verify=verify)
    redo_manifest(bundle, retie=True)  # now only its answers tell
    assert bundle_problems(bundle) == []
    (problem,) = find_problems(str(bundle))
    assert "model.onnx answers otherwise than model.safetensors" in problem


@pytest.mark.parametrize("verify", [True, False])
def test_one_without_the_other(verify: bool, bundle: Path) -> None:
    policy = json.loads((bundle / "policy.json").read_text(encoding="utf-8"))
    content = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").unlink()
    redo_manifest(bundle, retie=False)
    with pytest.raises(VerificationError, match=r"another model\.onnx"):
        load_bundle(bundle, verify=verify)
    (bundle / "model.onnx").write_bytes(content)
    write_json(bundle / "policy.json", policy | {"onnx": None})
    redo_manifest(bundle, retie=False)
    with pytest.raises(VerificationError, match=r"another model\.onnx"):
        load_bundle(bundle, verify=verify)


@pytest.mark.parametrize("value", [{}, {"max_difference": 0}, [], "x", 3])
def test_a_policy_that_names_it_badly_is_damaged(value: Any, bundle: Path) -> None:
    policy = json.loads((bundle / "policy.json").read_text(encoding="utf-8"))
    write_json(bundle / "policy.json", policy | {"onnx": value})
    with pytest.raises(VerificationError, match="damaged"):
        load_bundle(bundle, verify=False)


def test_it_travels_by_the_hub(hub: LocalHub, made: Path, images: list[Any], tmp_path: Path) -> None:
    push_bundle(made, "lab/roadwork")
    there, here = load_bundle("lab/roadwork"), load_bundle(made)
    assert (there.backend, there.folder.parent.name) == ("onnx", "snapshots")
    assert there.predict(images) == here.predict(images)
    folder, _ = pull_bundle("lab/roadwork", to=tmp_path / "pulled")
    assert (folder / "model.onnx").read_bytes() == (made / "model.onnx").read_bytes()
    assert load_bundle(folder).backend == "onnx"


# It reads no other file.


def elsewhere(model: Any, place: str) -> None:
    tensor = {"initializer": model.graph.initializer[0], "attribute": None, "subgraph": None, "function": None}[place]
    if tensor is None:
        tensor = onnx.TensorProto(name="x", data_type=1, dims=[1])
        constant = onnx.helper.make_node("Constant", [], ["x"], value=tensor)
        if place == "attribute":
            model.graph.node.append(constant)
            tensor = model.graph.node[-1].attribute[0].t
        elif place == "subgraph":
            graph = onnx.helper.make_graph([constant], "inner", [], [])
            model.graph.node.append(onnx.helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph))
            tensor = model.graph.node[-1].attribute[1].g.node[0].attribute[0].t
        else:
            model.functions.append(onnx.helper.make_function("d", "f", [], [], [constant], []))
            tensor = model.functions[0].node[0].attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="../../secret"))


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph", "function"])
@pytest.mark.parametrize("verify", [True, False])
def test_weights_in_another_file_are_refused(place: str, verify: bool, bundle: Path) -> None:
    """Wherever a tensor may stand, with a manifest and a policy that fit; before any runtime sees the file."""
    model = onnx.load(bundle / "model.onnx")
    elsewhere(model, place)
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    redo_manifest(bundle, retie=True)
    with pytest.raises(VerificationError, match=r"model\.onnx keeps weights in another file, which is never read"):
        load_bundle(bundle, verify=verify)


def test_the_walk_sees_what_the_library_sees(made: Path, tmp_path: Path) -> None:
    """Against the library's own reader: either mark of external data alone is enough."""
    path = tmp_path / "model.onnx"
    for number in (0, 5, -1):
        for mark in ("location", "data"):
            model = onnx.load(made / "model.onnx")
            tensor = model.graph.initializer[number]
            if mark == "location":
                tensor.data_location = onnx.TensorProto.EXTERNAL
            else:
                tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="x"))
            path.write_bytes(model.SerializeToString())
            assert onnx_problems(path) == [f"{path} keeps weights in another file, which is never read"]
    assert onnx_problems(made / "model.onnx") == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty"), (b"\x08\x0a", "no graph"), (b"no ONNX file at all", "no ONNX file"),
        (b"\x3a\xff\xff\xff\xff\x07", "no ONNX file"), (b"\x3a" + b"\xff" * 12, "no ONNX file"),
        (b"\x0b\x0c", "begins no field"),
        (b"\x08\x0a" * 1_000_001, "more than 1,000,000 fields"),
    ],
    ids=["empty", "no graph", "text", "too long", "endless", "a group", "nothing"],
)  # fmt: skip
def test_what_is_no_onnx_file(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    (problem,) = onnx_problems(tmp_path / "model.onnx")
    assert told in problem and "\n" not in problem


def test_nested_without_end(tmp_path: Path) -> None:
    inner = b""
    for _ in range(500):  # graph in attribute in node in graph
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            inner = tag + _length(inner) + inner
    (tmp_path / "model.onnx").write_bytes(b"\x3a" + _length(inner) + inner)
    assert "nested" in onnx_problems(tmp_path / "model.onnx")[0]


def _length(content: bytes) -> bytes:
    length, out = len(content), b""
    while True:
        out += bytes([length & 127 | (128 if length > 127 else 0)])
        length >>= 7
        if not length:
            return out


def test_cut_off_or_changed_it_does_not_run(bundle: Path) -> None:
    content = (bundle / "model.onnx").read_bytes()
    for broken in (content[:-1000], b"\x08\x0a" + b"\x3a\x02\x0a\x00", content.replace(b"logits", b"logitz")):
        (bundle / "model.onnx").write_bytes(broken)
        redo_manifest(bundle, retie=True)
        with pytest.raises(VerificationError) as caught:
            load_bundle(bundle)
        assert "model.onnx" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_images_that_are_no_squares_are_refused_by_both(backend: Any, bundle: Path) -> None:
    path = bundle / "preprocessor_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, content | {"size": {"height": 28, "width": 56}})
    with pytest.raises(VerificationError, match="a square in px is needed"):
        load_bundle(bundle, verify=False, backend=backend)


def test_of_no_images_it_is_compared_on_noise(tmp_path: Path) -> None:
    candidate = make_candidate(tmp_path / "candidate", TINY["vit"])
    policy = build_bundle(
        tmp_path / "b", candidate.model, Policy(0.1, candidate.sha256, ""), evaluation={}, card="", model_card=None,
        plots=[], lineage={}, images=[], expected_logits=np.zeros(0), onnx=True,
    )  # fmt: skip
    assert policy.onnx is not None and 0 < policy.onnx["max_difference"] < 2e-5
    assert onnx_answers_problems(tmp_path / "b") == [] == find_problems(str(tmp_path / "b"))
    weights = load_file(tmp_path / "b" / "model.safetensors")
    save_file({k: v * 1.01 for k, v in weights.items()}, tmp_path / "b" / "model.safetensors", {"format": "pt"})
    assert onnx_answers_problems(tmp_path / "b") != []
