"""Synthetic identities: a parametric face renderer in numpy.

A recipe, a test or a fresh installation can be tried without any photograph. Every identity is a
vector of traits (face shape, skin, eyes, brows, nose, mouth, hair, marks, glasses, beard), every
image of it another draw of what a photograph varies (pose, expression, light, background, noise, an
object in front of the face). What the two have in common is only the person, so a linear model on
pixels fails where a small convolutional network learns.

Coordinates are the renderer's own: u to the right and v downwards, the head's half height near 0.7,
the image spanning [-1, 1]. Every part of the face is a soft mask painted over what lies behind it.
"""

import numpy as np

__all__ = ["synthetic_identities"]

_CHUNK = 32  # images painted at a time: the working set stays in the processor's cache
_TRAITS = 48
_NUISANCES = 64

_SKIN = np.array(
    [[0.97, 0.84, 0.75], [0.91, 0.74, 0.61], [0.80, 0.60, 0.45], [0.62, 0.43, 0.31],
     [0.42, 0.28, 0.20]]
)  # fmt: skip
_HAIR = np.array(
    [[0.07, 0.06, 0.06], [0.24, 0.14, 0.09], [0.45, 0.28, 0.14], [0.82, 0.66, 0.36],
     [0.62, 0.24, 0.10], [0.66, 0.66, 0.67]]
)  # fmt: skip
_IRIS = np.array([[0.22, 0.13, 0.08], [0.42, 0.30, 0.14], [0.25, 0.42, 0.24], [0.25, 0.45, 0.68]])


class _Draws:
    """Hands out the columns of a matrix of uniform draws, one per image, as (n, 1, 1) arrays."""

    def __init__(self, uniforms: np.ndarray):
        self._uniforms = uniforms
        self._next = 0

    def unit(self) -> np.ndarray:
        """Uniform in [0, 1)."""
        column = self._uniforms[:, self._next, None, None]
        self._next += 1
        return column

    def between(self, low: float, high: float) -> np.ndarray:
        """Uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> np.ndarray:
        """1.0 with the given probability, else 0.0."""
        return (self.unit() < probability).astype(np.float32)

    def along(self, palette: np.ndarray) -> np.ndarray:
        """A colour (n, 3, 1, 1) at a uniform place between neighbours of a palette."""
        place = self.unit()[:, 0, 0] * (len(palette) - 1)
        lower = place.astype(int)
        fraction = (place - lower)[:, None]
        colour = palette[lower] * (1 - fraction) + palette[lower + 1] * fraction
        return colour[:, :, None, None].astype(np.float32)

    def one_of(self, palette: np.ndarray, spread: float = 0.04) -> np.ndarray:
        """A colour (n, 3, 1, 1) of a palette, slightly varied in brightness."""
        chosen = palette[(self.unit()[:, 0, 0] * len(palette)).astype(int)]
        colour = np.clip(chosen + (self.unit()[:, :, 0] * 2 - 1) * spread, 0, 1)
        return colour[:, :, None, None].astype(np.float32)

    def colour(self, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """Any colour (n, 3, 1, 1)."""
        return np.stack([self.between(low, high) for _ in range(3)], axis=1)


def _traits(draws: _Draws) -> dict[str, np.ndarray]:
    """What makes the person: the same for every image of an identity."""
    skin = draws.along(_SKIN)
    hair = draws.one_of(_HAIR)
    return {
        "skin": skin,
        "hair": hair,
        "iris": draws.one_of(_IRIS),
        "width": draws.between(0.43, 0.60),
        "height": draws.between(0.62, 0.76),
        "jaw": draws.between(0.05, 0.50),
        "squareness": draws.between(1.8, 3.2),
        "eye_y": draws.between(-0.18, -0.02),
        "eye_x": draws.between(0.17, 0.27),
        "eye_width": draws.between(0.080, 0.135),
        "eye_height": draws.between(0.035, 0.080),
        "eye_slant": draws.between(-0.35, 0.35),
        "brow_gap": draws.between(0.09, 0.17),
        "brow_thickness": draws.between(0.012, 0.042),
        "brow_slant": draws.between(-0.35, 0.30),
        "brow_arch": draws.between(0.0, 2.2),
        "brow_length": draws.between(0.10, 0.18),
        "nose_length": draws.between(0.16, 0.33),
        "nose_width": draws.between(0.05, 0.13),
        "mouth_y": draws.between(0.30, 0.42),
        "mouth_width": draws.between(0.12, 0.27),
        "lip": draws.between(0.018, 0.055),
        "lip_red": draws.between(0.15, 0.75),
        "ears": draws.between(0.04, 0.12),
        "hairline": draws.between(-0.62, -0.28),
        "parting": draws.between(-0.35, 0.35),
        "fringe": draws.between(-0.6, 1.0),
        "hair_volume": draws.between(0.02, 0.20),
        "hair_length": draws.between(-0.3, 1.0),
        "bald": draws.chance(0.12),
        "freckles": draws.chance(0.25),
        "mole_x": draws.between(-0.32, 0.32),
        "mole_y": draws.between(-0.05, 0.48),
        "mole": draws.chance(0.5) * draws.between(0.015, 0.030),
        "glasses": draws.chance(0.25),
        "glasses_round": draws.between(2.0, 5.0),
        "glasses_size": draws.between(0.13, 0.19),
        "beard": draws.chance(0.25) * draws.between(0.35, 0.95),
        "moustache": draws.chance(0.22) * draws.between(0.5, 0.95),
        "blush": draws.between(0.0, 0.35),
    }


def _cover(distance: np.ndarray, softness: np.ndarray | float) -> np.ndarray:
    """Coverage in [0, 1] of a shape, from the signed distance to its edge (negative inside)."""
    return np.clip(0.5 - distance / softness, 0.0, 1.0)


def _ellipse(u, v, half_width, half_height) -> np.ndarray:
    """Approximate signed distance to an ellipse about the origin."""
    radius = np.sqrt(np.square(u / half_width) + np.square(v / half_height))
    return (radius - 1.0) * np.minimum(half_width, half_height)


def _paint(canvas: np.ndarray, colour: np.ndarray, mask: np.ndarray) -> None:
    """Blend a colour (n, 3, 1, 1) or picture (n, 3, h, w) into the canvas (n, 3, h, w)."""
    canvas += mask[:, None] * (colour - canvas)


def _background(u, v, draws: _Draws) -> np.ndarray:
    """Clutter (n, 3, h, w): a gradient, stripes and blobs of arbitrary colours."""
    angle = draws.between(0, 2 * np.pi)
    ramp = np.clip(0.5 + 0.5 * (u * np.cos(angle) + v * np.sin(angle)), 0, 1)[:, None]
    canvas = draws.colour() * (1 - ramp) + draws.colour() * ramp
    angle, frequency = draws.between(0, np.pi), draws.between(3, 16)
    stripes = np.sin((u * np.cos(angle) + v * np.sin(angle)) * frequency + draws.between(0, 6))
    _paint(canvas, draws.colour(), (0.5 + 0.5 * stripes) * draws.between(0, 0.6))
    for _ in range(2):
        distance = _ellipse(
            u - draws.between(-1, 1), v - draws.between(-1, 1),
            draws.between(0.1, 0.5), draws.between(0.1, 0.5),
        )  # fmt: skip
        _paint(canvas, draws.colour(), _cover(distance, 0.1))
    return canvas


def _render(who: dict[str, np.ndarray], draws: _Draws, size: int, noise: np.ndarray) -> np.ndarray:
    """Paint n images; ``who`` holds traits (n, 1, 1), ``noise`` is (n, 3, size, size)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    image_u, image_v = np.broadcast_arrays(axis[None, None, :], axis[None, :, None])
    soft = 3.0 / size

    # Pose: the head turns by yaw and pitch, the camera adds roll, scale and shift.
    yaw, pitch = draws.between(-0.42, 0.42), draws.between(-0.26, 0.26)
    roll, scale = draws.between(-0.16, 0.16), draws.between(0.74, 1.00)
    u, v = image_u - draws.between(-0.27, 0.27), image_v - draws.between(-0.25, 0.25)
    u, v = (
        (u * np.cos(roll) + v * np.sin(roll)) * scale,
        (v * np.cos(roll) - u * np.sin(roll)) * scale,
    )
    turn, nod = np.sin(yaw), np.sin(pitch)

    def at(x, y, depth):
        """Coordinates relative to a point of the turned head, foreshortened."""
        return (u - x * np.cos(yaw) - depth * turn) / np.cos(yaw), v - y * np.cos(pitch) - (
            depth * nod
        )

    canvas = _background(image_u, image_v, draws).astype(np.float32)
    width, height, skin, hair = who["width"], who["height"], who["skin"], who["hair"]
    dark_skin = skin * 0.62
    has_hair = 1.0 - who["bald"]

    # Behind the face: long hair, neck, clothes, ears.
    back_u, back_v = at(0, -0.08, -0.12)
    length = 0.12 + height + 0.25 * np.maximum(who["hair_length"], 0)
    behind = _ellipse(
        back_u, back_v - 0.3 * np.maximum(who["hair_length"], 0), width + who["hair_volume"], length
    )
    _paint(canvas, hair * 0.7, _cover(behind, soft) * has_hair * (who["hair_length"] > 0))
    neck = np.maximum(np.abs(back_u) - width * 0.55, -(v - 0.3))
    _paint(canvas, skin * 0.75, _cover(neck, soft))
    clothes = 0.86 + 0.35 * np.square(u) - v
    _paint(canvas, draws.colour(0.05, 0.95), _cover(clothes, soft))
    for side in (-1, 1):
        ear_u, ear_v = at(side * width * 0.98, who["eye_y"] + 0.08, -0.1)
        _paint(canvas, skin * 0.88, _cover(_ellipse(ear_u, ear_v, who["ears"], 0.13), soft))

    # The face: a superellipse whose lower half tapers to the chin, shaded to the sides.
    face_u, face_v = at(0, 0, 0)
    opening = draws.between(0.0, 1.0) * draws.chance(0.45)
    chin = height + 0.06 * opening
    lower = np.clip(face_v / chin, 0, 1)
    taper = np.maximum(width * (1 - who["jaw"] * np.square(lower)), 0.05)
    power = who["squareness"]
    radius = np.power(np.abs(face_u / taper), power) + np.power(
        np.abs(face_v / np.where(face_v > 0, chin, height)), power
    )
    edge = (np.power(np.maximum(radius, 1e-6), 1 / power) - 1) * width
    face = _cover(edge, soft)
    _paint(canvas, skin * (1 - 0.35 * np.clip(1 + edge / width, 0, 1)[:, None] ** 3), face)
    for side in (-1, 1):
        cheek_u, cheek_v = at(side * width * 0.58, 0.16, 0.1)
        blush = np.exp(-(np.square(cheek_u / 0.13) + np.square(cheek_v / 0.10)))
        _paint(canvas, skin * _colour(1.0, 0.62, 0.60), blush * who["blush"] * face)
        for x, y in ((-0.06, -0.03), (0.0, 0.02), (0.07, -0.02), (0.03, 0.07), (-0.05, 0.06)):
            dot = _cover(_ellipse(cheek_u - x, cheek_v - y, 0.018, 0.018), soft)
            _paint(canvas, skin * _colour(0.66, 0.50, 0.42), dot * who["freckles"] * face * 0.8)
    spot_u, spot_v = at(who["mole_x"], who["mole_y"], 0.12)
    size_of_mole = np.maximum(who["mole"], 1e-3)
    mole = _cover(_ellipse(spot_u, spot_v, size_of_mole, size_of_mole), soft) * (who["mole"] > 0)
    _paint(canvas, skin * 0.30, mole * face)

    # Beard and moustache follow the hair's colour.
    smile, mouth_y = draws.between(-0.5, 1.3), who["mouth_y"] + 0.01 * opening
    mouth_u, mouth_v = at(0, mouth_y, 0.16)
    beard = _cover((mouth_y - 0.13) - face_v + 0.25 * (np.abs(face_u) < 0.08) * 0.1, 0.12) * face
    beard = beard * (1 - _cover(_ellipse(mouth_u, mouth_v, who["mouth_width"], 0.05), 0.05))
    _paint(canvas, hair * 0.8, beard * who["beard"])
    lip_top = _ellipse(mouth_u, mouth_v + 0.075, who["mouth_width"] * 0.85, 0.035)
    _paint(canvas, hair * 0.8, _cover(lip_top, soft) * who["moustache"] * face)

    # Mouth: lips bent by the smile, teeth and darkness behind when it opens.
    half = who["mouth_width"] * (1 + 0.12 * np.maximum(smile, 0) - 0.10 * opening)
    bent = mouth_v + smile * 0.9 * np.square(mouth_u) - 0.012 * smile
    lips = _ellipse(mouth_u, bent, half, who["lip"] + 0.055 * opening)
    red = skin * (1 - who["lip_red"][:, None]) + _colour(0.72, 0.22, 0.24) * who["lip_red"][:, None]
    _paint(canvas, red * 0.9, _cover(lips, soft) * face)
    gap = _ellipse(mouth_u, bent, half * 0.82, 0.008 + 0.050 * opening)
    _paint(canvas, dark_skin * 0.45, _cover(gap, soft) * face)
    teeth = np.maximum(gap, mouth_v + 0.005 - 0.02 * opening)
    _paint(canvas, _colour(0.95, 0.93, 0.88), _cover(teeth, soft) * (opening > 0.25) * face)

    # Nose: a shaded flank on the far side, wings and nostrils.
    tip_y = who["eye_y"] + who["nose_length"] + 0.05
    nose_u, nose_v = at(0, tip_y, 0.26)
    bridge = np.clip((nose_v + who["nose_length"]) / who["nose_length"], 0, 1) * (nose_v < 0.03)
    flank = _cover(np.abs(nose_u - turn * 0.04) - (0.02 + who["nose_width"] * 0.8 * bridge), 0.06)
    _paint(canvas, skin * 0.80, flank * bridge * 0.55 * face)
    wings = _ellipse(nose_u, nose_v, who["nose_width"], 0.045)
    _paint(canvas, skin * 0.84, _cover(wings, soft * 1.5) * face)
    _paint(canvas, skin * 1.06, _cover(_ellipse(nose_u, nose_v + 0.03, 0.03, 0.05), 0.06) * face)
    for side in (-1, 1):
        hole = _ellipse(nose_u - side * who["nose_width"] * 0.5, nose_v - 0.022, 0.022, 0.014)
        _paint(canvas, dark_skin * 0.6, _cover(hole, soft) * face)

    # Eyes, lids and brows.
    open_eye = np.where(draws.unit() < 0.08, 0.12, draws.between(0.65, 1.15))
    gaze_u, gaze_v = draws.between(-0.35, 0.35), draws.between(-0.2, 0.2)
    surprise = draws.between(-0.025, 0.035)
    for side in (-1, 1):
        eye_u, eye_v = at(side * who["eye_x"], who["eye_y"], 0.14)
        slanted = eye_v + side * who["eye_slant"] * 0.5 * eye_u
        socket = _ellipse(eye_u, slanted, who["eye_width"] * 1.3, who["eye_height"] * 1.9)
        _paint(canvas, dark_skin, _cover(socket, 0.10) * 0.35 * face)
        lid = _cover(
            _ellipse(eye_u, slanted, who["eye_width"] * 1.08, who["eye_height"] * 1.2), soft
        )
        _paint(canvas, dark_skin * 0.55, lid * face)
        aperture = who["eye_height"] * open_eye
        white = _cover(_ellipse(eye_u, slanted - 0.006, who["eye_width"], aperture), soft) * face
        _paint(canvas, _colour(0.94, 0.94, 0.93), white)
        disc_u, disc_v = eye_u - gaze_u * 0.08, slanted - gaze_v * 0.04
        _paint(canvas, who["iris"], _cover(_ellipse(disc_u, disc_v, 0.052, 0.052), soft) * white)
        _paint(
            canvas,
            _colour(0.03, 0.03, 0.03),
            _cover(_ellipse(disc_u, disc_v, 0.022, 0.022), soft) * white,
        )
        brow_v = slanted + who["brow_gap"] + surprise + side * who["brow_slant"] * eye_u
        brow_v = brow_v - who["brow_arch"] * np.square(eye_u)
        brow = np.maximum(
            np.abs(brow_v) - who["brow_thickness"], np.abs(eye_u) - who["brow_length"]
        )
        _paint(canvas, hair * 0.75, _cover(brow, soft) * face * 0.92)

    # Hair over the forehead, with the parting's asymmetry.
    top_u, top_v = at(0, -0.10, 0.02)
    cap = _ellipse(
        top_u, top_v, width + who["hair_volume"] * 0.8, height - 0.02 + who["hair_volume"]
    )
    line = who["hairline"] + 0.10
    fringe = (
        line - who["fringe"] * 0.55 * np.square(top_u - who["parting"]) + 0.05 * np.sin(top_u * 22)
    )
    sides = -(np.abs(top_u) - width * 0.90) + 0.9 * np.maximum(top_v - who["hair_length"] * 0.5, 0)
    hair_mask = _cover(np.maximum(cap, np.minimum(top_v - fringe, sides)), soft) * has_hair
    streaks = 1 + 0.16 * np.sin(top_u * 31 + top_v * 5)
    _paint(canvas, hair * streaks[:, None], hair_mask)

    # Glasses: two rims and a bridge.
    rims = None
    for side in (-1, 1):
        rim_u, rim_v = at(side * who["eye_x"] * 1.08, who["eye_y"] + 0.01, 0.20)
        reach = who["glasses_size"]
        power = who["glasses_round"]
        ring = np.power(
            np.power(np.abs(rim_u / reach), power) + np.power(np.abs(rim_v / (reach * 0.8)), power),
            1 / power,
        )
        ring = np.abs(ring - 1) * reach - 0.014
        rims = ring if rims is None else np.minimum(rims, ring)
    bar_u, bar_v = at(0, who["eye_y"], 0.22)
    rims = np.minimum(rims, np.maximum(np.abs(bar_v) - 0.012, np.abs(bar_u) - who["eye_x"] * 0.4))
    _paint(canvas, _colour(0.10, 0.09, 0.10), _cover(rims, soft) * who["glasses"])

    # Something in front of the face now and then: a slab of one colour.
    slab_u = image_u - draws.between(-0.8, 0.8)
    slab_v = image_v - draws.between(-0.8, 0.8)
    slab = np.maximum(
        np.abs(slab_u) - draws.between(0.1, 0.3), np.abs(slab_v) - draws.between(0.1, 0.3)
    )
    _paint(canvas, draws.colour(), _cover(slab, soft) * draws.chance(0.15))

    # Light: from one side, of some strength and colour; then the camera's contrast, blur, noise.
    angle, strength = draws.between(0, 2 * np.pi), draws.between(0.0, 0.65)
    light = 1 + strength * (image_u * np.cos(angle) + image_v * np.sin(angle))
    cast = draws.colour(0.85, 1.15) * draws.between(0.65, 1.25)[:, None]
    canvas *= light[:, None] * cast
    canvas = (
        (canvas - 0.5) * draws.between(0.65, 1.15)[:, None]
        + 0.5
        + draws.between(-0.08, 0.08)[:, None]
    )
    blur = (draws.unit() * draws.chance(0.35))[:, None] / 3
    padded = np.pad(canvas, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge")
    canvas = canvas + blur * (padded[:, :, 2:] + padded[:, :, :-2] - 2 * canvas)
    padded = np.pad(canvas, ((0, 0), (0, 0), (0, 0), (1, 1)), mode="edge")
    canvas = canvas + blur * (padded[..., 2:] + padded[..., :-2] - 2 * canvas)
    canvas += noise * draws.between(0.004, 0.025)[:, None]
    pixels = np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def _colour(red: float, green: float, blue: float) -> np.ndarray:
    """A constant colour (1, 3, 1, 1)."""
    return np.array([red, green, blue], np.float32)[None, :, None, None]


def synthetic_identities(
    num_identities: int = 32,
    images_per_identity: int = 24,
    image_size: int = 64,
    seed: int = 0,
    first_identity: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Render cartoon faces of invented people, deterministically.

    The same ``seed`` and identity number give the same person with the same photographs, whatever
    the other arguments are: ``num_identities=8, first_identity=32`` are eight people whom
    ``num_identities=32`` does not contain, and more ``images_per_identity`` append photographs.

    Args:
        num_identities: Number of people.
        images_per_identity: Photographs of each.
        image_size: Height and width in pixels.
        seed: Chooses the world the people come from.
        first_identity: Number of the first person; its label is 0 nevertheless.

    Returns:
        ``(images, labels)``: uint8 RGB (num_identities · images_per_identity, image_size,
        image_size, 3) and int32 labels 0 … num_identities − 1, sorted by label.

    Raises:
        ValueError: If a number is not an integer in its range.
    """
    for name, value, lowest in (
        ("num_identities", num_identities, 1),
        ("images_per_identity", images_per_identity, 1),
        ("image_size", image_size, 8),
        ("seed", seed, 0),
        ("first_identity", first_identity, 0),
    ):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < lowest:
            raise ValueError(f"`{name}` must be an integer of at least {lowest}, got {value!r}.")

    images = np.empty((num_identities * images_per_identity, image_size, image_size, 3), np.uint8)
    labels = np.repeat(np.arange(num_identities, dtype=np.int32), images_per_identity)
    traits = np.empty((num_identities, _TRAITS), np.float32)
    nuisances = np.empty((len(images), _NUISANCES), np.float32)
    for label in range(num_identities):
        key = [seed, first_identity + label]
        traits[label] = np.random.default_rng([*key, 0]).random(_TRAITS)
        rows = slice(label * images_per_identity, (label + 1) * images_per_identity)
        drawn = np.random.default_rng([*key, 1]).random((images_per_identity, _NUISANCES))
        nuisances[rows] = drawn
    for start in range(0, len(images), _CHUNK):
        rows = slice(start, start + _CHUNK)
        noise = np.stack(
            [
                np.random.default_rng(
                    [
                        seed,
                        first_identity + row // images_per_identity,
                        2,
                        row % images_per_identity,
                    ]
                ).standard_normal((3, image_size, image_size), dtype=np.float32)
                for row in range(len(images))[rows]
            ]
        )
        who = _traits(_Draws(traits[labels[rows]]))
        images[rows] = _render(who, _Draws(nuisances[rows]), image_size, noise)
    return images, labels
