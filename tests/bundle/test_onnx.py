"""`model.onnx` answers as the safetensors or is not written, belongs to its weights, and reads no other file."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from bundles import describe, edit, read
from conftest import TINY, refused, striped_image
from facts import tells
from local_hub import LocalHub
from PIL import Image
from safetensors.torch import load_file, save_file

import natix_hf
from natix_hf.bundle import asked, build, inference, onnx_export
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
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import file_sha256, write_json
from natix_hf.results.answers import save_candidate
from natix_hf.results.candidate import Candidate
from natix_hf.runs.verify import find_problems

# Each architecture once, two of them as Meta's: the positions of 37 x 37 patches are interpolated to the images'.
META = {"dinov2": {"image_size": 518}, "dinov2_with_registers": {"image_size": 518}}
MODELS = {name: TINY[name] | META.get(name, {}) for name in ARCHITECTURES}
Make = Callable[..., Policy]


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [striped_image(n % 2, rng) for n in range(12)]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, images: list[Any]) -> Make:
    """Makes the bundle of an architecture. An export takes seconds: weights that had one get its file again."""
    folder, real = tmp_path_factory.mktemp("exported"), build.export_onnx

    def remember(bundle: Path, image_size: int) -> None:
        kept = folder / f"{file_sha256(bundle / 'model.safetensors')}.onnx"
        if not kept.exists():
            real(bundle, image_size)
            shutil.copyfile(bundle / "model.onnx", kept)
        shutil.copyfile(kept, bundle / "model.onnx")

    def make(target: Path, name: str, with_images: bool = True, export: Any = remember, **options: Any) -> Policy:
        if not (folder / name).exists():
            model = ModelConfig(None, None, {"initializer_range": 0.3} | MODELS[name], image_size=28)
            save_candidate(folder / name, build_classifier(model, seed=0), make_processor(model))
        candidate = Candidate(folder / name)
        plain = Inference(candidate.model, "cpu")
        z = plain.logits(ImageList(images, plain.preprocess))
        middle = np.sort(z)[len(z) // 2 - 1 : len(z) // 2 + 1]
        assert np.ptp(middle) > 1e-3
        threshold, compared = float(middle.mean()), images if with_images else []
        kind = options.pop("policy_gate", {"kind": "margin"})
        policy = Policy(threshold, candidate.sha256, "", calibration=Calibration("temperature", 0.6), gate=kind)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "export_onnx", export)
            return build_bundle(
                target, candidate.model, policy, evaluation={"rows": 0}, card="# card\n", model_card=None, plots=[],
                lineage={}, images=compared, expected_logits=z[: len(compared)], onnx=True, **options,
            )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, exported: Make) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "bundle"
    exported(folder, "dinov2")
    return folder


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A private copy: tests may damage it."""
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def redo_manifest(bundle: Path, retie: bool) -> None:
    """What somebody would do who means it: the manifest fits again, with `retie` the policy too."""
    if retie:
        onnx_facts = read(bundle / "policy.json")["onnx"]
        edit(bundle / "policy.json", onnx=onnx_facts | {"sha256": file_sha256(bundle / "model.onnx")})
    describe(bundle)


# What it answers.


@pytest.mark.parametrize("name", MODELS)
def test_it_answers_as_the_safetensors_does(name: str, exported: Make, images: list[Any], tmp_path: Path) -> None:
    policy = exported(tmp_path / "bundle", name)
    assert policy.onnx is not None and policy.onnx.max_difference < 2e-5
    # Interpolating for every image costs time, and the two runtimes do it differently; so does attention in parts.
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "bundle" / "model.onnx").graph.node)
    # A Swin V2 block adds the positions of its window to the cosines, in parts; a ConvNeXt V2 attends to nothing.
    parts, whole = {"swinv2": (3, 0), "convnextv2": (0, 0)}.get(name, (0, 2))
    assert (kinds["Resize"], kinds["Softmax"], kinds["Attention"]) == (0, parts, whole)
    fast, plain = load_bundle(tmp_path / "bundle", device="cpu"), load_bundle(tmp_path / "bundle", backend="torch")
    assert (fast.backend, plain.backend) == ("onnx", "torch")
    z = plain.logits(images)
    assert np.ptp(z) > 0.1  # else anything would be within the tolerance
    for batch_size in (1, 5, 32):
        np.testing.assert_allclose(fast.logits(images, batch_size), z, atol=2e-5, rtol=0)
    features = [b._inference.answer(torch.stack([b.preprocess(image) for image in images]))[1] for b in (fast, plain)]
    np.testing.assert_allclose(*features, atol=2e-5, rtol=1e-5)
    assert [p.decision for p in fast.predict(images)] == [p.decision for p in plain.predict(images)]
    content = (tmp_path / "bundle" / "model.onnx").read_bytes()
    for secret in (b"site-packages", b".py", b"/home", b"/tmp", str(Path.cwd()).encode()):
        assert secret not in content
    if name not in META:  # no trace of the exporter's notes
        assert len(content) < 1.3 * (tmp_path / "bundle" / "model.safetensors").stat().st_size


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


def test_it_is_the_same_every_time(bundle: Path) -> None:
    before = (bundle / "model.onnx").read_bytes()
    onnx_export.export_onnx(bundle, 28)
    assert (bundle / "model.onnx").read_bytes() == before


def test_a_learned_gate_reads_its_features(made: Path, exported: Make, images: list[Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    width = load_file(made / "model.safetensors")["classifier.weight"].shape[1] + 2
    gate = {
        "mean": np.zeros(width), "std": np.ones(width), "layers.0.weight": rng.normal(size=(4, width)),
        "layers.0.bias": np.zeros(4), "layers.2.weight": rng.normal(size=(1, 4)), "layers.2.bias": np.zeros(1),
    }  # fmt: skip
    tensors = {name: torch.tensor(values, dtype=torch.float32) for name, values in gate.items()}
    save_file(tensors, tmp_path / "gate.safetensors")
    learned = {"kind": "learned", "method": "x", "sha256": file_sha256(tmp_path / "gate.safetensors")}
    exported(tmp_path / "b", "dinov2", gate=tmp_path / "gate.safetensors", policy_gate=learned)
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
    monkeypatch.setattr(asked, "kind_of_device", lambda device: device or "cuda")  # as if there were an accelerator
    assert asked.choose_backend(bundle, True, None, None, "float32") == "torch"
    assert asked.choose_backend(bundle, True, None, "onnx", "float32") == "onnx"  # asked for
    assert asked.choose_backend(bundle, True, "cpu", None, "float32") == "onnx"
    monkeypatch.undo()
    monkeypatch.setattr(asked, "is_installed", lambda name: name != "onnxruntime")
    assert load_bundle(bundle).backend == "torch"


def test_what_cannot_be_had_is_said(made: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, facts in (
        ({"backend": "tensorrt"}, ("backend", "tensorrt", "torch", "onnx")),
        ({"precision": "int8"}, ("precision", "int8", "float32", "bfloat16")),
        ({"backend": "onnx", "precision": "bfloat16"}, ("model.onnx", "float32", "CPU")),
        ({"backend": "onnx", "device": "cuda"}, ("model.onnx", "float32", "CPU")),
    ):
        with refused(UsageError, *facts):
            load_bundle(made, **options)  # type: ignore[arg-type]
    with refused(UsageError, finished_run, "phase6.onnx=true"):
        load_bundle(finished_run, backend="onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with refused(UsageError, "pip install 'natix_hf[onnx]'"):
        load_bundle(made, backend="onnx")


def test_refused_before_any_work(monkeypatch: pytest.MonkeyPatch, tiny_recipe_file: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        check_onnx(torch.nn.Linear(10_000, 50_000))
        with refused(UsageError, "phase6.onnx", "2 GB", "2.4"):
            check_onnx(torch.nn.Linear(10_000, 60_000))
    finder = onnx_export.importlib.util
    real = finder.find_spec
    monkeypatch.setattr(finder, "find_spec", lambda name, *rest: None if name == "onnxscript" else real(name, *rest))
    with refused(UsageError, "phase6.onnx", "onnxscript", "pip install"):
        run_recipe(str(tiny_recipe_file), run_dir=tmp_path / "run", overrides=["phase6.onnx=true"])
    assert not (tmp_path / "run").exists()


# It is checked against the safetensors, or not written.


def wrong_export(made: Path, fault: str) -> Any:
    """An export that leaves another file: of `made` with one weight changed, or with other features."""
    model = onnx.load(made / "model.onnx")
    weights = load_file(made / "model.safetensors")
    if fault == "features":
        out = next(output for output in model.graph.output if output.name == "features")
        for node in model.graph.node:
            node.output[:] = ["inner" if name == out.name else name for name in node.output]
            node.input[:] = ["inner" if name == out.name else name for name in node.input]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1.001, dtype=np.float32), "more"))
        model.graph.node.append(onnx.helper.make_node("Mul", ["inner", "more"], ["features"]))
    else:
        name, moved = {"a layer": ("dinov2.layernorm.weight", 1.01), "bias": ("classifier.bias", 1)}[fault]
        given = weights[name].numpy()
        found = [i for i, tensor in enumerate(model.graph.initializer)
                 if np.array_equal(onnx.numpy_helper.to_array(tensor), given)]  # fmt: skip
        assert len(found) == 1
        tensor = model.graph.initializer[found[0]]
        changed = given * np.float32(moved) + (np.array([0, 2e-4], dtype=np.float32) if fault == "bias" else 0)
        tensor.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.float32), tensor.name))
    return lambda bundle, image_size: (bundle / "model.onnx").write_bytes(model.SerializeToString()) and None


@pytest.mark.parametrize("fault", ["a layer", "features", "bias"])
def test_one_that_answers_otherwise_is_not_written(
    fault: str, made: Path, exported: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image is compared with the candidate, even where the direct comparison has seen nothing."""
    if fault == "bias":
        monkeypatch.setattr(build, "onnx_difference", lambda *_: 0.0)
    with pytest.raises(RunError):
        exported(tmp_path / "bundle", "dinov2", export=wrong_export(made, fault))
    assert not (tmp_path / "bundle").exists()


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


def test_an_onnx_of_other_weights_is_found(bundle: Path, exported: Make, tmp_path: Path) -> None:
    exported(tmp_path / "other", "dinov2_with_registers")
    shutil.copyfile(tmp_path / "other" / "model.onnx", bundle / "model.onnx")
    assert any("model.onnx" in problem for problem in bundle_problems(bundle))
    redo_manifest(bundle, retie=False)
    (problem,) = bundle_problems(bundle)
    assert tells(problem, bundle / "policy.json", "model.onnx")
    for verify in (True, False):
        with refused(VerificationError, "policy.json", "model.onnx"):
            load_bundle(bundle, verify=verify)
    redo_manifest(bundle, retie=True)  # now only its answers tell
    assert bundle_problems(bundle) == []
    (problem,) = find_problems(str(bundle))
    assert tells(problem, "model.onnx", "model.safetensors")


@pytest.mark.parametrize("verify", [True, False])
def test_one_without_the_other(verify: bool, bundle: Path) -> None:
    content, policy = (bundle / "model.onnx").read_bytes(), read(bundle / "policy.json")
    (bundle / "model.onnx").unlink()
    redo_manifest(bundle, retie=False)
    with refused(VerificationError, "policy.json", "model.onnx"):
        load_bundle(bundle, verify=verify)
    (bundle / "model.onnx").write_bytes(content)
    write_json(bundle / "policy.json", policy)
    edit(bundle / "policy.json", onnx=None)
    redo_manifest(bundle, retie=False)
    with refused(VerificationError, "policy.json", "model.onnx"):
        load_bundle(bundle, verify=verify)


@pytest.mark.parametrize("value", [{}, {"max_difference": 0}, [], "x", 3])
def test_a_policy_that_names_it_badly_is_damaged(value: Any, bundle: Path) -> None:
    edit(bundle / "policy.json", onnx=value)
    with refused(VerificationError, "policy.json"):
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
def test_weights_in_another_file_are_refused(
    place: str, verify: bool, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a tensor may stand, with a manifest and a policy that fit; before any runtime sees the file."""
    model = onnx.load(bundle / "model.onnx")
    elsewhere(model, place)
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    redo_manifest(bundle, retie=True)
    monkeypatch.setattr(inference, "onnx_forward", None)
    with refused(VerificationError, "model.onnx"):
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
            (problem,) = onnx_problems(path)
            assert tells(problem, path)
    assert onnx_problems(made / "model.onnx") == []


NO_ONNX = {
    "empty": b"", "no graph": b"\x08\x0a", "text": b"no ONNX file at all", "too long": b"\x3a\xff\xff\xff\xff\x07",
    "endless": b"\x3a" + b"\xff" * 12, "a group": b"\x0b\x0c", "1,000,000": b"\x3a\x00" + b"\x08\x0a" * 1_000_001,
}  # fmt: skip


@pytest.mark.parametrize("what", NO_ONNX)
def test_what_is_no_onnx_file(what: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(NO_ONNX[what])
    (problem,) = onnx_problems(tmp_path / "model.onnx")
    assert tells(problem, tmp_path / "model.onnx")


def test_nested_without_end(tmp_path: Path) -> None:
    inner = b""
    for _ in range(500):  # graph in attribute in node in graph
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            inner = tag + _length(inner) + inner
    (tmp_path / "model.onnx").write_bytes(b"\x3a" + _length(inner) + inner)
    (problem,) = onnx_problems(tmp_path / "model.onnx")
    assert tells(problem, tmp_path / "model.onnx")


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
        with refused(VerificationError, "model.onnx"):
            load_bundle(bundle)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_images_that_are_no_squares_are_refused_by_both(backend: Any, bundle: Path) -> None:
    edit(bundle / "preprocessor_config.json", size={"height": 28, "width": 56})
    with refused(VerificationError, "square"):
        load_bundle(bundle, verify=False, backend=backend)


def test_of_no_images_it_is_compared_on_noise(exported: Make, tmp_path: Path) -> None:
    bundle = tmp_path / "b"
    policy = exported(bundle, "vit", with_images=False)
    assert policy.onnx is not None and 0 < policy.onnx.max_difference < 2e-5
    assert onnx_answers_problems(bundle) == [] == find_problems(str(bundle))
    weights = load_file(bundle / "model.safetensors")
    save_file({k: v * 1.01 for k, v in weights.items()}, bundle / "model.safetensors", {"format": "pt"})
    assert onnx_answers_problems(bundle) != []
