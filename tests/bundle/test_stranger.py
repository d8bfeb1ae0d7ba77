"""Bundles from strangers: what a config may hold, what fits the weights, what a policy binds, what may be asked."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import bind, describe, edit, read, unbind
from conftest import TINY, Command, refused
from PIL import Image

from natix_hf.bundle.contents import bundle_problems, decisive_problems
from natix_hf.bundle.folding import folding_problems
from natix_hf.bundle.load import Bundle, load_bundle
from natix_hf.bundle.manifest import read_bundle_manifest, write_bundle_manifest
from natix_hf.bundle.names import BUNDLE_MANIFEST
from natix_hf.errors import RecipeError, UsageError, VerificationError
from natix_hf.labels import SUBNET
from natix_hf.models.config import ModelConfig
from natix_hf.models.header import tensor_shapes
from natix_hf.models.resolved import resolved_config
from natix_hf.provenance.files import file_sha256, write_json
from natix_hf.provenance.strict import parse_strictly, read_strictly

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


def refused_in_every_way(bundle: Path, *facts: object) -> None:
    """Forged, so that no hash tells; and as a bundle of the version that bound nothing. Verified and not."""
    for prepare in (bind, unbind):
        prepare(bundle)
        describe(bundle) if prepare is bind else None
        for verify in (True, False):
            with refused(VerificationError, *facts):
                load_bundle(bundle, verify=verify)


# Configs.


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (CONFIG, {"num_hidden_layers": 20_000}), (CONFIG, {"num_hidden_layers": 3}), (CONFIG, {"hidden_size": -1}),
        (CONFIG, {"hidden_size": 10**30}), (CONFIG, {"hidden_size": 48}), (CONFIG, {"hidden_size": True}),
        (CONFIG, {"num_attention_heads": 3}), (CONFIG, {"image_size": 40_000}), (CONFIG, {"image_size": [28, 28]}),
        (CONFIG, {"hidden_act": "evil"}), (CONFIG, {"layer_norm_eps": "x"}), (CONFIG, {"model_type": "bert"}),
        (CONFIG, {"problem_type": "multi_label_classification"}), (CONFIG, {"return_dict": False}),
        (CONFIG, {"dtype": "float16"}), (CONFIG, {"per_layer_config": {"0": {"hidden_act": "relu"}}}),
        (CONFIG, {"configuration_files": ["config.5.0.0.json"]}), (CONFIG, {"architectures": ["ViTModel"]}),
        (CONFIG, {"use_swiglu_ffn": True}), (CONFIG, {"mlp_ratio": 2}), (CONFIG, {"patch_size": 7}),
        (CONFIG, {"out_indices": [10**9]}), (CONFIG, {"stage_names": ["stem"]}), (CONFIG, {"label2id": {"None": 0}}),
        (PROCESSOR, {"size": {"height": 40_000, "width": 40_000}}), (PROCESSOR, {"size": {"height": 30, "width": 30}}),
        (PROCESSOR, {"size": 28}), (PROCESSOR, {"image_mean": [0.5, 0.5]}), (PROCESSOR, {"image_mean": 1e300}),
        (PROCESSOR, {"image_std": [0, 1, 1]}), (PROCESSOR, {"do_resize": False}), (PROCESSOR, {"resample": 99}),
        (PROCESSOR, {"do_center_crop": True}), (PROCESSOR, {"rescale_factor": 1}),
        (PROCESSOR, {"image_processor_type": "EvilProcessor"}),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_what_no_export_writes_is_refused(name: str, change: dict[str, Any], bundle: Path) -> None:
    """Most of these make a traceback, gigabytes or other answers in transformers."""
    edit(bundle / name, **change)
    refused_in_every_way(bundle, bundle)


@pytest.mark.parametrize("key", ["hidden_act", "layer_norm_eps", "num_attention_heads", "image_size", "id2label"])
def test_nothing_that_decides_is_left_to_the_defaults_of_whoever_loads(key: str, bundle: Path) -> None:
    content = read(bundle / CONFIG)
    del content[key]
    write_json(bundle / CONFIG, content)
    refused_in_every_way(bundle, CONFIG, key)


TEXTS = {
    "60 MB": lambda text: text + " " * 60_000_000,
    "deep": lambda text: text.replace("{", '{"x": ' + "[" * 100_000 + "]" * 100_000 + ",", 1),
    "nested": lambda text: text.replace("{", '{"x": ' + "[" * 60 + "]" * 60 + ",", 1),
    "twice": lambda text: text.replace("{", '{"image_mean": [0, 0, 0], "hidden_act": "relu",', 1),
    "NaN": lambda text: text.replace("{", '{"x": NaN,', 1),
    "infinity": lambda text: text.replace("{", '{"x": 1e999,', 1),
    "digits": lambda text: text.replace("{", '{"x": ' + "9" * 5000 + ",", 1),
    "not UTF-8": lambda text: text + "\udcff",
}


@pytest.mark.parametrize("name", [CONFIG, PROCESSOR, "policy.json", BUNDLE_MANIFEST])
@pytest.mark.parametrize("what", TEXTS)
def test_what_is_no_strict_json_is_refused_without_memory(what: str, name: str, bundle: Path) -> None:
    text = TEXTS[what]((bundle / name).read_text(encoding="utf-8"))
    (bundle / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    tracemalloc.start()
    problems = bundle_problems(bundle) if name == BUNDLE_MANIFEST else decisive_problems(bundle)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(problems) == 1 and name in problems[0] and len(problems[0]) < 500 and peak < 20_000_000


def test_a_value_of_many_characters_is_cut_and_cleaned(tmp_path: Path) -> None:
    with refused(VerificationError, "twice", "…") as caught:
        parse_strictly(b'{"' + b"a" * 10_000 + b'": 1, "' + b"a" * 10_000 + b'": 2}', tmp_path)
    assert len(str(caught.value)) < 500
    with refused(VerificationError, "is there twice") as caught:
        parse_strictly(b'{"\\u001b[2J": 1, "\\u001b[2J": 2}', tmp_path)
    assert "\x1b" not in str(caught.value)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none"):
        with refused(VerificationError, path):
            read_strictly(path)


REFUSED = ({"return_dict": False}, {"num_hidden_layers": 1000}, {"hidden_act": "xielu"})


@pytest.mark.parametrize("change", REFUSED, ids=str)
def test_what_no_bundle_may_hold_is_refused_before_the_training(change: dict[str, Any]) -> None:
    with refused(RecipeError, "model.config", next(iter(change))):
        resolved_config(ModelConfig(config=TINY["vit"] | change, image_size=28), SUBNET)
    with refused(RecipeError, "model.image_size"):
        resolved_config(ModelConfig(config=TINY["dinov2"], image_size=14 * 1000), SUBNET)


# Weights.


def _file(path: Path, header: Any, body: int) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(body))
    return path


def _tensor(begin: int, end: int, shape: Any = (1,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


_ONE = json.dumps(_tensor(0, 4)).encode()
HEADERS: dict[str, tuple[Any, int]] = {
    "a gap": ({"a": _tensor(0, 4), "b": _tensor(8, 12)}, 12),
    "an overlap": ({"a": _tensor(0, 4), "b": _tensor(0, 4)}, 4),
    "a part of another": ({"a": _tensor(0, 8, (2,)), "b": _tensor(4, 8)}, 8),
    "bytes behind": ({"a": _tensor(0, 4)}, 8),
    "bytes missing": ({"a": _tensor(0, 8, (2,))}, 4),
    "half precision": ({"a": _tensor(0, 2, (1,), "F16")}, 2),
    "a size that is none": ({"a": _tensor(0, 4, (-1,))}, 4),
    "nothing": ({"a": _tensor(0, 0, (0,))}, 0),
    "a size beyond any file": ({"a": _tensor(0, 2**60, (2**58,))}, 4),
    "true for 1": ({"a": _tensor(0, 4, [True])}, 4),
    "nine dimensions": ({"a": _tensor(0, 4, (1,) * 9)}, 4),
    "a further key": ({"a": _tensor(0, 4) | {"x": 1}}, 4),
    "twice": (b'{"a":' + _ONE + b',"a":' + _ONE + b"}", 4),
    "another framework": ({"__metadata__": {"format": "tf"}, "a": _tensor(0, 4)}, 4),
    "metadata of numbers": ({"__metadata__": {"x": 1}, "a": _tensor(0, 4)}, 4),
    "a blank before": (b' {"a":' + _ONE + b"}", 4),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_must_describe_its_file(what: str, tmp_path: Path) -> None:
    path = _file(tmp_path / "x.safetensors", *HEADERS[what])
    with refused(VerificationError, path):
        tensor_shapes(path, 2**20)


@pytest.mark.parametrize("shapes", [{"layers.0.bias": ()}, {"layers.0.weight": (4,)}, {}], ids=str)
def test_a_gate_of_another_shape_is_one_line(shapes: dict[str, Any], bundle: Path) -> None:
    at, header = 0, {}
    for name, shape in shapes.items():
        header[name] = _tensor(at, at := at + 4 * int(np.prod(shape)), shape)
    gate = _file(bundle / "gate.safetensors", header, at)
    edit(bundle / "policy.json", gate={"kind": "learned", "method": "x", "sha256": file_sha256(gate)})
    refused_in_every_way(bundle, gate)


def test_a_right_header_is_read(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "b": _tensor(4, 28, (2, 3)), "a": _tensor(0, 4, ())}
    path = _file(tmp_path / "x.safetensors", header, 28)
    assert tensor_shapes(path, 2**20) == {"a": (), "b": (2, 3)}
    with refused(VerificationError, path, "10"):
        tensor_shapes(path, 10)


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "plots/threshold.png", "evaluation.json"])
def test_a_file_of_a_terabyte_is_not_read(name: str, bundle: Path) -> None:
    """It takes no room on the disk, and its hash an hour. The manifest agrees with it."""
    files = read(bundle / BUNDLE_MANIFEST)["files"]
    os.truncate(bundle / name, 2**40)
    edit(bundle / BUNDLE_MANIFEST, files=files | {name: {"sha256": "0" * 64, "size": 2**40}})
    with refused(VerificationError, bundle / name):
        load_bundle(bundle)


def test_a_huge_file_on_the_hub_is_not_downloaded(published: Any, hub: Any) -> None:
    hub.commit("lab/roadwork", {"README.md": b"x" * (4 * 2**20 + 1)})
    before = len(hub.asked("GET", "/resolve/"))  # what the push read back
    with refused(VerificationError, "lab/roadwork", "README.md"):
        load_bundle("lab/roadwork")
    assert len(hub.asked("GET", "/resolve/")) == before


# What belongs together.


def test_a_processor_of_another_mean_is_refused_although_every_checksum_was_made_anew(bundle: Path) -> None:
    before = load_bundle(bundle).predict(PICTURE)
    mean = read(bundle / PROCESSOR)["image_mean"]
    edit(bundle / PROCESSOR, image_mean=[0.9, 0.1, 0.4])
    describe(bundle)
    for verify in (True, False):
        with refused(VerificationError, "policy.json", PROCESSOR):
            load_bundle(bundle, verify=verify)
    unbind(bundle)  # of the last version that bound nothing: the user hears of it
    with pytest.warns(UserWarning, match=PROCESSOR):
        assert load_bundle(bundle).predict(PICTURE) != before
    edit(bundle / PROCESSOR, image_mean=mean)
    unbind(bundle)
    with pytest.warns(UserWarning, match="older bundle"):
        assert load_bundle(bundle).predict(PICTURE) == before


def test_a_config_of_another_activation_is_refused(bundle: Path) -> None:
    """Of the same tensors: only the hash tells."""
    edit(bundle / CONFIG, hidden_act="relu")
    describe(bundle)
    for verify in (True, False):
        with refused(VerificationError, "policy.json", CONFIG):
            load_bundle(bundle, verify=verify)


def test_a_run_knows_the_configs_of_its_bundle(finished_run: Path) -> None:
    """Even where policy and manifest were made anew."""
    bundle, candidate = finished_run / "phase6_export" / "bundle", finished_run / "phase1_baseline" / "model"
    assert folding_problems(bundle, candidate) == []
    edit(bundle / PROCESSOR, image_mean=[0.9, 0.1, 0.4])
    bind(bundle)
    describe(bundle)
    assert bundle_problems(bundle) == []
    (problem,) = folding_problems(bundle, candidate)
    assert PROCESSOR in problem and "image_mean" in problem


def test_an_edited_lineage_is_noticed(bundle: Path) -> None:
    content = read(bundle / BUNDLE_MANIFEST)
    assert content["schema"] == 2
    content["lineage"]["champion"] = "another"
    write_json(bundle / BUNDLE_MANIFEST, content)
    with refused(VerificationError, BUNDLE_MANIFEST, "seal"):
        load_bundle(bundle)


def test_a_bundle_of_the_last_version_loads(bundle: Path) -> None:
    unbind(bundle)
    assert bundle_problems(bundle) == [] and read(bundle / BUNDLE_MANIFEST)["schema"] == 1


def test_equal_runs_have_equal_digests(bundle: Path) -> None:
    before = read_bundle_manifest(bundle)
    write_json(bundle / "model_card.json", {"submission_time": 1})
    write_bundle_manifest(bundle, before["lineage"] | {"run_id": "another"})
    after = read_bundle_manifest(bundle)
    assert (after["digest"], after["seal"]) == (before["digest"], after["seal"]) and after["seal"] != before["seal"]
    write_json(bundle / "evaluation.json", {})
    write_bundle_manifest(bundle, before["lineage"])
    assert read_bundle_manifest(bundle)["digest"] != before["digest"]


def test_a_bundle_in_a_damaged_run_is_not_pushed(finished_run: Path, hub: Any, command: Command) -> None:
    """However it is named: the bundle itself is intact."""
    logits = finished_run / "phase1_baseline" / "logits"
    file = min(logits.iterdir())
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x01")
    for reference in (finished_run, finished_run / "phase6_export" / "bundle"):
        code, _, err = command("push", reference, "lab/roadwork")
        assert code == 1 and file.name in err
    assert not hub.requests


# What is asked.


@pytest.fixture(scope="module")
def loaded(_finished_run: Path) -> Bundle:
    return load_bundle(_finished_run)


Ask = Callable[[Bundle], Any]


@pytest.mark.parametrize("size", [0, -1, True, 1.0, "8", None, np.float64(2), [1]], ids=repr)
@pytest.mark.parametrize("how", ["predict", "stream", "logits"])
def test_a_batch_size_that_is_none(how: str, size: Any, loaded: Bundle) -> None:
    with refused(UsageError, "batch_size"):
        getattr(loaded, how)([PICTURE], batch_size=size)  # a stream is not even begun


@pytest.mark.parametrize(
    "images", [3, None, 0.5, True, [3], [[PICTURE]], [PICTURE, 3.0], (PICTURE, [1, 2]), object()], ids=lambda _: ""
)
@pytest.mark.parametrize("how", ["predict", "stream", "logits"])
def test_what_is_no_image(how: str, images: Any, loaded: Bundle) -> None:
    with refused(UsageError, "image"):
        getattr(loaded, how)(images)


def test_an_open_file_and_a_numpy_integer_are_fine(loaded: Bundle, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "x.png")
    with (tmp_path / "x.png").open("rb") as file:
        assert loaded.predict(file, batch_size=np.int64(3)) == loaded.predict(PICTURE)  # type: ignore[arg-type]
    assert loaded.predict(bytearray((tmp_path / "x.png").read_bytes())) == loaded.predict(PICTURE)


@pytest.mark.parametrize(
    "given",
    [
        {"device": "gpu"}, {"device": 3}, {"device": "cuda:99"}, {"device": "meta"}, {"device": ""}, {"device": True},
        {"backend": "tensorflow"}, {"backend": ["torch"]}, {"backend": True}, {"precision": "float16"},
        {"precision": None}, {"precision": 16}, {"expected": "abc"}, {"expected": 5}, {"expected": "A" * 64},
        {"expected": b"0" * 64}, {"verify": "no"}, {"verify": None}, {"revision": ""}, {"revision": 3},
        {"revision": "../../x"}, {"revision": "a b"}, {"revision": "x" * 300}, {"revision": "/etc"},
    ],
    ids=str,
)  # fmt: skip
def test_an_argument_that_can_mean_nothing(given: dict[str, Any], _finished_run: Path) -> None:
    with refused(UsageError, next(iter(given))):
        load_bundle(_finished_run, **given)


@pytest.mark.parametrize("reference", [None, 3, "", b"x", ["a"]], ids=repr)
def test_a_reference_that_names_nothing(reference: Any) -> None:
    with refused(UsageError, "load_bundle"):
        load_bundle(reference)
