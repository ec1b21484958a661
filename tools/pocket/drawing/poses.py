"""What changes from picture to picture of one species: action, mood, view, size and place."""

import random
from dataclasses import dataclass
from typing import Any

from data.rng import permutation, seed_for
from tools.pocket.drawing.paint import Place
from tools.pocket.drawing.species import TABLES


@dataclass(frozen=True)
class Mood:
    """A face. eyes: open, arc (closed, smiling), closed (asleep), wink, half; lid > 0 slants down to the nose."""

    words: tuple[str, ...]
    eyes: str = "open"
    lid: float = 0.0
    gaze: complex = 0j
    pupil: float = 1.0
    mouth: str = "smile"
    blush: bool = False
    extra: str = ""


@dataclass(frozen=True)
class Action:
    """A body. arms: degrees above the horizontal, own left and right; legs: stand, run, jump or sit; lift in units."""

    words: tuple[str, ...]
    arms: tuple[float, float] = (-50.0, -50.0)
    legs: str = "stand"
    lift: float = 0.0
    tilt: float = 0.0
    stretch: float = 1.0
    nod: float = 0.0
    holds: bool = False
    calm: bool = False  # one could fall asleep in it


def mood(row: dict[str, Any]) -> Mood:
    return Mood(**(row | {"words": tuple(row["words"]), "gaze": complex(row.get("gaze", 0))}))


MOODS, ASLEEP = [mood(row) for row in TABLES["moods"]], mood(TABLES["asleep"])
ACTIONS = {
    plan: [Action(**(row | {"words": tuple(row["words"])})) for row in rows["actions"]]
    for rows in TABLES["poses"] for plan in rows["plans"]
}


@dataclass(frozen=True)
class Pose:
    """One picture's own choices. Lengths are in stage units (the picture is 2 wide), angles in radians.

    yaw: turn of the head to the right, before mirroring. span: height or width that creature and jump may take.
    drift: -1 to 1, how far left or right of the middle. adrift: how many small motifs float about.
    """

    action: Action
    mood: Mood
    yaw: float
    mirror: bool
    span: float
    drift: float
    adrift: int

    @property
    def stance(self) -> Place:
        """The creature's own bearing, before it is fitted into the picture."""
        return Place(0j, 1.0, self.action.tilt, self.action.stretch, self.mirror)

    def fitted(self, box: tuple[float, float, float, float]) -> Place:
        """The place at which a creature that fills `box` (left, top, right, bottom) stands well in the picture."""
        left, top, right, bottom = box
        scale = min(self.span / (bottom - top + self.action.lift), self.span / (right - left), LARGEST)
        room = max(0.0, 0.95 - scale * (right - left) / 2)
        x = self.drift * room * 0.6 - scale * (left + right) / 2
        y = self.ground(box, scale) - scale * (self.action.lift + bottom)
        return Place(complex(x, y), scale, self.action.tilt, self.action.stretch, self.mirror)

    def ground(self, box: tuple[float, float, float, float], scale: float) -> float:
        """The height of the ground that puts creature, jump and puddle in the middle of the picture."""
        return (scale * (box[3] - box[1] + self.action.lift) - PUDDLE) / 2


LARGEST = 1.3  # small creatures are not blown up further: the ink would look thin on them
PUDDLE = 0.09  # half the height of the ground's ellipse


def pose(plan: str, kin: int, picture: int, seed: int) -> Pose:
    """The pose of a species' n-th picture; moods and actions do not repeat within a species before they run out."""
    actions = ACTIONS[plan]
    acts = permutation(len(actions), seed, "actions", kin)
    moods = permutation(len(MOODS), seed, "moods", kin)
    rng = random.Random(seed_for(seed, "pose", kin, picture))
    action, mood = actions[acts[picture % len(acts)]], MOODS[moods[picture % len(moods)]]
    if action.calm and rng.random() < 0.3:
        mood = ASLEEP
    yaw = (1 if picture % 2 == 0 else -1) * rng.choice((0.06, 0.24, 0.36, 0.46))
    mirror, span, drift = rng.random() < 0.5, rng.uniform(1.58, 1.84), rng.uniform(-1, 1)
    return Pose(action, mood, yaw, mirror, span, drift, rng.choice((0, 2, 3, 4)))
