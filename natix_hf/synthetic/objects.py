"""The things in a synthetic street: roadwork, look-alikes, and ordinary traffic.

Each function takes a `Pen` and a `Thing` and draws on the pen's canvas, in metres from the foot of the thing, y up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

ORANGE: Colour = (246, 98, 22)
RED: Colour = (212, 32, 34)
WHITE: Colour = (238, 238, 234)
BLACK: Colour = (26, 26, 28)
STEEL: Colour = (128, 130, 134)
GLASS: Colour = (58, 70, 84)


@dataclass(frozen=True)
class Thing:
    """One thing of a scene, x metres right of the road's middle and z metres ahead of the first frame's camera."""

    kind: str
    x: float
    z: float
    colour: Colour = ORANGE
    variant: int = 0
    mirror: bool = False


@dataclass(frozen=True)
class Pen:
    """Draws in metres around a foot point on the canvas. `shade` gives the colour in which the camera sees a paint."""

    draw: ImageDraw.ImageDraw
    foot_x: float
    foot_y: float
    scale_x: float  # canvas px per metre
    scale_y: float
    shade: Callable[[Colour, bool], Colour]

    def at(self, x: float, y: float) -> tuple[int, int]:
        return round(self.foot_x + x * self.scale_x), round(self.foot_y - y * self.scale_y)

    def rect(self, x0: float, y0: float, x1: float, y1: float, paint: Colour, glow: bool = False) -> None:
        (left, bottom), (right, top) = self.at(min(x0, x1), y0), self.at(max(x0, x1), y1)
        # Pillow's corners are inclusive. Without the -1 a thin post would be drawn 50% too wide.
        self.draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=self.shade(paint, glow))

    def oval(self, x0: float, y0: float, x1: float, y1: float, paint: Colour, glow: bool = False) -> None:
        (left, bottom), (right, top) = self.at(min(x0, x1), y0), self.at(max(x0, x1), y1)
        self.draw.ellipse((left, top, max(left, right - 1), max(top, bottom - 1)), fill=self.shade(paint, glow))

    def poly(self, points: Sequence[Point], paint: Colour, glow: bool = False) -> None:
        self.draw.polygon([self.at(x, y) for x, y in points], fill=self.shade(paint, glow))


def _shadow(pen: Pen, half: float) -> None:
    pen.oval(-half, -0.12, half, 0.14, (38, 38, 42))


# Roadwork


def cone(pen: Pen, thing: Thing) -> None:
    pen.rect(-0.32, 0.0, 0.32, 0.09, (150, 55, 20))
    pen.poly([(-0.25, 0.09), (0.25, 0.09), (0.06, 1.0), (-0.06, 1.0)], thing.colour)
    pen.poly([(-0.188, 0.36), (0.188, 0.36), (0.14, 0.6), (-0.14, 0.6)], WHITE)


def barrier(pen: Pen, thing: Thing) -> None:
    for x in (-1.0, 0.85):
        pen.rect(x, 0.0, x + 0.15, 1.15, STEEL)
    boards = ((0.62, 1.08), (0.12, 0.46)) if thing.variant % 2 else ((0.55, 1.08),)
    lean = -0.22 if thing.mirror else 0.22
    for low, high in boards:
        pen.rect(-1.25, low, 1.25, high, WHITE)
        for x in (-1.2, -0.55, 0.1, 0.75):
            pen.poly([(x, low), (x + 0.36, low), (x + 0.36 + lean, high), (x + lean, high)], thing.colour)
    if thing.variant >= 2:
        pen.oval(-1.08, 1.08, -0.78, 1.38, (255, 190, 40), glow=True)


def _digger_pictogram(pen: Pen, y: float, size: float) -> None:
    pen.oval(-0.3 * size, y + 0.42 * size, -0.02 * size, y + 0.72 * size, BLACK)
    pen.poly([(-0.5 * size, y - 0.4 * size), (-0.25 * size, y + 0.4 * size), (0.02 * size, y - 0.4 * size)], BLACK)
    pen.poly([(0.05 * size, y - 0.4 * size), (0.3 * size, y - 0.02 * size), (0.55 * size, y - 0.4 * size)], BLACK)


def sign_triangle(pen: Pen, thing: Thing) -> None:
    pen.rect(-0.06, 0.0, 0.06, 0.9, STEEL)
    pen.poly([(-0.8, 0.8), (0.8, 0.8), (0.0, 2.15)], RED)
    pen.poly([(-0.5, 0.97), (0.5, 0.97), (0.0, 1.8)], (250, 205, 40) if thing.variant % 2 else WHITE)
    _digger_pictogram(pen, 1.17, 0.38)


def sign_diamond(pen: Pen, thing: Thing) -> None:
    pen.rect(-0.06, 0.0, 0.06, 0.8, STEEL)
    for half, paint in ((0.85, BLACK), (0.77, (250, 130, 24))):
        pen.poly([(-half, 1.45), (0.0, 1.45 - half), (half, 1.45), (0.0, 1.45 + half)], paint)
    _digger_pictogram(pen, 1.42, 0.6)


def excavator(pen: Pen, thing: Thing) -> None:
    side = -1.0 if thing.mirror else 1.0
    dark = (thing.colour[0] * 3 // 4, thing.colour[1] * 3 // 4, thing.colour[2] * 3 // 4)

    def part(points: Sequence[Point], paint: Colour) -> None:
        pen.poly([(side * x, y) for x, y in points], paint)

    _shadow(pen, 2.0)
    part([(-1.8, 0.3), (-1.5, 0.0), (1.5, 0.0), (1.8, 0.3), (1.5, 0.75), (-1.5, 0.75)], BLACK)
    part([(-1.3, 0.28), (1.3, 0.28), (1.3, 0.48), (-1.3, 0.48)], (84, 84, 84))
    part([(-2.0, 0.85), (1.1, 0.85), (1.1, 1.6), (-1.7, 1.75), (-2.0, 1.5)], thing.colour)
    part([(-0.3, 1.6), (1.0, 1.6), (0.85, 2.9), (-0.3, 2.9)], dark)
    part([(-0.1, 1.85), (0.82, 1.85), (0.72, 2.7), (-0.1, 2.7)], GLASS)
    part([(0.9, 1.2), (1.3, 1.2), (2.6, 3.2), (2.45, 3.6), (2.1, 3.4)], thing.colour)
    part([(2.2, 3.6), (2.55, 3.15), (3.9, 2.2), (3.9, 2.6)], thing.colour)
    part([(3.65, 2.55), (3.95, 2.55), (3.7, 1.0), (3.4, 1.0)], dark)
    part([(3.8, 1.1), (3.1, 1.1), (2.85, 0.45), (3.3, 0.2), (3.75, 0.5)], (66, 62, 60))


# Look-alikes and ordinary traffic


def car(pen: Pen, thing: Thing) -> None:
    """Draw a car or van, seen from behind, oncoming, or from the side (variant 0, 1, 2)."""
    _shadow(pen, 2.1 if thing.variant == 2 else 1.0)
    if thing.variant == 2:
        side = -1.0 if thing.mirror else 1.0
        pen.poly([(side * x, y) for x, y in ((-1.3, 0.85), (-0.9, 1.45), (0.7, 1.45), (1.35, 0.85))], thing.colour)
        pen.poly([(side * x, y) for x, y in ((-1.0, 0.88), (-0.75, 1.34), (0.6, 1.34), (1.05, 0.88))], GLASS)
        pen.rect(-2.1, 0.3, 2.1, 0.9, thing.colour)
        for x in (-1.35, 1.35):
            pen.oval(x - 0.36, 0.0, x + 0.36, 0.7, BLACK)
            pen.oval(x - 0.16, 0.2, x + 0.16, 0.5, STEEL)
        return
    for x in (-0.82, 0.52):
        pen.rect(x, 0.0, x + 0.3, 0.4, BLACK)
    pen.poly([(-0.85, 0.9), (0.85, 0.9), (0.62, 1.5), (-0.62, 1.5)], thing.colour)
    pen.poly([(-0.7, 0.95), (0.7, 0.95), (0.54, 1.4), (-0.54, 1.4)], GLASS)
    pen.rect(-0.92, 0.25, 0.92, 0.95, thing.colour)
    lamp: Colour = (255, 244, 210) if thing.variant == 1 else (225, 24, 24)
    for x in (-0.88, 0.58):
        pen.rect(x, 0.58, x + 0.3, 0.8, lamp, glow=True)
    pen.rect(-0.28, 0.4, 0.28, 0.52, WHITE)


def taxi(pen: Pen, thing: Thing) -> None:
    car(pen, thing)
    pen.rect(-0.3, 1.45, 0.3, 1.68, (250, 236, 160), glow=True)


def bus(pen: Pen, thing: Thing) -> None:
    _shadow(pen, 1.35)
    for x in (-1.15, 0.75):
        pen.rect(x, 0.0, x + 0.4, 0.5, BLACK)
    pen.rect(-1.3, 0.3, 1.3, 3.0, thing.colour)
    pen.rect(-1.12, 1.5, 1.12, 2.6, GLASS)
    pen.rect(-1.3, 1.05, 1.3, 1.2, BLACK)
    for x in (-1.2, 0.9):
        pen.rect(x, 0.6, x + 0.3, 0.9, (225, 24, 24), glow=True)


def person(pen: Pen, thing: Thing) -> None:
    for x in (-0.2, 0.04):
        pen.rect(x, 0.0, x + 0.16, 0.8, (44, 48, 66))
    pen.rect(-0.28, 0.75, 0.28, 1.42, thing.colour)
    pen.oval(-0.15, 1.42, 0.15, 1.76, (206, 160, 130))


def traffic_light(pen: Pen, thing: Thing) -> None:
    pen.rect(-0.07, 0.0, 0.07, 2.2, STEEL)
    pen.rect(-0.3, 2.0, 0.3, 3.5, BLACK)
    lamps: tuple[Colour, ...] = ((255, 50, 40), (255, 180, 30), (60, 235, 110))
    for place, lamp in enumerate(lamps):
        lit = place == thing.variant % 3
        y = 3.02 - 0.46 * place
        dim = (lamp[0] // 5, lamp[1] // 5, lamp[2] // 5)
        pen.oval(-0.19, y, 0.19, y + 0.4, lamp if lit else dim, glow=lit)


def round_sign(pen: Pen, thing: Thing) -> None:
    pen.rect(-0.06, 0.0, 0.06, 1.2, STEEL)
    pen.oval(-0.65, 1.0, 0.65, 2.3, RED)
    if thing.variant % 2:
        pen.rect(-0.46, 1.54, 0.46, 1.78, WHITE)
    else:
        pen.oval(-0.42, 1.23, 0.42, 2.07, WHITE)


def awning(pen: Pen, thing: Thing) -> None:
    """Draw a kiosk under a red and white striped awning."""
    pen.rect(-1.5, 0.0, 1.5, 2.4, (116, 96, 82))
    pen.rect(-1.3, 0.9, 1.3, 1.9, (60, 52, 48))
    for stripe in range(8):
        x, foot = -1.5 + 0.375 * stripe, -1.8 + 0.45 * stripe
        paint = thing.colour if stripe % 2 else WHITE
        pen.poly([(x, 2.6), (x + 0.375, 2.6), (foot + 0.45, 1.75), (foot, 1.75)], paint)


def tree(pen: Pen, thing: Thing) -> None:
    high = 2.6 + 0.5 * thing.variant
    leaf = thing.colour
    light = (min(255, leaf[0] * 9 // 8), min(255, leaf[1] * 9 // 8), min(255, leaf[2] * 9 // 8))
    side = -1.0 if thing.mirror else 1.0
    pen.rect(-0.15, 0.0, 0.15, high * 0.55, (84, 64, 48))
    pen.oval(-1.4, high * 0.45, 1.4, high * 0.95, leaf)
    pen.oval(-1.0 + 0.3 * side, high * 0.62, 0.9 + 0.3 * side, high * 1.1, leaf)
    pen.oval(-0.7 * side - 0.6, high * 0.6, -0.7 * side + 0.6, high * 0.85, light)


def bush(pen: Pen, thing: Thing) -> None:
    pen.oval(-0.9, -0.05, 0.5, 1.0, thing.colour)
    pen.oval(-0.2, -0.05, 1.0, 0.75, thing.colour)


def bin_box(pen: Pen, thing: Thing) -> None:
    pen.rect(-0.3, 0.0, 0.3, 0.85, thing.colour)
    pen.rect(-0.34, 0.8, 0.34, 0.98, (60, 60, 62))


def lamp_post(pen: Pen, thing: Thing) -> None:
    side = -1.0 if thing.mirror else 1.0
    pen.rect(-0.07, 0.0, 0.07, 5.2, (88, 90, 94))
    pen.rect(0.0, 5.1, 1.2 * side, 5.25, (88, 90, 94))
    pen.rect(0.7 * side, 4.95, 1.3 * side, 5.15, (255, 214, 140), glow=True)


DRAWERS: dict[str, Callable[[Pen, Thing], None]] = {
    "cone": cone,
    "barrier": barrier,
    "sign_triangle": sign_triangle,
    "sign_diamond": sign_diamond,
    "excavator": excavator,
    "car": car,
    "taxi": taxi,
    "bus": bus,
    "person": person,
    "traffic_light": traffic_light,
    "round_sign": round_sign,
    "awning": awning,
    "tree": tree,
    "bush": bush,
    "bin": bin_box,
    "lamp_post": lamp_post,
}
