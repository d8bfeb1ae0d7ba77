"""Render one frame of a scene: the ground by rows, everything else as polygons, then the effects of the camera."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from natix_hf.synthetic.objects import DRAWERS, Colour, Pen, Thing
from natix_hf.synthetic.scene import Building, Camera, Dice, Scene

_OVERSAMPLING = 3
_NEAR = 0.9  # metres; nothing nearer is drawn
_Floats = npt.NDArray[np.float64]

# (daytime, weather) -> colour at the zenith, and colour of the horizon and the haze
_SKIES: dict[tuple[str, str], tuple[Colour, Colour]] = {
    ("day", "clear"): ((92, 146, 212), (192, 214, 232)),
    ("day", "rain"): ((112, 120, 132), (160, 166, 172)),
    ("day", "fog"): ((176, 182, 188), (196, 200, 202)),
    ("night", "clear"): ((10, 13, 30), (42, 42, 58)),
    ("night", "rain"): ((14, 15, 24), (38, 38, 46)),
    ("night", "fog"): ((34, 34, 42), (66, 64, 66)),
}


class _View:
    """The pinhole camera of one frame. It projects points of the street onto the canvas and computes their colour."""

    def __init__(self, camera: Camera, scene: Scene, frame: int, dice: Dice, canvas: int) -> None:
        self.scene, self.canvas = scene, canvas
        # The car slows down, so that it never drives through the things ahead, whatever the number of frames.
        driven = frame / (1.0 + frame / 6.0)
        self.offset = scene.step * driven
        self.middle = canvas * (0.5 + scene.pan * driven + dice.between(-0.006, 0.006))
        self.horizon = canvas * (scene.horizon + dice.between(-0.006, 0.006))
        self.focal_x, self.focal_y = canvas * camera.focal_x, canvas * camera.focal_y
        self.height = camera.height
        self.exposure = dice.between(0.92, 1.08)
        self.night = scene.daytime == "night"
        self.zenith, self.haze = _SKIES[scene.daytime, scene.weather]

    def spot(self, x: float, y: float, z: float) -> tuple[int, int]:
        """Project a point to canvas px: x metres right of the road's middle, y above ground, z ahead of the camera."""
        across = self.middle + self.focal_x * (x - self.scene.camera_x) / z
        return round(across), round(self.horizon + self.focal_y * (self.height - y) / z)

    def shade(self, paint: Colour, z: float, glow: bool = False) -> Colour:
        light = 1.0
        if self.night and not glow:
            reach = z / 9.0
            light = 0.34 + 0.7 / (1.0 + reach * reach)  # street light and the car's own headlights
        elif not glow:
            light = self.scene.light
        haze = z / (z + self.scene.haze)
        if glow:
            haze = haze / 2.0
        clear = light * (1.0 - haze)
        red, green, blue = self.haze
        return (
            min(255, int(paint[0] * clear + red * haze)),
            min(255, int(paint[1] * clear + green * haze)),
            min(255, int(paint[2] * clear + blue * haze)),
        )


def _rows(view: _View, paint: Colour, z: _Floats) -> _Floats:
    """Apply `shade` to one colour at many distances. Maps metres (n,) to colours (n, 3)."""
    reach = z / 9.0
    light = 0.34 + 0.7 / (1.0 + reach * reach) if view.night else np.full_like(z, view.scene.light)
    haze = (z / (z + view.scene.haze))[:, None]
    return np.asarray(paint) * light[:, None] * (1.0 - haze) + np.asarray(view.haze) * haze


def _ground_and_sky(camera: Camera, view: _View) -> Image.Image:
    scene, size = view.scene, view.canvas
    first = round(view.horizon) + 1
    pixels = np.empty((size, size, 3), dtype=np.uint8)
    high = np.arange(first)[:, None] / first
    sky = np.asarray(view.zenith) * (1.0 - high) + np.asarray(view.haze) * high
    pixels[:first] = sky.astype(np.uint8)[:, None, :]
    down = np.arange(first, size) + 0.5 - view.horizon
    z: _Floats = np.asarray(view.focal_y * view.height / down, dtype=np.float64)
    pavement = camera.verge if scene.environment == "rural" else camera.pavement
    road = camera.road
    if scene.weather == "rain":  # a wet road is darker and mirrors the sky
        road = (road[0] * 5 // 8 + 24, road[1] * 5 // 8 + 26, road[2] * 5 // 8 + 32)
    paints = np.stack([_rows(view, paint, z) for paint in (camera.verge, pavement, road)]).astype(np.uint8)
    across = np.arange(size)[None, :] + 0.5
    surface = np.zeros((len(z), size), dtype=np.intp)
    for half in (scene.half_road + 2.4, scene.half_road):
        left = view.middle + view.focal_x * (-half - scene.camera_x) / z
        right = view.middle + view.focal_x * (half - scene.camera_x) / z
        surface += (across >= left[:, None]) & (across < right[:, None])
    pixels[first:] = paints[surface, np.arange(len(z))[:, None]]
    return Image.fromarray(pixels)


def _strip(
    draw: ImageDraw.ImageDraw, view: _View, x: float, width: float, near: float, far: float, paint: Colour
) -> None:
    """Draw a flat rectangle on the road between two distances from the first frame's camera."""
    near, far = max(near - view.offset, _NEAR), far - view.offset
    if far <= near:
        return
    corners = [view.spot(x, 0.0, near), view.spot(x + width, 0.0, near)]
    corners += [view.spot(x + width, 0.0, far), view.spot(x, 0.0, far)]
    draw.polygon(corners, fill=view.shade(paint, near))


def _road(draw: ImageDraw.ImageDraw, camera: Camera, view: _View) -> None:
    scene = view.scene
    line: Colour = (226, 220, 190) if camera.slabs else (232, 232, 230)
    joint = (camera.road[0] * 3 // 4, camera.road[1] * 3 // 4, camera.road[2] * 3 // 4)
    for x, z, length in scene.patches:
        _strip(draw, view, x, 1.3, z, z + length, (58, 58, 60))
    if camera.slabs:
        for slab in range(7):
            z = 2.0 + scene.dash_phase * 0.6 + 3.6 * slab
            _strip(draw, view, -scene.half_road, 2 * scene.half_road, z, z + 0.22, joint)
    for dash in range(9):
        z = scene.dash_phase + (4.5 if camera.slabs else 6.0) * dash
        _strip(draw, view, -0.08, 0.16, z, z + 2.4, line)
    for x in (-scene.half_road + 0.2, scene.half_road - 0.35):
        _strip(draw, view, x, 0.15, _NEAR, 70.0, line)
    if scene.crosswalk:
        for stripe in range(8):
            x = -scene.half_road + 0.3 + (2 * scene.half_road - 0.6) * stripe / 8.0
            _strip(draw, view, x, scene.half_road / 8.0, scene.crosswalk, scene.crosswalk + 2.2, (222, 222, 218))


def _skyline(draw: ImageDraw.ImageDraw, camera: Camera, view: _View) -> None:
    scene = view.scene
    edge = [-40.0, -22.0, -9.0, 4.0, 18.0, 38.0]
    for place, x in enumerate(edge):
        tall = 5.0 + ((place * 5 + int(scene.dash_phase * 7)) % 6) * (2.4 if scene.environment == "urban" else 0.7)
        paint = camera.verge if scene.environment == "rural" else camera.walls[place % len(camera.walls)]
        top = view.spot(x, tall * (1.0 + 10 * scene.hill), 75.0)
        foot = view.spot(x + 15.0, 0.0, 75.0)
        draw.rectangle((*top, *foot), fill=view.shade(paint, 75.0))


def _building(draw: ImageDraw.ImageDraw, view: _View, building: Building) -> None:
    near, far = max(building.near - view.offset, _NEAR), building.far - view.offset
    if far <= near:
        return
    x = building.side * (view.scene.half_road + (2.5 if view.scene.environment == "urban" else 5.0))
    if view.spot(x, 0.0, far)[0] * building.side > (view.canvas if building.side > 0 else 0):
        return  # completely outside the picture
    middle = (near + far) / 2.0

    def face(z0: float, z1: float, y0: float, y1: float, paint: Colour, glow: bool = False) -> None:
        corners = [view.spot(x, y0, z0), view.spot(x, y1, z0), view.spot(x, y1, z1), view.spot(x, y0, z1)]
        draw.polygon(corners, fill=view.shade(paint, middle, glow))

    left, top = view.spot(x, building.height, near)
    right, foot = view.spot(x + building.side * 12.0, 0.0, near)
    dark = (building.wall[0] * 3 // 4, building.wall[1] * 3 // 4, building.wall[2] * 3 // 4)
    draw.rectangle((min(left, right), top, max(left, right), foot), fill=view.shade(dark, near))
    face(near, far, 0.0, building.height, building.wall)
    floor, column = building.height / building.floors, (building.far - building.near) / building.columns
    for place in range(building.floors * building.columns):
        z0 = building.near - view.offset + column * (place % building.columns + 0.25)
        if z0 < _NEAR + 0.3:
            continue
        y0 = floor * (place // building.columns + 0.35)
        lit = view.night and bool(building.lit >> place & 1)
        paint: Colour = (236, 190, 110) if lit else (78, 88, 102)
        face(z0, z0 + column * 0.5, y0, y0 + floor * 0.42, paint, lit)


def _stand(draw: ImageDraw.ImageDraw, view: _View, thing: Thing) -> None:
    z = thing.z - view.offset
    if z < _NEAR:
        return
    foot_x = view.middle + view.focal_x * (thing.x - view.scene.camera_x) / z
    foot_y = view.horizon + view.focal_y * view.height / z
    scale_x, scale_y = view.focal_x / z, view.focal_y / z
    if foot_x + 4.2 * scale_x < 0 or foot_x - 4.2 * scale_x > view.canvas:
        return
    pen = Pen(draw, foot_x, foot_y, scale_x, scale_y, lambda paint, glow: view.shade(paint, z, glow))
    DRAWERS[thing.kind](pen, thing)


def _halos(view: _View, things: tuple[Thing, ...], size: int) -> _Floats:
    """Compute the warm light around street lamps at night, (size, size), from 0 to about 1 per lamp."""
    grid = (np.arange(size) + 0.5) / size
    total: _Floats = np.zeros((size, size))
    for thing in things:
        z = thing.z - view.offset
        if thing.kind != "lamp_post" or z < _NEAR:
            continue
        x, y = view.spot(thing.x + (-1.0 if thing.mirror else 1.0), 5.0, z)
        radius = 0.9 * view.focal_y / view.canvas / z
        across, down = (grid - x / view.canvas) / radius, (grid - y / view.canvas) / radius
        total += 1.0 / (1.0 + (across * across)[None, :] + (down * down)[:, None])
    return total


@lru_cache(maxsize=8)
def _vignette(size: int, strength: float) -> _Floats:
    grid = (np.arange(size) + 0.5) / size * 2.0 - 1.0
    return 1.0 - strength * (grid[None, :] ** 2 + grid[:, None] ** 2)[:, :, None] / 2.0


def _rain(draw: ImageDraw.ImageDraw, view: _View, dice: Dice) -> None:
    paint: Colour = (96, 98, 108) if view.night else (196, 200, 206)
    lean = dice.between(-0.03, 0.03)
    for x, y, length in dice.generator.random((34, 3)).tolist():
        long = 0.03 + 0.06 * length
        start = (round(x * view.canvas), round(y * view.canvas))
        draw.line((*start, round((x + lean) * view.canvas), round((y + long) * view.canvas)), fill=paint, width=1)


def _expose(camera: Camera, view: _View, dice: Dice, image: Image.Image) -> Image.Image:
    size = image.width
    if camera.blur:
        image = image.filter(ImageFilter.BoxBlur(camera.blur * size / 64.0))
    pixels = np.asarray(image, dtype=np.float64)
    if view.night:
        pixels = pixels + _halos(view, view.scene.things, size)[:, :, None] * np.array([110.0, 84.0, 44.0])
    pixels = pixels * (np.array(camera.gain) * (view.exposure / 256.0)) + camera.black
    if camera.vignette:
        pixels = pixels * _vignette(size, camera.vignette)
    # The sum of two uniform integers gives triangular noise. A dark picture is amplified, so its noise is stronger.
    width = camera.noise * 3 // 2 if view.night else camera.noise
    noise = dice.generator.integers(-width, width + 1, size=(2, size, size, 3), dtype=np.int16)
    pixels = pixels + (noise[0] + noise[1]) / 2.0
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def draw_frame(camera: Camera, scene: Scene, frame: int, dice: Dice, size: int, roadwork: bool) -> Image.Image:
    """Draw one frame, RGB, size x size px. It shows the scene's roadwork if `roadwork` is true, else the stand-ins."""
    view = _View(camera, scene, frame, dice, size * _OVERSAMPLING)
    canvas = _ground_and_sky(camera, view)
    draw = ImageDraw.Draw(canvas)
    _skyline(draw, camera, view)
    _road(draw, camera, view)
    for building in sorted(scene.buildings, key=lambda building: -building.near):
        _building(draw, view, building)
    things = (*scene.things, *(scene.roadwork if roadwork else scene.standins))
    for thing in sorted(things, key=lambda thing: -thing.z):
        _stand(draw, view, thing)
    if scene.weather == "rain":
        _rain(draw, view, dice)
    return _expose(camera, view, dice, canvas.reduce(_OVERSAMPLING))
