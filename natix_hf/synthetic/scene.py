"""Draw the layout of one synthetic video from a seed. This file makes no pixels.

Random numbers go through +, -, * and / only. These give the same bits on every machine, unlike exp, log or pow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from natix_hf.synthetic.objects import ORANGE, RED, Colour, Thing

T = TypeVar("T")


@dataclass(frozen=True)
class Camera:
    """The look of one camera and its city. Lengths are metres; focal lengths and horizon are shares of the image."""

    index: int
    city: str
    horizon: float
    height: float
    focal_x: float  # below focal_y: a landscape picture squeezed into a square
    focal_y: float
    night: float  # share of videos
    rain: float
    fog: float
    gain: Colour  # white balance, in 256ths
    black: int  # added to every channel
    noise: int  # half width of the sensor noise, in grey levels
    blur: float  # box radius in final px for a 64 px image
    vignette: float
    slabs: bool  # concrete slabs instead of asphalt
    road: Colour
    verge: Colour
    pavement: Colour
    walls: tuple[Colour, ...]


CAMERAS: dict[str, Camera] = {
    "a": Camera(
        index=0, city="Avenhaven", horizon=0.40, height=1.5, focal_x=0.72, focal_y=0.98,
        night=0.12, rain=0.14, fog=0.08, gain=(256, 256, 258), black=0, noise=2, blur=0.0, vignette=0.0,
        slabs=False, road=(92, 94, 98), verge=(98, 140, 74), pavement=(172, 170, 166),
        walls=((196, 186, 170), (160, 172, 188), (206, 204, 200), (150, 128, 116), (182, 190, 176)),
    ),
    "b": Camera(
        index=1, city="Brickborough", horizon=0.53, height=1.7, focal_x=0.92, focal_y=0.92,
        night=0.22, rain=0.24, fog=0.12, gain=(268, 250, 216), black=7, noise=4, blur=0.25, vignette=0.42,
        slabs=True, road=(140, 134, 124), verge=(136, 130, 82), pavement=(158, 140, 120),
        walls=((142, 86, 68), (168, 112, 84), (112, 96, 88), (188, 156, 118), (96, 76, 72)),
    ),
}  # fmt: skip

# kind -> (size in metres, smallest and largest share of the image's height, allowed on the road)
_SIZES: dict[str, tuple[float, float, float, bool]] = {
    "cone": (1.0, 0.12, 0.40, True),
    "barrier": (1.15, 0.13, 0.38, True),
    "sign_triangle": (1.35, 0.15, 0.45, True),
    "sign_diamond": (1.7, 0.16, 0.48, True),
    "excavator": (3.6, 0.26, 0.62, True),
    "car": (1.5, 0.08, 0.32, True),
    "taxi": (1.6, 0.08, 0.32, True),
    "bus": (3.0, 0.14, 0.48, True),
    "person": (1.75, 0.10, 0.34, False),
    "traffic_light": (1.5, 0.07, 0.24, False),
    "round_sign": (1.3, 0.08, 0.32, False),
    "awning": (2.6, 0.14, 0.44, False),
    "tree": (3.0, 0.16, 0.48, False),
    "bush": (1.0, 0.06, 0.20, False),
    "bin": (1.0, 0.05, 0.18, False),
}
_NAMES = {
    "cone": "traffic cone",
    "barrier": "striped barrier",
    "sign_triangle": "triangular construction sign",
    "sign_diamond": "diamond construction sign",
    "excavator": "excavator",
}
ROADWORK: tuple[str, ...] = tuple(_NAMES)
_CONES: tuple[Colour, ...] = (ORANGE, (236, 70, 30), (250, 120, 40))
_DIGGERS: tuple[Colour, ...] = ((242, 180, 26), (240, 124, 28), (226, 196, 60))
_CARS: tuple[Colour, ...] = (
    (176, 178, 182), (52, 54, 60), (224, 224, 222), (44, 74, 132), (132, 26, 32), (60, 92, 76), (108, 110, 116),
)  # fmt: skip
_LEAVES: tuple[Colour, ...] = ((62, 104, 50), (82, 122, 58), (52, 88, 56), (104, 126, 60))
_COATS: tuple[Colour, ...] = ((50, 70, 120), (120, 40, 48), (70, 70, 74), (170, 160, 140))
# kind -> paints, number of variants
_LOOKALIKES: tuple[tuple[str, tuple[Colour, ...], int], ...] = (
    ("car", (ORANGE, (236, 70, 30), (250, 120, 40)), 3),
    ("taxi", ((244, 190, 30), (248, 206, 60)), 3),
    ("bus", ((242, 180, 26), (240, 124, 28)), 1),
    ("person", (ORANGE, (250, 128, 36)), 1),
    ("traffic_light", (ORANGE,), 3),
    ("round_sign", (RED,), 2),
    ("awning", (RED, (222, 60, 36)), 1),
    ("tree", ((222, 112, 34), (206, 84, 30), (230, 150, 40)), 4),
    ("bush", ((216, 98, 30), (226, 136, 36)), 1),
    ("bin", ((240, 104, 28), (206, 40, 34)), 1),
)


@dataclass(frozen=True)
class Building:
    side: int  # -1 left, +1 right
    near: float
    far: float
    height: float
    wall: Colour
    floors: int
    columns: int
    lit: int  # bit mask of the lit windows at night


@dataclass(frozen=True)
class Scene:
    daytime: str
    weather: str
    environment: str
    horizon: float
    half_road: float  # metres
    camera_x: float  # metres right of the road's middle
    step: float  # metres driven between two frames
    pan: float  # shift of the vanishing point from frame to frame, share of the width
    light: float
    haze: float  # metres after which half of a colour is haze
    dash_phase: float
    crosswalk: float  # metres ahead; 0 for none
    hill: float
    patches: tuple[tuple[float, float, float], ...]  # x, z, length of tar patches
    buildings: tuple[Building, ...]
    things: tuple[Thing, ...]  # far to near, without roadwork
    roadwork: tuple[Thing, ...]  # added if the label is 1
    standins: tuple[Thing, ...]  # look-alikes added if it is 0, so that the amount of orange and red is no clue


class Dice:
    """Random floats and choices from one generator, by plain arithmetic on its 53-bit uniforms."""

    def __init__(self, *key: int) -> None:
        self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.generator.random())

    def chance(self, share: float) -> bool:
        return float(self.generator.random()) < share

    def below(self, count: int) -> int:
        return int(float(self.generator.random()) * count)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]


def describe(roadwork: Sequence[Thing]) -> str:
    """Describe the roadwork in words, such as "roadwork: 3 traffic cones, excavator"."""
    kinds = [thing.kind for thing in roadwork]
    parts = []
    for kind in dict.fromkeys(kinds):
        count = kinds.count(kind)
        parts.append(_NAMES[kind] if count == 1 else f"{count} {_NAMES[kind]}s")
    return "roadwork: " + ", ".join(parts)


def _place(dice: Dice, camera: Camera, kind: str, half_road: float, camera_x: float) -> tuple[float, float]:
    metres, small, large, on_road = _SIZES[kind]
    roll = dice.between(0.0, 1.0)
    share = small + (large - small) * roll * (0.6 + 0.4 * roll)  # small and distant things are more common
    z = camera.focal_y * metres / share
    # Place it beyond the nearest visible ground, far enough that the car does not pass it within a few frames.
    z = max(z, 1.12 * camera.focal_y * camera.height / (1.0 - camera.horizon) + 0.5)
    x = camera_x + dice.between(-0.4, 0.4) * z / camera.focal_x
    if on_road:
        return min(max(x, -half_road - 1.2), half_road + 1.2), z
    x = min(max(abs(x), half_road + 0.6), half_road + 2.4) * (1 if x > camera_x else -1)
    return x, max(z, abs(x - camera_x) * camera.focal_x / 0.4)  # far enough ahead to be within the picture


def _roadwork(dice: Dice, camera: Camera, half_road: float, camera_x: float) -> list[Thing]:
    things: list[Thing] = []
    for kind in dict.fromkeys(dice.pick(ROADWORK) for _ in range(1 + dice.below(3))):
        x, z = _place(dice, camera, kind, half_road, camera_x)
        colour = dice.pick(_DIGGERS) if kind == "excavator" else dice.pick(_CONES)
        if kind == "barrier":
            colour = dice.pick((RED, (228, 70, 32)))
        variant, mirror = dice.below(4), dice.chance(0.5)
        things.append(Thing(kind, x, z, colour, variant, mirror))
        if kind in ("cone", "barrier"):
            sideways, ahead = dice.between(-1.2, 1.2), dice.between(1.0, 2.6)
            if kind == "barrier":
                sideways = 2.7 if x < camera_x else -2.7
                ahead = 0.4
            for more in range(1, 1 + dice.below(4 if kind == "cone" else 2)):
                things.append(Thing(kind, x + more * sideways, z + more * ahead, colour, variant, mirror))
    return things


def _lookalikes(dice: Dice, camera: Camera, half_road: float, camera_x: float, count: int) -> list[Thing]:
    things = []
    for _ in range(count):
        kind, paints, variants = dice.pick(_LOOKALIKES)
        x, z = _place(dice, camera, kind, half_road, camera_x)
        things.append(Thing(kind, x, z, dice.pick(paints), dice.below(variants), dice.chance(0.5)))
    return things


def _buildings(dice: Dice, camera: Camera, environment: str) -> list[Building]:
    buildings = []
    for side in (-1, 1):
        z = dice.between(2.0, 6.0)
        for _ in range(5):
            length = dice.between(7.0, 14.0)
            tall = dice.between(6.0, 16.0) if environment == "urban" else dice.between(3.5, 6.0)
            wall, lit = dice.pick(camera.walls), dice.below(1 << 12)
            present = dice.chance({"urban": 0.92, "suburban": 0.6, "rural": 0.08}[environment])
            if present:
                floors = 3 if tall > 9 else 2
                buildings.append(Building(side, z, z + length, tall, wall, floors, 3 + dice.below(2), lit))
            z += length + (0.4 if environment == "urban" else dice.between(2.0, 6.0))
    return buildings


def _ordinary(dice: Dice, environment: str, half_road: float) -> list[Thing]:
    things: list[Thing] = []
    for _ in range({"urban": 3, "suburban": 6, "rural": 9}[environment]):
        x, z = dice.pick((-1, 1)) * (half_road + dice.between(2.6, 9.0)), dice.between(7.0, 45.0)
        things.append(Thing("tree", x, z, dice.pick(_LEAVES), dice.below(5), dice.chance(0.5)))
    for _ in range(dice.below(4)):
        right = dice.chance(0.5)
        x = half_road * dice.between(0.3, 0.85) * (1 if right else -1)
        things.append(Thing("car", x, dice.between(9.0, 40.0), dice.pick(_CARS), 0 if right else 1))
    for _ in range(dice.below(3) if environment != "rural" else 0):
        x = dice.pick((-1, 1)) * (half_road + dice.between(0.5, 2.0))
        things.append(Thing("person", x, dice.between(8.0, 24.0), dice.pick(_COATS)))
    first, side = dice.between(9.0, 16.0), dice.pick((-1, 1))
    for post in range(3):
        things.append(Thing("lamp_post", side * (half_road + 0.7), first + 11.0 * post, mirror=side > 0))
    return things


def draw_scene(camera: Camera, dice: Dice) -> Scene:
    """Draw a scene without a label. The label decides later whether its `roadwork` or its `standins` are shown."""
    night = dice.chance(camera.night)
    roll = dice.between(0.0, 1.0)
    weather = "rain" if roll < camera.rain else "fog" if roll < camera.rain + camera.fog else "clear"
    roll = dice.between(0.0, 1.0)
    environment = "urban" if roll < 0.45 else "suburban" if roll < 0.8 else "rural"
    half_road = dice.between(3.4, 5.2)
    camera_x = half_road * dice.between(0.25, 0.6)
    haze = {"clear": dice.between(160.0, 400.0), "rain": dice.between(45.0, 90.0), "fog": dice.between(16.0, 36.0)}
    scene = Scene(
        daytime="night" if night else "day",
        weather=weather,
        environment=environment,
        horizon=camera.horizon + dice.between(-0.04, 0.04),
        half_road=half_road,
        camera_x=camera_x,
        step=dice.between(0.12, 0.4),
        pan=dice.between(-0.012, 0.012),
        light=dice.between(0.8, 1.1) * (0.82 if weather == "rain" else 1.0),
        haze=haze[weather],
        dash_phase=dice.between(0.0, 6.0),
        crosswalk=dice.between(6.0, 16.0) if dice.chance(0.15) else 0.0,
        hill=dice.between(0.0, 0.09),
        patches=tuple((dice.between(-0.7, 0.7) * half_road, dice.between(4.0, 20.0), dice.between(0.8, 3.0))
                      for _ in range(dice.below(4))),
        buildings=tuple(_buildings(dice, camera, environment)),
        things=(),
        roadwork=(),
        standins=(),
    )  # fmt: skip
    things = _ordinary(dice, environment, half_road)
    things += _lookalikes(dice, camera, half_road, camera_x, dice.pick((0, 0, 1, 1, 2, 2)))
    standins = _lookalikes(dice, camera, half_road, camera_x, dice.pick((0, 1, 2, 2, 3, 3)))
    roadwork = _roadwork(dice, camera, half_road, camera_x)
    if dice.chance(0.3):
        # Put something ordinary in front of the roadwork, with label 0 too, so that it is no clue to the label.
        hidden = roadwork[0]
        kind = dice.pick(("car", "person", "tree", "bush"))
        paint = dice.pick(_CARS if kind == "car" else _COATS if kind == "person" else _LEAVES)
        x, z = hidden.x + dice.pick((-1, 1)) * dice.between(0.35, 1.1), hidden.z * dice.between(0.75, 0.95)
        things.append(Thing(kind, x, z, paint, dice.below(3), dice.chance(0.5)))
    values = {**scene.__dict__, "things": tuple(things), "roadwork": tuple(roadwork), "standins": tuple(standins)}
    return Scene(**values)
