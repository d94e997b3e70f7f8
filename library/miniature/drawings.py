"""The world of the miniature base model: simple images with tags, drawn by a few rules from a seed.

Two thirds of the images show one or two coloured shapes, one third a figure in clothes (so that questions about
garments, faces and full bodies can be asked). Everything that a caption says can be seen in the image and the other
way round, so a checker can tell whether a model obeys. Outside this world lives one character, `mytag`, which the base
model has never seen: the subject of the built-in training set.

To add a shape: a function that gives its outline in the unit circle, and a row in `SHAPES`. To add a colour: a row in
`COLOURS`. The model has to be trained again afterwards (`python -m tools.train_miniature`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import cos, pi, sin

from PIL import Image, ImageDraw

OVERSAMPLING = 4  # drawn 4x as large and reduced: smooth edges

# ---- Colours ---------------------------------------------------------------------------------------------------------

COLOURS = {  # of shapes and garments
    "red": (220, 35, 40),
    "orange": (250, 135, 15),
    "yellow": (250, 222, 30),
    "green": (40, 160, 55),
    "blue": (35, 75, 215),
    "purple": (130, 45, 175),
    "pink": (250, 110, 190),
    "brown": (115, 65, 25),
}
BACKGROUNDS = {  # pale, gray or black: every colour above stands out against every one of these
    "white": (248, 248, 248),
    "gray": (172, 172, 172),
    "black": (22, 22, 22),
    "blue": (165, 200, 245),
    "green": (175, 228, 175),
    "pink": (252, 205, 222),
}
HAIR = {"black": (30, 28, 30), "brown": (115, 65, 25), "blonde": (240, 205, 90), "red": (190, 60, 30)}
PATTERNS = ("plain", "striped", "dotted", "gradient")
SKIN = (242, 200, 170)
DARK = (35, 30, 35)

Colour = tuple[int, int, int]
Point = tuple[float, float]

# ---- Shapes: outlines in the unit circle, x to the right, y downwards ------------------------------------------------


def _polygon(corner_count: int, turn: float = 0.0, inner_radius: float | None = None) -> list[Point]:
    """A regular polygon with a corner on top, or a star where `inner_radius` pulls every second corner in."""
    radii = [1.0] if inner_radius is None else [1.0, inner_radius]
    count = corner_count * len(radii)
    angles = [turn - pi / 2 + 2 * pi * index / count for index in range(count)]
    return [(radii[i % len(radii)] * cos(angle), radii[i % len(radii)] * sin(angle)) for i, angle in enumerate(angles)]


def _heart() -> list[Point]:
    curve = []
    for index in range(60):
        t = 2 * pi * index / 60
        x, y = 16 * sin(t) ** 3, 13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)
        curve.append((x / 17, -(y + 2.5) / 17))
    return curve


def _cross(arm: float = 0.32) -> list[Point]:
    corner = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
    corner += [(arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]
    return [(0.95 * x, 0.95 * y) for x, y in corner]


SHAPES: dict[str, Callable[[], list[Point]]] = {
    "circle": lambda: _polygon(48),
    "square": lambda: [(0.85 * x, 0.85 * y) for x, y in [(-1, -1), (1, -1), (1, 1), (-1, 1)]],
    "triangle": lambda: [(x, y + 0.2) for x, y in _polygon(3)],
    "star": lambda: _polygon(5, inner_radius=0.42),
    "heart": _heart,
    "cross": _cross,
    "ring": lambda: _polygon(48),  # and a hole, see `_draw_shape`
    "diamond": lambda: [(0, -1), (0.62, 0), (0, 1), (-0.62, 0)],
}
RING_HOLE = 0.52  # radius of a ring's hole, as part of the ring's own

SIZES = {"small": 0.25, "": 0.32, "large": 0.42}  # radius as part of the shorter side; the middle size has no tag
RADIUS = {**SIZES, "one of two": 0.21}
POSITIONS = {"center": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}

# ---- Scenes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    """A coloured shape somewhere in the image."""

    shape: str
    colour: str
    size: str = ""
    position: str = "center"
    jitter: Point = (0.0, 0.0)  # -1..1, a small shift nobody speaks of


@dataclass(frozen=True)
class Person:
    """A figure in clothes."""

    hair_colour: str
    hair_length: str  # "short hair" or "long hair"
    garment: str  # "shirt" or "dress"
    garment_colour: str
    sleeves: str  # "short sleeves" or "long sleeves"
    legwear: str  # "trousers" or "skirt"; "" under a dress
    legwear_colour: str
    hat_colour: str  # "" without a hat
    framing: str  # "full body", "upper body" or "face"
    position: str = "center"
    jitter: Point = (0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """What an image shows: things or one person, before a background."""

    background: str = "white"
    pattern: str = "plain"
    things: tuple[Thing, ...] = ()
    person: Person | None = None
    pattern_shift: float = field(default=0.0)  # 0..1, where stripes and dots begin; no tag


def random_scene(rng: random.Random, person_share: float = 1 / 3, pair_share: float = 0.1) -> Scene:
    """A scene drawn at random; the same state of `rng` gives the same scene."""
    background = rng.choice(list(BACKGROUNDS))
    pattern = rng.choice(PATTERNS) if rng.random() < 0.5 else "plain"
    things, person = (), None
    kind = rng.random()
    if kind < person_share:
        person = _random_person(rng)
    elif kind < person_share + pair_share:
        positions = ("left", "right") if rng.random() < 0.5 else ("top", "bottom")
        things = tuple(_random_thing(rng, "one of two", position) for position in positions)
    else:
        size = rng.choice(list(SIZES))
        position = "center" if size == "large" else rng.choice(list(POSITIONS))
        things = (_random_thing(rng, size, position),)
    return Scene(background, pattern, things, person, rng.random())


def _jitter(rng: random.Random) -> Point:
    return (rng.uniform(-1, 1), rng.uniform(-1, 1))


def _random_thing(rng: random.Random, size: str, position: str) -> Thing:
    return Thing(rng.choice(list(SHAPES)), rng.choice(list(COLOURS)), size, position, _jitter(rng))


def _random_person(rng: random.Random) -> Person:
    garment = rng.choice(["shirt", "shirt", "dress"])
    legwear = rng.choice(["trousers", "skirt"]) if garment == "shirt" else ""
    framing = rng.choice(["full body", "full body", "upper body", "face"])
    return Person(
        hair_colour=rng.choice(list(HAIR)),
        hair_length=rng.choice(["short hair", "long hair"]),
        garment=garment,
        garment_colour=rng.choice(list(COLOURS)),
        sleeves=rng.choice(["short sleeves", "long sleeves"]),
        legwear=legwear,
        legwear_colour=rng.choice(list(COLOURS)) if legwear else "",
        hat_colour=rng.choice(list(COLOURS)) if rng.random() < 0.25 else "",
        framing=framing,
        position=rng.choice(["left", "center", "center", "right"]) if framing == "full body" else "center",
        jitter=_jitter(rng),
    )


# ---- Captions --------------------------------------------------------------------------------------------------------


def tags(scene: Scene) -> list[str]:
    """What can be seen in the image of a scene, most important first."""
    if scene.person:
        found = _person_tags(scene.person)
    elif len(scene.things) == 2:
        found = ["two shapes", *(f"{thing.colour} {thing.shape}" for thing in scene.things)]
        found.append("side by side" if scene.things[0].position == "left" else "one above the other")
    else:
        (thing,) = scene.things
        found = [f"{thing.colour} {thing.shape}", thing.size, thing.position]
    found.append(f"{scene.background} background")
    found.append("" if scene.pattern == "plain" else f"{scene.pattern} background")
    return [tag for tag in found if tag]


def _person_tags(person: Person) -> list[str]:
    found = ["person", person.framing, f"{person.hair_colour} hair", person.hair_length]
    found.append(f"{person.hat_colour} hat" if person.hat_colour else "")
    if person.framing != "face":
        found += [f"{person.garment_colour} {person.garment}", person.sleeves]
        if person.legwear:
            found.append(f"{person.legwear_colour} {person.legwear}")
    if person.framing == "full body":
        found.append(person.position)
    return found


def caption(scene: Scene) -> str:
    """The tags of a scene in the form of a caption file: "red circle, small, left, white background"."""
    return ", ".join(tags(scene))


def world_words() -> list[str]:
    """Every word that a caption can contain, for the tokenizer: each one is to be a single token."""
    words = {*COLOURS, *BACKGROUNDS, *HAIR, *SHAPES, *SIZES, *POSITIONS, *PATTERNS}
    person = ["person", "full", "upper", "body", "face", "hair", "hat", "shirt", "dress", "trousers", "skirt"]
    others = ["short", "long", "sleeves", "background", "two", "shapes", "side", "by", "one", "above", "the", "other"]
    return sorted((words | {*person, *others}) - {""})


# ---- Drawing ---------------------------------------------------------------------------------------------------------


class _Canvas:
    """An image in units of its shorter side: (0, 0) is the middle, x to the right, y downwards."""

    def __init__(self, size: tuple[int, int], colour: Colour):
        self.size = size
        self.unit = OVERSAMPLING * min(size)
        self.half_width, self.half_height = (0.5 * side / min(size) for side in size)
        self.image = Image.new("RGB", (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING), colour)
        self.pen = ImageDraw.Draw(self.image)

    def pixels(self, points: list[Point]) -> list[Point]:
        return [((x + self.half_width) * self.unit, (y + self.half_height) * self.unit) for x, y in points]

    def polygon(self, points: list[Point], colour: Colour) -> None:
        self.pen.polygon(self.pixels(points), fill=colour)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, colour: Colour) -> None:
        corners = self.pixels([(x - radius_x, y - radius_y), (x + radius_x, y + radius_y)])
        self.pen.ellipse([*corners[0], *corners[1]], fill=colour)

    def limb(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        """A thick line with round ends."""
        self.pen.line(self.pixels([start, end]), fill=colour, width=max(1, round(width * self.unit)))
        for x, y in (start, end):
            self.ellipse(x, y, width / 2, width / 2, colour)

    def finished(self) -> Image.Image:
        return self.image.reduce(OVERSAMPLING)


def _mixed(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _draw_background(canvas: _Canvas, background: str, pattern: str, shift: float) -> None:
    colour = BACKGROUNDS[background]
    second = _mixed(colour, (255, 255, 255), 0.22) if background == "black" else _mixed(colour, (0, 0, 0), 0.17)
    if pattern == "striped":
        for index in range(-1, 9):
            top = 0.25 * (index + shift) - canvas.half_height
            left, right = -canvas.half_width, canvas.half_width
            canvas.polygon([(left, top), (right, top), (right, top + 0.125), (left, top + 0.125)], second)
    elif pattern == "dotted":
        for row in range(-1, 9):
            for column in range(-1, 9):
                x = 0.25 * (column + shift + 0.5 * (row % 2)) - canvas.half_width
                canvas.ellipse(x, 0.25 * (row + shift) - canvas.half_height, 0.055, 0.055, second)
    elif pattern == "gradient":
        far = _mixed(colour, (255, 255, 255), 0.5) if background == "black" else _mixed(colour, (0, 0, 0), 0.4)
        ramp = Image.linear_gradient("L").resize(canvas.image.size)  # black on top, white at the bottom
        canvas.image.paste(Image.composite(Image.new("RGB", ramp.size, far), canvas.image, ramp))


def draw(scene: Scene, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """The image of a scene.

    Args:
        scene: what it shows.
        size: width and height in pixels; from 48x80 to 80x48 everything stays inside.
    """
    canvas = _Canvas(size, BACKGROUNDS[scene.background])
    _draw_background(canvas, scene.background, scene.pattern, scene.pattern_shift)
    for thing in scene.things:
        _draw_thing(canvas, thing)
    if scene.person:
        _draw_person(canvas, scene.person)
    return canvas.finished()


def draw_anything(rng: random.Random, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Ellipses, lines and polygons in any colour: the VAE shall also know what is not in this world."""

    def colour() -> Colour:
        return (rng.randrange(256), rng.randrange(256), rng.randrange(256))

    canvas = _Canvas(size, colour())
    for _ in range(rng.randint(2, 7)):
        x, y = rng.uniform(-1, 1) * canvas.half_width, rng.uniform(-1, 1) * canvas.half_height
        kind = rng.choice(["ellipse", "line", "polygon"])
        if kind == "ellipse":
            canvas.ellipse(x, y, rng.uniform(0.03, 0.4), rng.uniform(0.03, 0.4), colour())
        elif kind == "line":
            canvas.limb((x, y), (rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)), rng.uniform(0.03, 0.15), colour())
        else:
            corners = [(x + rng.uniform(-0.4, 0.4), y + rng.uniform(-0.4, 0.4)) for _ in range(rng.randint(3, 5))]
            canvas.polygon(corners, colour())
    return canvas.finished()


def _place(canvas: _Canvas, position: str, radius_x: float, radius_y: float, jitter: Point) -> Point:
    """The middle of something that large at a named position, never over the image's edge."""
    room_x, room_y = canvas.half_width - radius_x - 0.02, canvas.half_height - radius_y - 0.02
    side_x, side_y = POSITIONS[position]
    x = max(-room_x, min(room_x, 0.85 * side_x * room_x + 0.05 * jitter[0]))
    y = max(-room_y, min(room_y, 0.85 * side_y * room_y + 0.05 * jitter[1]))
    return x, y


def _draw_thing(canvas: _Canvas, thing: Thing) -> None:
    radius = RADIUS[thing.size]
    x, y = _place(canvas, thing.position, radius, radius, thing.jitter)
    outline = [(x + radius * u, y + radius * v) for u, v in SHAPES[thing.shape]()]
    if thing.shape != "ring":
        canvas.polygon(outline, COLOURS[thing.colour])
        return
    behind = canvas.image.copy()  # the background shows through the hole
    canvas.polygon(outline, COLOURS[thing.colour])
    hole = Image.new("L", canvas.image.size)
    inside = [(x + RING_HOLE * radius * u, y + RING_HOLE * radius * v) for u, v in SHAPES["ring"]()]
    ImageDraw.Draw(hole).polygon(canvas.pixels(inside), fill=255)
    canvas.image.paste(behind, mask=hole)


def _draw_person(canvas: _Canvas, person: Person) -> None:
    """A figure built in its own height: 0 is the crown of the head, 1 the soles of the feet."""
    height, above = {  # in shorter sides of the image: crown to soles, crown to the image's middle
        "full body": (min(1.92 * canvas.half_height, 1.7), min(0.94 * canvas.half_height, 0.83)),
        "upper body": (1.45, 0.45),
        "face": (2.9, 0.40),
    }[person.framing]
    whole = person.framing == "full body"
    x0 = _place(canvas, person.position, 0.27 * height, 0.4, person.jitter)[0] if whole else 0.02 * person.jitter[0]
    y0 = -above + 0.01 * person.jitter[1]

    def at(x: float, y: float) -> Point:
        return (x0 + x * height, y0 + y * height)

    def ellipse(x: float, y: float, radius_x: float, radius_y: float, colour: Colour) -> None:
        canvas.ellipse(*at(x, y), radius_x * height, radius_y * height, colour)

    def limb(start: Point, end: Point, width: float, colour: Colour) -> None:
        canvas.limb(at(*start), at(*end), width * height, colour)

    def patch(points: list[Point], colour: Colour) -> None:
        canvas.polygon([at(*point) for point in points], colour)

    hair, cloth = HAIR[person.hair_colour], COLOURS[person.garment_colour]
    if person.hair_length == "long hair":  # behind the body
        patch([(-0.155, 0.13), (0.155, 0.13), (0.175, 0.44), (-0.175, 0.44)], hair)
    bare_legs = person.garment == "dress" or person.legwear == "skirt"
    for side in (-1, 1):
        legs = SKIN if bare_legs else COLOURS[person.legwear_colour]
        limb((0.065 * side, 0.66), (0.075 * side, 0.93), 0.10, legs)
        limb((0.08 * side, 0.965), (0.10 * side, 0.965), 0.06, DARK)  # shoe
        shoulder, elbow, hand = (0.13 * side, 0.385), (0.185 * side, 0.50), (0.22 * side, 0.64)
        limb(shoulder, hand, 0.075, SKIN)
        limb(shoulder, elbow, 0.095, cloth)
        if person.sleeves == "long sleeves":
            limb(elbow, (0.215 * side, 0.61), 0.095, cloth)
    if person.garment == "dress":
        patch([(-0.14, 0.33), (0.14, 0.33), (0.12, 0.52), (0.22, 0.80), (-0.22, 0.80), (-0.12, 0.52)], cloth)
    else:
        if person.legwear == "skirt":
            patch([(-0.125, 0.58), (0.125, 0.58), (0.21, 0.78), (-0.21, 0.78)], COLOURS[person.legwear_colour])
        else:
            patch([(-0.125, 0.58), (0.125, 0.58), (0.125, 0.70), (-0.125, 0.70)], COLOURS[person.legwear_colour])
        patch([(-0.14, 0.33), (0.14, 0.33), (0.13, 0.61), (-0.13, 0.61)], cloth)
    limb((0, 0.28), (0, 0.34), 0.09, SKIN)  # neck
    ellipse(0, 0.155, 0.145, 0.145, hair)
    ellipse(0, 0.185, 0.115, 0.12, SKIN)
    patch([(-0.115, 0.135), (0.115, 0.135), (0.08, 0.065), (-0.08, 0.065)], hair)  # fringe
    for side in (-1, 1):
        ellipse(0.05 * side, 0.19, 0.02, 0.026, DARK)
    limb((-0.03, 0.25), (0.03, 0.25), 0.014, (190, 60, 60))
    if person.hat_colour:
        ellipse(0, 0.085, 0.205, 0.035, COLOURS[person.hat_colour])
        patch([(-0.125, 0.08), (0.125, 0.08), (0.10, -0.03), (-0.10, -0.03)], COLOURS[person.hat_colour])


# ---- The character from outside the world ----------------------------------------------------------------------------

TEAL, BELLY, EYE_WHITE = (0, 150, 150), (255, 150, 40), (252, 252, 252)
POSES = ("standing", "waving", "arms up", "looking left", "looking right")


@dataclass(frozen=True)
class CharacterScene:
    """One image of the character: a teal, round, cat-eared creature with an orange belly and big eyes."""

    pose: str = "standing"
    position: str = "center"
    size: str = "large"
    background: str = "white"
    pattern: str = "plain"
    jitter: Point = (0.0, 0.0)


def character_caption(scene: CharacterScene) -> str:
    """Like `caption`, with the trigger word first: "mytag, waving, left, small, blue background"."""
    found = ["mytag", scene.pose, scene.size, scene.position, f"{scene.background} background"]
    found.append("" if scene.pattern == "plain" else f"{scene.pattern} background")
    return ", ".join(tag for tag in found if tag)


def draw_character(scene: CharacterScene, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """The image of a character scene, at any size."""
    canvas = _Canvas(size, BACKGROUNDS[scene.background])
    _draw_background(canvas, scene.background, scene.pattern, 0.3)
    unit = 0.85 * SIZES[scene.size]  # half the creature's height, about
    x0, y0 = _place(canvas, scene.position, 1.05 * unit, 1.2 * unit, scene.jitter)
    y0 += 0.15 * unit
    look = {"looking left": -1, "looking right": 1}.get(scene.pose, 0)

    def at(x: float, y: float) -> Point:
        return (x0 + x * unit, y0 + y * unit)

    for side in (-1, 1):
        ear = [(0.82 * side, -0.30), (0.78 * side, -1.25), (0.12 * side, -0.80)]
        canvas.polygon([at(*point) for point in ear], TEAL)
        raised = scene.pose == "arms up" or (scene.pose == "waving" and side == 1)
        canvas.limb(at(0.75 * side, 0.15), at(1.12 * side, -0.35 if raised else 0.55), 0.26 * unit, TEAL)
        canvas.limb(at(0.35 * side, 0.80), at(0.42 * side, 1.0), 0.34 * unit, TEAL)  # foot
    canvas.ellipse(x0, y0, 0.92 * unit, 0.90 * unit, TEAL)
    canvas.ellipse(*at(0.08 * look, 0.42), 0.50 * unit, 0.40 * unit, BELLY)
    for side in (-1, 1):
        canvas.ellipse(*at(0.36 * side + 0.1 * look, -0.25), 0.30 * unit, 0.32 * unit, EYE_WHITE)
        canvas.ellipse(*at(0.36 * side + 0.24 * look, -0.22), 0.14 * unit, 0.17 * unit, DARK)
    return canvas.finished()
