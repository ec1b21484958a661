"""The ten body plans. Each draws a whole creature, back to front, on the stage; the ground is at y = 0.72."""

import math
from collections.abc import Callable

import numpy as np

from data.pocket.drawing import shapes
from data.pocket.drawing.faces import Head, draw_face, outline
from data.pocket.drawing.parts import (
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
from data.pocket.drawing.pen import Mark, Part
from data.pocket.drawing.shapes import Path, curve, ellipse, grow

STEPS = {"stand": ((0j, 0j)), "run": (-0.09j + 0.06, 0.02j - 0.04), "jump": (-0.02j - 0.05, 0.05j + 0.05), "sit": (0j, 0j)}


def draw_head(stage: Stage, head: Head, marks: tuple[Mark, ...] = (), *, build: str | None = None) -> None:
    """Ears, crest, the head itself and its face."""
    draw_ears(stage, head)
    draw_crest(stage, head)
    stage.pen.figure(Part(outline(head, build or stage.species.head), stage.main, marks))
    draw_face(stage.pen, head, stage.species, stage.pose.mood)


def _feet(stage: Stage, y: float, apart: float, size: float = 1.0) -> None:
    """Two feet as the pose has them; those of a sitting creature come last and show their soles."""
    legs = stage.pose.action.legs
    for side, step in zip((-1, 1), STEPS[legs], strict=True):
        at = complex(side * apart * (1.25 if legs == "sit" else 1.0), y) + step
        stage.pen.figure(foot(stage, at, side, sole=legs == "sit", size=size))


def _arms(stage: Stage, shoulder: complex, length: float, *, radius: float = 0.085, hands: complex = 0.12j) -> None:
    """Both arms; with something to hold, they meet in front of the body."""
    action = stage.pose.action
    if action.holds:
        middle = complex(0, shoulder.imag) + hands
        held(stage, middle)
        for side in (-1, 1):
            root = complex(side * shoulder.real * 0.96, shoulder.imag)
            spine = curve([root, middle + complex(side * 0.17, 0.06)])
            glove = stage.trim if stage.species.marking == "socks" else stage.main
            stage.pen.figure(Part(spine, glove, radii=np.linspace(radius * 0.9, radius * 1.1, len(spine))))
        return
    for side, degrees in zip((-1, 1), action.arms, strict=True):
        root = complex(side * shoulder.real, shoulder.imag)
        stage.pen.figure(arm(stage, root, side, degrees, length, radius))


def _back_wings(stage: Stage, root: complex, length: float) -> None:
    if stage.species.winged:
        for side in (-1, 1):
            draw_wing(stage, complex(side * root.real, root.imag), side, 32 + stage.pose.action.lift * 60, length)


def _away(stage: Stage) -> int:
    """The side that the face turns away from: where the tail shows."""
    return -1 if stage.pose.yaw >= 0 else 1


def ball(stage: Stage) -> None:
    k, pose = stage.species.stout, stage.pose
    head = Head(0.12j, 0.52 * k, 0.5, pose.yaw, pose.action.nod, face=0.12)
    draw_tail(stage, complex(_away(stage) * 0.42, 0.4), _away(stage))
    _back_wings(stage, 0.34 - 0.02j, 0.5)
    if pose.action.legs != "sit":
        _feet(stage, 0.63, 0.24)
    belly = ellipse(head.spot(0, -0.95), 0.34 * k, 0.26)
    draw_head(stage, head, markings(stage, head, belly))
    if pose.action.legs == "sit":
        _feet(stage, 0.6, 0.24)
    _arms(stage, 0.47 * k + 0.2j, 0.2, hands=0.2j)


PEAR = ((0, -0.5), (0.33, -0.36), (0.4, -0.04), (0.5, 0.34), (0.36, 0.64), (0, 0.7))


def pear(stage: Stage) -> None:
    k, pose = stage.species.stout, stage.pose
    head = Head(-0.1j, 0.4 * k, 0.4, pose.yaw, 0, face=0.0)
    draw_tail(stage, complex(_away(stage) * 0.42, 0.48), _away(stage))
    _back_wings(stage, 0.3 + 0.02j, 0.5)
    if pose.action.legs != "sit":
        _feet(stage, 0.66, 0.24)
    lean = math.sin(pose.yaw)
    belly = ellipse(complex(0.16 * lean, 0.4), 0.31 * k, 0.28)
    knots = [complex(x * k, y) for x, y in (*PEAR, *[(-x, y) for x, y in PEAR[-2:0:-1]])]
    draw_ears(stage, head)
    draw_crest(stage, head)
    stage.pen.figure(Part(curve(knots, closed=True), stage.main, markings(stage, head, belly)))
    draw_face(stage.pen, head, stage.species, pose.mood)
    if pose.action.legs == "sit":
        _feet(stage, 0.62, 0.24)
    _arms(stage, 0.41 * k + 0.2j, 0.24, hands=0.18j)


def biped(stage: Stage) -> None:
    k, pose = stage.species.stout, stage.pose
    lean = math.sin(pose.yaw)
    head = Head(complex(0.04 * lean, -0.16), 0.46 * k, 0.41, pose.yaw, pose.action.nod, face=-0.02)
    draw_tail(stage, complex(_away(stage) * 0.16, 0.52), _away(stage), 1.1)
    _back_wings(stage, 0.18 + 0.26j, 0.56)
    if pose.action.legs != "sit":
        _feet(stage, 0.65, 0.18, 0.9)
    belly = Mark(ellipse(complex(0.09 * lean, 0.46), 0.19, 0.2), stage.belly)
    stage.pen.figure(Part(ellipse(0.42j, 0.29 * k, 0.26, power=2.3), stage.main, (belly,)))
    if pose.action.legs == "sit":
        _feet(stage, 0.6, 0.2, 0.95)
    raised = max(pose.action.arms) > 0
    if not raised:
        _arms(stage, 0.22 + 0.32j, 0.22, hands=0.1j)
    draw_head(stage, head, markings(stage, head, ellipse(head.spot(0, -0.6), 0.2, 0.12) if False else ellipse(2j, 0.1)))
    if raised:
        _arms(stage, 0.26 + 0.3j, 0.34)


def quadruped(stage: Stage) -> None:
    pose = stage.pose
    step = STEPS[pose.action.legs]
    draw_tail(stage, -0.46 + 0.2j, -1, 1.1)
    for x, move in ((-0.2, step[1]), (0.3, step[0])):
        _leg(stage, x, move)
    _back_wings_side(stage, -0.1 + 0.12j)
    belly = Mark(ellipse(-0.1 + 0.52j, 0.36, 0.14), stage.belly)
    body = ellipse(-0.1 + 0.3j, 0.44 * stage.species.stout, 0.25, power=2.3)
    near = [_leg_part(stage, x, move) for x, move in ((-0.36, step[0]), (0.14, step[1]))]
    stage.pen.figure(Part(body, stage.main, (belly, *_back_spots(stage))), *near)
    head = Head(0.2 - 0.1j, 0.43, 0.38, abs(pose.yaw) * 0.9 - 0.1, pose.action.nod, face=-0.02)
    draw_head(stage, head, markings(stage, head, ellipse(2j, 0.1)))


def _leg(stage: Stage, x: float, move: complex) -> None:
    stage.pen.figure(_leg_part(stage, x, move))


def _leg_part(stage: Stage, x: float, move: complex) -> Part:
    spine = curve([complex(x, 0.42), complex(x, 0.62) + move * 1.3])
    sock = (Mark(ellipse(complex(x, 0.72) + move * 1.3, 0.2, 0.12), stage.trim),) if stage.species.marking == "socks" else ()
    return Part(spine, stage.main, sock, radii=np.linspace(0.12, 0.1, len(spine)))


def _back_wings_side(stage: Stage, root: complex) -> None:
    if stage.species.winged:
        draw_wing(stage, root, -1, 55 + stage.pose.action.lift * 80, 0.52)


def _back_spots(stage: Stage) -> tuple[Mark, ...]:
    if stage.species.marking == "stripes":
        return tuple(Mark(grow(shapes.spike(), complex(x, 0.02), 1j, 0.3, 0.14), stage.trim) for x in (-0.42, -0.24, -0.06))
    if stage.species.marking == "spots":
        return tuple(Mark(ellipse(complex(x, y), 0.07), stage.trim) for x, y in ((-0.4, 0.2), (-0.22, 0.3), (-0.3, 0.42)))
    return ()


def serpent(stage: Stage) -> None:
    pose = stage.pose
    coil = curve([-0.72 + 0.42j, -0.55 + 0.6j, -0.2 + 0.6j, 0.24 + 0.58j, 0.44 + 0.44j, 0.2 + 0.3j])
    neck = curve([0.3 + 0.36j, -0.06 + 0.36j, -0.14 + 0.14j, -0.02 - 0.12j])
    _tip(stage, coil[0])
    stage.pen.figure(Part(coil, stage.main, _bands(stage, coil), radii=np.linspace(0.06, 0.15, len(coil))))
    throat = Part(neck + 0.05 * np.sign(pose.yaw) + 0.02j, stage.belly, radii=np.linspace(0.06, 0.09, len(neck)), shade=0)
    stage.pen.figure(Part(neck, stage.main, radii=np.linspace(0.15, 0.14, len(neck))))
    stage.pen.figure(throat, line=0.004)
    _back_wings(stage, 0.1 + 0.14j, 0.5)
    head = Head(-0.22j, 0.43 * stage.species.stout, 0.38, pose.yaw, pose.action.nod)
    draw_head(stage, head, markings(stage, head, ellipse(2j, 0.1)))


def _tip(stage: Stage, at: complex) -> None:
    kind = stage.species.kind
    stage.pen.figure(charm(kind.motif(), at + 0.04 + 0.03j, -0.3 - 1j, 0.3, 0.28, kind.outer, kind.inner))


def _bands(stage: Stage, spine: Path) -> tuple[Mark, ...]:
    if stage.species.marking not in ("stripes", "spots", "socks"):
        return ()
    return tuple(Mark(ellipse(p - 0.1j, 0.06), stage.trim) for p in spine[12:-6:9])


def bird(stage: Stage) -> None:
    k, pose = stage.species.stout, stage.pose
    head = Head(0.1j, 0.46 * k, 0.49, pose.yaw, pose.action.nod, face=0.2)
    draw_tail(stage, complex(_away(stage) * 0.3, 0.46), _away(stage), 0.9)
    for side, step in zip((-1, 1), STEPS[pose.action.legs], strict=True):
        stage.pen.figure(claws(stage, complex(side * 0.18, 0.63) + step * 0.6, side))
    spread = max(pose.action.arms) > -30
    if spread:
        _wings(stage, 0.36 * k, 0.62)
    draw_head(stage, head, markings(stage, head, ellipse(head.spot(0, -0.7), 0.34 * k, 0.32)), build="tall")
    if not spread:
        _wings(stage, 0.42 * k, 0.44)


def _wings(stage: Stage, x: float, length: float) -> None:
    for side, degrees in zip((-1, 1), stage.pose.action.arms, strict=True):
        draw_wing(stage, complex(side * x, 0.12), side, degrees, length)


def floater(stage: Stage) -> None:
    k, pose = stage.species.stout, stage.pose
    head = Head(-0.06j, 0.46 * k, 0.44, pose.yaw, 0, face=0.0)
    _back_wings(stage, 0.3 + 0.1j, 0.5)
    if stage.species.kind.word in ("water", "poison", "electric", "fairy", "grass"):
        _tentacles(stage, k)
        edge = _dome(k, 0.3, 0.05)
    else:
        edge = _dome(k, 0.62, 0.14)
    draw_ears(stage, head)
    draw_crest(stage, head)
    belly = ellipse(complex(0.14 * math.sin(pose.yaw), 0.36), 0.26, 0.2)
    stage.pen.figure(Part(edge, stage.main, markings(stage, head, belly)))
    draw_face(stage.pen, head, stage.species, pose.mood)
    _arms(stage, 0.44 * k + 0.16j, 0.2, hands=0.22j)


def _dome(k: float, low: float, wave: float) -> Path:
    """A dome with a hem of four waves."""
    top = [complex(math.cos(a) * 0.47 * k, -0.06 - math.sin(a) * 0.46) for a in np.linspace(0, math.pi, 9)]
    left, right = -0.5 * k, 0.5 * k
    xs = np.linspace(left, right, 9)
    hem = [complex(x, low - (wave if i % 2 else 0)) for i, x in enumerate(xs)]
    return curve([*top, *hem], closed=True)


def _tentacles(stage: Stage, k: float) -> None:
    for i, x in enumerate((-0.3, -0.1, 0.1, 0.3)):
        sway = 0.09 * (-1) ** i
        spine = curve([complex(x * k, 0.2), complex(x * k + sway, 0.42), complex(x * k * 1.2 - sway * 0.4, 0.64)])
        colour = stage.trim if i % 2 else stage.belly
        stage.pen.figure(Part(spine, colour, radii=np.linspace(0.1, 0.045, len(spine))))


def crawler(stage: Stage) -> None:
    pose, kind = stage.pose, stage.species.kind
    hump = 0.1 if pose.action.legs == "run" else 0.0
    middles = ((-0.66, 0.5, 0.15), (-0.46, 0.46 - hump, 0.19), (-0.22, 0.42 - hump, 0.23), (0.04, 0.38, 0.27))
    for i, (x, y, r) in enumerate(middles):
        at = complex(x, y)
        stage.pen.figure(charm(kind.motif(), at - 0.8j * r, -0.25 - 1j, 0.26, 0.24, kind.outer, kind.inner))
        stage.pen.figure(foot(stage, complex(x + 0.02, 0.66), 1, size=0.62))
        colour = stage.main if i % 2 or stage.species.marking in ("belly", "mask") else stage.trim
        under = Mark(ellipse(at + 0.85j * r, r * 0.9, r * 0.5), stage.belly)
        stage.pen.figure(Part(ellipse(at, r * 1.05, r), colour, (under,)))
    stage.pen.figure(foot(stage, 0.3 + 0.66j, 1, size=0.8), foot(stage, 0.06 + 0.67j, 1, size=0.8))
    head = Head(0.22 + 0.06j, 0.45, 0.42, abs(pose.yaw) * 0.8, pose.action.nod)
    draw_head(stage, head, markings(stage, head, ellipse(2j, 0.1)))


def shelled(stage: Stage) -> None:
    pose = stage.pose
    step = STEPS[pose.action.legs]
    draw_tail(stage, -0.5 + 0.5j, -1, 0.75)
    for x, move in ((-0.42, step[0]), (-0.1, step[1]), (0.2, step[0])):
        _leg(stage, x, move * 0.7)
    shell = curve([-0.66 + 0.5j, -0.6 + 0.16j, -0.34 - 0.14j, -0.04 - 0.2j, 0.24 - 0.08j, 0.4 + 0.2j, 0.42 + 0.5j, -0.12 + 0.56j],
                  closed=True)
    _shell_top(stage)
    stage.pen.figure(Part(shell, stage.trim, _shell_marks(stage)))
    rim = curve([-0.68 + 0.46j, -0.4 + 0.54j, -0.1 + 0.56j, 0.3 + 0.52j])
    stage.pen.figure(Part(rim, stage.belly, radii=[0.065] * len(rim)))
    head = Head(0.3 + 0.1j, 0.4, 0.37, abs(pose.yaw) * 0.8, pose.action.nod)
    draw_head(stage, head, markings(stage, head, ellipse(2j, 0.1)))


def _shell_top(stage: Stage) -> None:
    kind = stage.species.kind
    for at, toward, size in ((-0.46 + 0.06j, -0.7 - 1j, 0.28), (-0.22 - 0.12j, -0.25 - 1j, 0.34)):
        stage.pen.figure(charm(kind.motif(), at, toward, size, size * 0.9, kind.outer, kind.inner))


def _shell_marks(stage: Stage) -> tuple[Mark, ...]:
    kind = stage.species.kind
    plates = ((-0.36, 0.2, 0.15), (-0.06, 0.06, 0.17), (-0.12, 0.36, 0.13), (-0.56, 0.4, 0.1))
    return tuple(Mark(0j + complex(x, y) + r * np.exp(1j * np.arange(6) * math.pi / 3), kind.outer) for x, y, r in plates)


def golem(stage: Stage) -> None:
    k, pose = stage.species.stout, stage.pose
    kind = stage.species.kind
    head = Head(0.02j, 0.5 * k, 0.46, pose.yaw * 0.8, 0, face=0.06)
    if pose.action.legs != "sit":
        _feet(stage, 0.63, 0.26, 1.15)
    for side in (-1, 1):
        for lift, size in ((0.0, 0.36), (0.16, 0.28)):
            at = complex(side * (0.4 + lift * 0.4) * k, -0.24 + lift)
            stage.pen.figure(charm(kind.motif(), at, complex(side * 0.8, -0.8), size, size, kind.outer, kind.inner))
    draw_crest(stage, head)
    belly = ellipse(complex(0.14 * math.sin(pose.yaw), 0.5), 0.34, 0.22)
    torso = ellipse(0.1j, 0.52 * k, 0.52, power=3.2)
    stage.pen.figure(Part(torso, stage.main, markings(stage, head, belly)))
    draw_face(stage.pen, head, stage.species, pose.mood)
    if pose.action.legs == "sit":
        _feet(stage, 0.6, 0.26, 1.15)
    _arms(stage, 0.52 * k + 0.12j, 0.3, radius=0.14, hands=0.3j)


PLANS: dict[str, Callable[[Stage], None]] = {
    "ball": ball, "pear": pear, "biped": biped, "quadruped": quadruped, "serpent": serpent, "bird": bird,
    "floater": floater, "crawler": crawler, "shelled": shelled, "golem": golem,
}
