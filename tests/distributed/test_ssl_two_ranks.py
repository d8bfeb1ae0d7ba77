"""The self-supervised losses on two gloo ranks are those of one process with all the rows, gradients too."""

from __future__ import annotations

from pathlib import Path

import pytest
import ssl_rank
import torch
from ranks import launch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.xdist_group("ranks")  # which are forked from one process
WORLD = 2


def rows() -> dict[str, torch.Tensor]:
    """Six images; those of rank 1 have more masked patches than those of rank 0."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    chance = torch.tensor([0.1, 0.1, 0, 0.5, 0.4, 0.6])
    data = {
        "globals": noise(6, 2, 8), "locals": noise(6, 3, 8), "teacher": torch.tanh(noise(6, 2, 8)),
        "tokens": noise(6, 16, 8), "teacher_tokens": torch.tanh(noise(6, 16, 8)),
        "masks": torch.rand(6, 16, generator=generator) < chance[:, None], "features": noise(6, 4),
        "global_crops": noise(6, 2, 3, 28, 28), "local_crops": noise(6, 2, 3, 14, 14),
        "crop_masks": torch.rand(6, 2, 16, generator=generator) < chance[:, None, None],
    }  # fmt: skip
    # Neighbours on different ranks, in one direction only: a loss of each rank's own rows would show.
    data["features"][4] = data["features"][0] + 0.05
    data["features"][5] = data["features"][4] + 0.01
    return data


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    save_file(rows(), folder / "data.safetensors")
    done = launch("cpu_2proc.yaml", Path(ssl_rank.__file__), folder, str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return [load_file(folder / f"rank_{rank}.safetensors") for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> dict[str, torch.Tensor]:
    return ssl_rank.everything(rows(), 0, 1)


def test_there_are_two_ranks(ranks: list[dict[str, torch.Tensor]]) -> None:
    assert [int(found["world_size"]) for found in ranks] == [WORLD, WORLD]
    assert not torch.equal(ranks[0]["dino_targets"], ranks[1]["dino_targets"])


@pytest.mark.parametrize("name", ["dino_targets", "ibot_targets"])
def test_targets_of_the_ranks_are_those_of_all_rows(
    name: str, ranks: list[dict[str, torch.Tensor]], alone: dict[str, torch.Tensor]
) -> None:
    torch.testing.assert_close(torch.cat([found[name] for found in ranks]), alone[name], rtol=1e-5, atol=1e-7)
    assert len(ranks[0]["ibot_targets"]) != len(ranks[1]["ibot_targets"])


@pytest.mark.parametrize("name", ["dino", "ibot", "koleo"])
def test_losses_and_gradients_of_the_ranks_average_to_those_of_all_rows(
    name: str, ranks: list[dict[str, torch.Tensor]], alone: dict[str, torch.Tensor]
) -> None:
    mean = torch.stack([found[name] for found in ranks]).mean()
    torch.testing.assert_close(mean, alone[name], rtol=1e-5, atol=1e-6)
    gradients = [key for key in alone if key.startswith(f"{name}_") and key[-1].isdigit()]
    assert gradients
    for key in gradients:
        whole = torch.cat([found[key] for found in ranks]) / WORLD
        torch.testing.assert_close(whole, alone[key], rtol=1e-4, atol=1e-6)


def test_koleo_sees_the_rows_of_other_ranks(ranks: list[dict[str, torch.Tensor]]) -> None:
    own = [ssl_rank.koleo_loss(ssl_rank.share(rows()["features"], rank, WORLD)) for rank in range(WORLD)]
    assert abs(torch.stack(own).mean() - ranks[0]["koleo"]) > 0.1


@pytest.mark.parametrize("targets", ["sinkhorn", "centre"])
def test_two_steps_of_two_ranks_are_those_of_one(
    targets: str, ranks: list[dict[str, torch.Tensor]], alone: dict[str, torch.Tensor]
) -> None:
    keys = [key for key in alone if key.startswith(f"{targets}: ") and "loss" not in key]
    assert {key.split()[1].split(".")[0] for key in keys} >= {"gradient", "student", "teacher", "teacher_heads"}
    assert all(alone[key].any() for key in keys if key.endswith("centre")), "a centre never moved"
    for key in keys:
        assert torch.equal(ranks[0][key], ranks[1][key]), f"{key} differs between the ranks"
        torch.testing.assert_close(ranks[0][key], alone[key], rtol=1e-3, atol=2e-6, msg=key)
    for step in range(2):
        key = f"{targets}: loss {step}"
        mean = torch.stack([found[key] for found in ranks]).mean()
        torch.testing.assert_close(mean, alone[key], rtol=1e-5, atol=1e-5)
