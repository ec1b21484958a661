"""The ten body plans. Each draws a whole creature, back to front, on the stage; it stands on y = 0.72."""

import math
from collections.abc import Callable

import numpy as np

from tools.pocket.drawing import shapes
from tools.pocket.drawing.faces import Head, draw_face, outline
from tools.pocket.drawing.paint import WHITE, Mark, Part, tube
from tools.pocket.drawing.parts import (
    Stage,
    arm,
    charm,
    claws,
    draw_crest,
    draw_ears,
    draw_tail,
    draw_wing,
    foot,
    held,
    markings,
)
from tools.pocket.drawing.shapes import Path, curve, ellipse, grow

STEPS: dict[str, tuple[complex, complex]] = {  # where the left and the right foot go
    "stand": (0j, 0j), "sit": (0j, 0j), "run": (0.06 - 0.09j, -0.04 + 0.02j), "jump": (-0.05 - 0.02j, 0.05 + 0.05j),
}
CROWNS = {"round": 0.94, "wide": 0.9, "cheeks": 0.94, "square": 0.94, "tall": 1.0, "drop": 1.1}
NOWHERE = ellipse(9j, 0.1)  # for a head without a belly


def draw_head(stage: Stage, head: Head, marks: tuple[Mark, ...], edge: Path | None = None) -> None:
    """Ears, crest, the head itself (or another edge about it) and its face."""
    draw_ears(stage, head)
    draw_crest(stage, head, CROWNS[stage.species.head] if edge is None else 0.95)
    edge = outline(head, stage.species.head) if edge is None else edge
    stage.pen.figure(Part(edge, stage.main, (*marks, _gloss(stage, head))))
    draw_face(stage.pen, head, stage.species, stage.pose.mood)


def _gloss(stage: Stage, head: Head) -> Mark:
    """A short bright stroke where the light falls: always at the upper left of the picture."""
    side = 1 if stage.pose.mirror else -1
    turn = np.linspace(0.56, 1.0, 8)
    return Mark(head.centre + 0.8 * (side * np.cos(turn) * head.rx - 1j * np.sin(turn) * head.ry), WHITE, line=0.019)


def _face_marks(stage: Stage, head: Head) -> tuple[Mark, ...]:
    return markings(stage, head, NOWHERE)


def _feet(stage: Stage, y: float, apart: float, size: float = 1.0) -> None:
    """Two feet as the pose has them; a sitting creature shows its soles."""
    legs = stage.pose.action.legs
    for side, step in zip((-1, 1), STEPS[legs], strict=True):
        at = complex(side * apart * (1.25 if legs == "sit" else 1.0), y) + step
        stage.pen.figure(foot(stage, at, side, sole=legs == "sit", size=size))


def _arms(
    stage: Stage, shoulder: complex, length: float, *, raised: bool, radius: float = 0.085, steep: float = 1.0
) -> None:
    """The raised arms, which go behind the body, or the others, which go in front."""
    for side, degrees in zip((-1, 1), stage.pose.action.arms, strict=True):
        if (degrees > 0) != raised:
            continue
        root = complex(side * shoulder.real, shoulder.imag)
        reach = length + 0.08 if raised else length
        part = arm(stage, root, side, degrees * (steep if raised else 1.0), reach, radius)
        if stage.pose.action.holds and raised:
            held(stage, complex(part.path[-1]), side)
        stage.pen.figure(part)


def _back_wings(stage: Stage, root: complex, length: float) -> None:
    if stage.species.winged:
        for side in (-1, 1):
            draw_wing(stage, complex(side * root.real, root.imag), side, 22 + stage.pose.action.lift * 80, length)


def _away(stage: Stage) -> int:
    """The side that the face turns away from: where the tail shows."""
    return -1 if stage.pose.yaw >= 0 else 1


def ball(stage: Stage) -> None:
    k, pose = stage.species.stout, stage.pose
    head = Head(0.12j, 0.52 * k, 0.5, pose.yaw, pose.action.nod, face=0.12)
    draw_tail(stage, complex(_away(stage) * 0.42, 0.4), _away(stage))
    _back_wings(stage, 0.36 + 0.08j, 0.54)
    _arms(stage, 0.42 * k + 0.16j, 0.28, raised=True)
    if pose.action.legs != "sit":
        _feet(stage, 0.63, 0.24)
    draw_head(stage, head, markings(stage, head, ellipse(head.spot(0, -0.95), 0.34 * k, 0.26)))
    if pose.action.legs == "sit":
        _feet(stage, 0.6, 0.24)
    _arms(stage, 0.5 * k + 0.29j, 0.16, raised=False)


PEAR = ((0, -0.5), (0.33, -0.36), (0.4, -0.04), (0.5, 0.34), (0.36, 0.64), (0, 0.7))


def pear(stage: Stage) -> None:
    k, pose = stage.species.stout, stage.pose
    head = Head(-0.1j, 0.4 * k, 0.4, pose.yaw, 0, face=0.0)
    draw_tail(stage, complex(_away(stage) * 0.42, 0.48), _away(stage))
    _back_wings(stage, 0.3 + 0.12j, 0.54)
    _arms(stage, 0.36 * k + 0.2j, 0.32, raised=True)
    if pose.action.legs != "sit":
        _feet(stage, 0.66, 0.24)
    belly = ellipse(complex(0.16 * math.sin(pose.yaw), 0.4), 0.31 * k, 0.28)
    knots = [complex(x * k, y) for x, y in (*PEAR, *[(-x, y) for x, y in PEAR[-2:0:-1]])]
    draw_head(stage, head, markings(stage, head, belly), curve(knots, closed=True))
    if pose.action.legs == "sit":
        _feet(stage, 0.62, 0.24)
    _arms(stage, 0.43 * k + 0.24j, 0.22, raised=False)


def biped(stage: Stage) -> None:
    k, pose = stage.species.stout, stage.pose
    lean = math.sin(pose.yaw)
    head = Head(complex(0.04 * lean, -0.16), 0.46 * k, 0.41, pose.yaw, pose.action.nod, face=-0.02)
    draw_tail(stage, complex(_away(stage) * 0.16, 0.52), _away(stage), 1.15)
    _back_wings(stage, 0.2 + 0.3j, 0.6)
    if pose.action.legs != "sit":
        _feet(stage, 0.65, 0.18, 0.9)
    belly = Mark(ellipse(complex(0.09 * lean, 0.46), 0.19, 0.2), stage.belly)
    _arms(stage, 0.2 + 0.36j, 0.4, raised=True, steep=0.5)
    stage.pen.figure(Part(ellipse(0.42j, 0.29 * k, 0.26, power=2.3), stage.main, (belly,)))
    if pose.action.legs == "sit":
        _feet(stage, 0.6, 0.2, 0.95)
    _arms(stage, 0.23 + 0.34j, 0.22, raised=False)
    draw_head(stage, head, _face_marks(stage, head))


def quadruped(stage: Stage) -> None:
    pose = stage.pose
    step = STEPS[pose.action.legs]
    draw_tail(stage, -0.46 + 0.2j, -1, 1.15)
    for x, move in ((-0.2, step[1]), (0.32, step[0])):
        stage.pen.figure(_leg(stage, x, move))
    if stage.species.winged:
        draw_wing(stage, -0.16 + 0.12j, -1, 52 + pose.action.lift * 80, 0.6)
    belly = Mark(ellipse(-0.1 + 0.52j, 0.36, 0.14), stage.belly)
    body = ellipse(-0.1 + 0.3j, 0.44 * stage.species.stout, 0.25, power=2.3)
    near = [_leg(stage, x, move) for x, move in ((-0.4, step[0]), (0.12, step[1]))]
    stage.pen.figure(Part(body, stage.main, (belly, *_back_marks(stage))), *near)
    head = Head(0.2 - 0.12j, 0.43, 0.39, abs(pose.yaw) - 0.1, pose.action.nod, face=-0.02)
    draw_head(stage, head, _face_marks(stage, head))


def _leg(stage: Stage, x: float, move: complex) -> Part:
    ankle = complex(x, 0.72) + move * 1.3
    spine = curve([complex(x, 0.42), ankle - 0.1j])
    sock = (Mark(ellipse(ankle, 0.2, 0.12), stage.trim),) if stage.species.marking == "socks" else ()
    return tube(spine, stage.main, 0.12, 0.105, sock)


def _back_marks(stage: Stage) -> tuple[Mark, ...]:
    if stage.species.marking == "stripes":
        bands = [grow(shapes.SPIKE, complex(x, 0.02), 1j, 0.3, 0.14) for x in (-0.44, -0.25, -0.06)]
    elif stage.species.marking == "spots":
        bands = [ellipse(at, 0.07) for at in (-0.42 + 0.2j, -0.22 + 0.3j, -0.3 + 0.44j)]
    else:
        bands = []
    return tuple(Mark(band, stage.trim) for band in bands)


def serpent(stage: Stage) -> None:
    kind, lean = stage.species.kind, 0.07 * math.copysign(1, stage.pose.yaw)
    coil = curve([-0.7 + 0.4j, -0.55 + 0.6j, -0.2 + 0.6j, 0.24 + 0.58j, 0.44 + 0.44j, 0.2 + 0.3j])
    neck = curve([0.3 + 0.36j, -0.04 + 0.38j, -0.12 + 0.16j, -0.02 - 0.12j])
    stage.pen.figure(charm(kind.motif, coil[0] + 0.04 + 0.03j, -0.3 - 1j, 0.38, 0.36, kind.outer, kind.inner))
    stage.pen.figure(tube(coil, stage.main, 0.06, 0.15, _bands(stage, coil)))
    _back_wings(stage, 0.1 + 0.2j, 0.56)
    throat = Mark(curve([0.3 + 0.46j, -0.02 + 0.42j, lean - 0.06 + 0.18j, lean - 0.12j]), stage.belly, line=0.075)
    stage.pen.figure(tube(neck, stage.main, 0.15, 0.14, (throat,)))
    head = Head(-0.22j, 0.44 * stage.species.stout, 0.39, stage.pose.yaw, stage.pose.action.nod)
    draw_head(stage, head, _face_marks(stage, head))


def _bands(stage: Stage, spine: Path) -> tuple[Mark, ...]:
    if stage.species.marking not in ("stripes", "spots", "socks"):
        return ()
    return tuple(Mark(ellipse(complex(at) - 0.1j, 0.065), stage.trim) for at in spine[12:-6:9])


def bird(stage: Stage) -> None:
    k, pose = stage.species.stout, stage.pose
    head = Head(0.1j, 0.46 * k, 0.49, pose.yaw, pose.action.nod, face=0.2)
    draw_tail(stage, complex(_away(stage) * 0.3, 0.46), _away(stage), 0.9)
    for side, step in zip((-1, 1), STEPS[pose.action.legs], strict=True):
        stage.pen.figure(claws(complex(side * 0.18, 0.63) + step * 0.6))
    for side, degrees in zip((-1, 1), pose.action.arms, strict=True):
        if degrees > -30:
            draw_wing(stage, complex(side * 0.34 * k, 0.16), side, degrees, 0.66)
    edge = ellipse(head.centre, head.rx * 0.98, head.ry * 1.05, power=2.2)
    draw_head(stage, head, markings(stage, head, ellipse(head.spot(0, -0.75), 0.34 * k, 0.3)), edge)
    for side, degrees in zip((-1, 1), pose.action.arms, strict=True):
        if degrees <= -30:
            draw_wing(stage, complex(side * 0.46 * k, 0.12), side, degrees - 6, 0.42, slim=0.6)


def floater(stage: Stage) -> None:
    k, pose = stage.species.stout, stage.pose
    head = Head(-0.06j, 0.46 * k, 0.44, pose.yaw, 0, face=0.0)
    _back_wings(stage, 0.3 + 0.14j, 0.54)
    _arms(stage, 0.4 * k + 0.1j, 0.28, raised=True)
    jelly = stage.species.kind.word in ("water", "poison", "electric", "fairy", "grass")
    if jelly:
        _tentacles(stage, k)
    edge = _dome(k, 0.3, 0.05) if jelly else _dome(k, 0.62, 0.14)
    belly = ellipse(complex(0.14 * math.sin(pose.yaw), 0.36), 0.26, 0.2)
    draw_head(stage, head, markings(stage, head, belly), edge)
    _arms(stage, 0.46 * k + 0.22j, 0.16, radius=0.075, raised=False)


def _dome(k: float, low: float, wave: float) -> Path:
    """A dome with a hem of four waves."""
    top = [complex(math.cos(a) * 0.47 * k, -0.06 - math.sin(a) * 0.46) for a in np.linspace(0, math.pi, 9)]
    hem = [complex(x, low - (wave if i % 2 else 0)) for i, x in enumerate(np.linspace(-0.5 * k, 0.5 * k, 9))]
    return curve([*top, *hem], closed=True)


def _tentacles(stage: Stage, k: float) -> None:
    for i, x in enumerate((-0.3, -0.1, 0.1, 0.3)):
        sway = 0.09 * (-1) ** i
        spine = curve([complex(x * k, 0.2), complex(x * k + sway, 0.42), complex(x * k * 1.2 - sway * 0.4, 0.64)])
        stage.pen.figure(tube(spine, stage.trim if i % 2 else stage.belly, 0.1, 0.05))


SEGMENTS = ((-0.66, 0.5, 0.15), (-0.46, 0.46, 0.19), (-0.22, 0.42, 0.23), (0.04, 0.38, 0.27))


def crawler(stage: Stage) -> None:
    pose, kind = stage.pose, stage.species.kind
    hump = 0.12 if pose.action.legs == "run" else 0.0
    plain = stage.species.marking in ("belly", "mask")
    for i, (x, y, r) in enumerate(SEGMENTS):
        at = complex(x, y - (hump if i in (1, 2) else 0))
        stage.pen.figure(charm(kind.motif, at - 0.8j * r, -0.25 - 1j, 0.34, 0.32, kind.outer, kind.inner))
        stage.pen.figure(foot(stage, complex(x + 0.02, 0.66), 1, size=0.62))
        under = Mark(ellipse(at + 0.85j * r, r * 0.9, r * 0.5), stage.belly)
        stage.pen.figure(Part(ellipse(at, r * 1.05, r), stage.main if i % 2 or plain else stage.trim, (under,)))
    stage.pen.figure(foot(stage, 0.3 + 0.66j, 1, size=0.8), foot(stage, 0.06 + 0.67j, 1, size=0.8))
    head = Head(0.22 + 0.06j, 0.45, 0.42, abs(pose.yaw) * 0.9, pose.action.nod)
    draw_head(stage, head, _face_marks(stage, head))


SHELL = [-0.66 + 0.5j, -0.6 + 0.16j, -0.34 - 0.14j, -0.04 - 0.2j, 0.24 - 0.08j, 0.4 + 0.2j, 0.42 + 0.5j, -0.12 + 0.56j]


def shelled(stage: Stage) -> None:
    pose, kind = stage.pose, stage.species.kind
    step = STEPS[pose.action.legs]
    draw_tail(stage, -0.5 + 0.5j, -1, 0.75)
    for x, move in ((-0.42, step[0]), (-0.1, step[1]), (0.2, step[0])):
        stage.pen.figure(_leg(stage, x, move * 0.7))
    for at, toward, size in ((-0.46 + 0.06j, -0.7 - 1j, 0.34), (-0.22 - 0.12j, -0.25 - 1j, 0.42)):
        stage.pen.figure(charm(kind.motif, at, toward, size, size * 0.9, kind.outer, kind.inner))
    stage.pen.figure(Part(curve(SHELL, closed=True), stage.trim, _plates(stage)))
    rim = curve([-0.68 + 0.46j, -0.4 + 0.54j, -0.1 + 0.56j, 0.3 + 0.52j])
    stage.pen.figure(tube(rim, stage.belly, 0.065, 0.065))
    head = Head(0.28 + 0.1j, 0.42, 0.39, abs(pose.yaw) * 0.9, pose.action.nod)
    draw_head(stage, head, _face_marks(stage, head))


def _plates(stage: Stage) -> tuple[Mark, ...]:
    places = ((-0.36 + 0.2j, 0.15), (-0.06 + 0.06j, 0.17), (-0.12 + 0.36j, 0.13), (-0.56 + 0.4j, 0.1))
    return tuple(Mark(shapes.hexagon(at, radius), stage.species.kind.outer) for at, radius in places)


def golem(stage: Stage) -> None:
    k, pose, kind = stage.species.stout, stage.pose, stage.species.kind
    head = Head(0.02j, 0.5 * k, 0.46, pose.yaw * 0.8, 0, face=0.06)
    if pose.action.legs != "sit":
        _feet(stage, 0.63, 0.26, 1.15)
    for side in (-1, 1):
        for low, size in ((0.0, 0.44), (0.16, 0.34)):
            at = complex(side * (0.4 + low * 0.4) * k, -0.24 + low)
            stage.pen.figure(charm(kind.motif, at, complex(side * 0.8, -0.8), size, size, kind.outer, kind.inner))
    _arms(stage, 0.44 * k + 0.12j, 0.34, radius=0.13, raised=True)
    draw_crest(stage, head, 0.88)
    belly = ellipse(complex(0.14 * math.sin(pose.yaw), 0.5), 0.34, 0.22)
    torso = ellipse(0.1j, 0.52 * k, 0.52, power=3.2)
    stage.pen.figure(Part(torso, stage.main, (*markings(stage, head, belly), _gloss(stage, head))))
    draw_face(stage.pen, head, stage.species, pose.mood)
    if pose.action.legs == "sit":
        _feet(stage, 0.6, 0.26, 1.15)
    _arms(stage, 0.55 * k + 0.24j, 0.26, radius=0.135, raised=False)


PLANS: dict[str, Callable[[Stage], None]] = {
    "ball": ball, "pear": pear, "biped": biped, "quadruped": quadruped, "serpent": serpent, "bird": bird,
    "floater": floater, "crawler": crawler, "shelled": shelled, "golem": golem,
}
