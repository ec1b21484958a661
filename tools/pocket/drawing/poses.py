"""What changes from picture to picture of one species: action, mood, view, size and place."""

import random
from dataclasses import dataclass

from data.rng import permutation, seed_for
from tools.pocket.drawing.paint import Place


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


MOODS: tuple[Mood, ...] = (
    Mood(("a happy face", "a happy smile"), blush=True),
    Mood(("a big laughing mouth", "a wide open laugh"), eyes="arc", mouth="laugh", blush=True),
    Mood(("a cheerful grin", "a bright, excited face"), mouth="laugh"),
    Mood(("an angry face", "an angry scowl"), lid=0.42, mouth="frown", extra="brow"),
    Mood(("a surprised face", "wide surprised eyes"), pupil=0.7, mouth="o"),
    Mood(("a sleepy face", "sleepy half-closed eyes"), eyes="half", mouth="tiny"),
    Mood(("a sad face", "sad, wet eyes"), lid=-0.38, mouth="frown", gaze=0.2j, extra="tear"),
    Mood(("a cheeky wink", "a wink and its tongue out"), eyes="wink", mouth="tongue"),
    Mood(("a shy smile", "a shy, blushing face"), gaze=0.5 + 0.35j, mouth="tiny", blush=True, lid=-0.2),
    Mood(("a proud smirk", "a bold, confident smirk"), lid=0.25, mouth="smirk", extra="brow"),
    Mood(("a curious look", "curious eyes looking up"), gaze=0.3 - 0.5j, mouth="o small"),
)

ARMED = (
    Action(("standing", "standing still"), calm=True),
    Action(("waving", "waving hello", "waving one arm"), arms=(-55, 62)),
    Action(("raising both arms", "with both arms in the air"), arms=(58, 58), lift=0.03),
    Action(("jumping", "jumping high"), arms=(30, 40), legs="jump", lift=0.26, stretch=1.06),
    Action(("holding {held}", "holding up {held}"), arms=(-52, 40), holds=True),
    Action(("sitting", "sitting on the ground"), arms=(-62, -62), legs="sit", stretch=0.95, calm=True),
    Action(("running", "running along"), arms=(25, -70), legs="run", tilt=0.13, lift=0.04),
    Action(("dancing", "dancing on one foot"), arms=(48, -30), legs="run", tilt=-0.15, lift=0.04),
)
WALKERS = (
    Action(("standing", "standing still"), calm=True),
    Action(("walking", "trotting along"), legs="run", tilt=0.03),
    Action(("jumping", "leaping up"), legs="jump", lift=0.24, tilt=-0.16),
    Action(("tilting its head", "with its head tilted"), nod=0.24),
    Action(("crouching", "crouching low"), calm=True, stretch=0.86, nod=0.08),
    Action(("pouncing", "bouncing forward"), legs="jump", lift=0.12, tilt=0.16),
    Action(("stretching up", "standing tall"), stretch=1.09, nod=-0.12),
)
SERPENTS = (
    Action(("coiled up", "resting on its coils"), calm=True),
    Action(("rearing up", "rising tall"), stretch=1.1),
    Action(("swaying", "swaying to one side"), tilt=0.14),
    Action(("leaning back", "leaning over"), tilt=-0.15),
    Action(("tilting its head", "with its head tilted"), nod=0.26),
    Action(("springing up", "jumping from its coils"), lift=0.2, stretch=1.05),
    Action(("keeping low", "lying low"), calm=True, stretch=0.87),
)
FLIERS = (
    Action(("standing with folded wings", "standing"), arms=(-62, -62), calm=True),
    Action(("flying", "flying high"), arms=(38, 38), legs="jump", lift=0.26),
    Action(("flapping its wings", "with its wings spread"), arms=(8, 8)),
    Action(("hopping", "hopping along"), arms=(-20, -20), legs="jump", lift=0.13, tilt=0.1),
    Action(("gliding", "gliding to one side"), arms=(22, -8), legs="jump", lift=0.2, tilt=0.2),
    Action(("waving a wing", "waving one wing"), arms=(-55, 48)),
    Action(("sitting", "sitting on the ground"), arms=(-58, -58), legs="sit", stretch=0.93, calm=True),
)
DRIFTERS = (
    Action(("floating", "floating in the air"), lift=0.1, calm=True),
    Action(("drifting", "drifting to one side"), lift=0.16, tilt=0.2, arms=(20, -40)),
    Action(("rising", "rising up"), lift=0.24, stretch=1.1, arms=(-70, -70)),
    Action(("waving", "waving hello"), lift=0.1, arms=(-40, 58)),
    Action(("spooking with raised arms", "with both arms up"), lift=0.14, arms=(50, 50)),
    Action(("holding {held}", "holding up {held}"), arms=(-45, 40), lift=0.08, holds=True),
    Action(("sinking low", "hovering just above the ground"), lift=0.03, stretch=0.9, tilt=-0.12),
)
ACTIONS = {
    "ball": ARMED, "pear": ARMED, "biped": ARMED, "golem": ARMED, "quadruped": WALKERS, "crawler": WALKERS,
    "shelled": WALKERS, "serpent": SERPENTS, "bird": FLIERS, "floater": DRIFTERS,
}


ASLEEP = Mood(("closed eyes, fast asleep", "a peaceful sleeping face"), eyes="closed", mouth="tiny", blush=True)


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
