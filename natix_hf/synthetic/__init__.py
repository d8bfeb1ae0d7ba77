"""The built-in data source `synthetic`: seeded videos of small street scenes, with and without roadwork.

It needs no download. With the pinned versions of numpy and Pillow it gives the same decoded pixels on every machine.
Pillow before 11.2.1 draws some lines otherwise; `drawn_otherwise` says so.
The label decides only whether the scene's roadwork or its stand-ins (look-alikes of similar colours) are drawn. All
random numbers of a scene are drawn independently of the label.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import PIL
from PIL import Image

from natix_hf.section import Section
from natix_hf.synthetic.picture import draw_frame
from natix_hf.synthetic.scene import CAMERAS, Dice, Scene, describe, draw_scene

if TYPE_CHECKING:
    import datasets

__all__ = ["SyntheticConfig", "build_synthetic", "drawn_otherwise", "label_of", "render"]

# Last number of a stream's key. All keys have the same length, because SeedSequence pads shorter ones with zeros.
_LABEL, _SCENE, _FRAMES = 0, 1, 2
# sha256 of one frame's pixels under the pinned versions. Every Pillow that draws otherwise draws this frame otherwise.
_WITNESS = "d7f6420c9750b77e11d21d629febc2a9d39533f6b22dc59d1b179b8f8953b62f"


@dataclass(frozen=True)
class SyntheticConfig(Section):
    """Settings of the built-in street scenes, for `data.source: synthetic`."""

    place: ClassVar[str] = "data.synthetic"

    camera: Annotated[Literal["a", "b"], "One of two cameras with different horizon, colour, noise and city."] = "b"
    videos: Annotated[int, "Number of videos; each is one group."] = 1400
    frames: Annotated[int, "Number of frames per video."] = 3
    image_size: Annotated[int, "Height and width of a frame in px."] = 64
    positive_share: Annotated[float, "Share of videos with roadwork."] = 0.6
    seed: Annotated[int, "Seed of the scenes."] = 0

    def check(self) -> None:
        bounds = {"videos": (2, 10**7), "frames": (1, 10**5), "image_size": (16, 4096), "seed": (0, 2**63 - 1)}
        for name, (least, most) in bounds.items():
            self.require_within(name, least, most)
        self.require(0 < self.positive_share < 1, "positive_share", "a share between 0 and 1")


def _dice(seed: int, camera: int, video: int, stream: int) -> Dice:
    return Dice(seed, camera, video, stream)


@lru_cache(maxsize=16)
def _scene(camera: str, seed: int, video: int) -> Scene:
    return draw_scene(CAMERAS[camera], _dice(seed, CAMERAS[camera].index, video, _SCENE))


def label_of(config: SyntheticConfig, video: int) -> int:
    """Label of a video: 1 if it shows roadwork, else 0. Each label is drawn independently with `positive_share`."""
    return int(_dice(config.seed, CAMERAS[config.camera].index, video, _LABEL).chance(config.positive_share))


def render(config: SyntheticConfig, video: int, frame: int) -> Image.Image:
    """Draw one frame, an RGB picture of image_size x image_size px. Its label is `label_of(config, video)`.

    The pixels depend on camera, seed, image_size, video, frame and label. They do not depend on the number of videos
    or frames, so `video` and `frame` may exceed `config.videos` and `config.frames`.
    """
    return _draw(config, video, frame, label_of(config, video))


def _draw(config: SyntheticConfig, video: int, frame: int, label: int) -> Image.Image:
    camera = CAMERAS[config.camera]
    dice = _dice(config.seed, camera.index, video, _FRAMES + frame)
    scene = _scene(config.camera, config.seed, video)
    return draw_frame(camera, scene, frame, dice, config.image_size, roadwork=label == 1)


def _examples(config: dict[str, Any], drawing: str) -> Iterator[dict[str, Any]]:
    """Yield all rows, sorted by class. `drawing` is unused; it makes datasets' cache key change with the code."""
    settings = SyntheticConfig(**config)
    city = CAMERAS[settings.camera].city
    labels = [label_of(settings, video) for video in range(settings.videos)]
    for video in sorted(range(settings.videos), key=labels.__getitem__):
        scene = _scene(settings.camera, settings.seed, video)
        name = f"{settings.camera}-{video:05d}"
        for frame in range(settings.frames):
            png = io.BytesIO()
            _draw(settings, video, frame, labels[video]).save(png, "PNG", compress_level=1)
            yield {
                "image": {"bytes": png.getvalue(), "path": None},
                "id": f"{name}-{frame}",
                "label": labels[video],
                "scene_description": describe(scene.roadwork) if labels[video] else "",
                "video_info.vid_id": name,
                "video_info.frame_id": frame,
                "scene_level_tags.daytime": scene.daytime,
                "scene_level_tags.weather": scene.weather,
                "scene_level_tags.scene_environment": scene.environment,
                "city_name": city,
            }


@lru_cache(maxsize=1)
def _drawing_digest() -> str:
    """Digest of everything else that decides the pixels: the source of this package and the drawing libraries."""
    digest = hashlib.sha256(f"numpy {np.__version__} pillow {PIL.__version__}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def drawn_otherwise() -> str | None:
    """Say that the scenes have other pixels here than under the pinned versions; None if they have the same."""
    frame = render(SyntheticConfig(seed=7, image_size=96), video=12, frame=1)
    if hashlib.sha256(frame.tobytes()).hexdigest() == _WITNESS:
        return None
    return (
        f"Pillow {PIL.__version__} draws the scenes a little otherwise than the one in constraints.txt: figures "
        "differ from those in the docs"
    )


def build_synthetic(config: SyntheticConfig) -> datasets.Dataset:
    """Build a dataset with one row per frame, **sorted by class** (label 0 first) as in the subnet's data.

    Columns: image (PNG), id ("b-00012-1"), label (int64), scene_description ("" without roadwork), video_info.vid_id
    ("b-00012"), video_info.frame_id, scene_level_tags.daytime ("day", "night"), scene_level_tags.weather ("clear",
    "rain", "fog"), scene_level_tags.scene_environment ("urban", "suburban", "rural"), city_name. The first call writes
    the rows into datasets' cache (HF_DATASETS_CACHE). Later calls with an equal configuration read them from there.
    """
    import datasets

    text, number = datasets.Value("string"), datasets.Value("int64")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "id": text,
            "label": number,
            "scene_description": text,
            "video_info.vid_id": text,
            "video_info.frame_id": number,
            "scene_level_tags.daytime": text,
            "scene_level_tags.weather": text,
            "scene_level_tags.scene_environment": text,
            "city_name": text,
        }
    )
    kwargs = {"config": config.plain(), "drawing": _drawing_digest()}
    return datasets.Dataset.from_generator(_examples, features=features, gen_kwargs=kwargs)
