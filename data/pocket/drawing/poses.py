"""What changes from picture to picture of one species: action, mood, view, size and place."""

import random
from dataclasses import dataclass

from data.pocket.drawing.pen import Place
from data.seeds import permutation, seed_for


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
    Mood(("closed eyes, fast asleep", "a peaceful sleeping face"), eyes="closed", mouth="tiny", blush=True),
)

ARMED = (
    Action(("standing", "standing still")),
    Action(("waving", "waving hello", "waving one arm"), arms=(-55, 62)),
    Action(("cheering with both arms up", "with both arms in the air"), arms=(58, 58), lift=0.03),
    Action(("jumping", "jumping for joy"), arms=(30, 40), legs="jump", lift=0.26, stretch=1.06),
    Action(("holding {held}", "carrying {held}"), holds=True),
    Action(("sitting", "sitting on the ground"), arms=(-62, -62), legs="sit", stretch=0.95),
    Action(("running", "running along"), arms=(25, -70), legs="run", tilt=0.13, lift=0.04),
    Action(("dancing", "dancing on one foot"), arms=(48, -30), legs="run", tilt=-0.15, lift=0.04),
)
WALKERS = (
    Action(("standing", "standing still")),
    Action(("walking", "trotting along"), legs="run", tilt=0.03),
    Action(("jumping", "leaping up"), legs="jump", lift=0.24, tilt=-0.16),
    Action(("tilting its head", "with its head tilted"), nod=0.24),
    Action(("crouching", "crouching low"), stretch=0.86, nod=0.08),
    Action(("pouncing", "bouncing forward"), legs="jump", lift=0.12, tilt=0.16),
    Action(("stretching up", "standing tall"), stretch=1.09, nod=-0.12),
)
SERPENTS = (
    Action(("coiled up", "resting on its coils")),
    Action(("rearing up", "rising tall"), stretch=1.1),
    Action(("swaying", "swaying to one side"), tilt=0.14),
    Action(("leaning back", "leaning over"), tilt=-0.15),
    Action(("tilting its head", "with its head tilted"), nod=0.26),
    Action(("springing up", "jumping from its coils"), lift=0.2, stretch=1.05),
    Action(("crouching", "keeping low"), stretch=0.87),
)
FLIERS = (
    Action(("standing with folded wings", "standing"), arms=(-62, -62)),
    Action(("flying", "flying high"), arms=(38, 38), legs="jump", lift=0.26),
    Action(("flapping its wings", "with its wings spread"), arms=(8, 8)),
    Action(("hopping", "hopping along"), arms=(-20, -20), legs="jump", lift=0.13, tilt=0.1),
    Action(("gliding", "gliding to one side"), arms=(22, -8), legs="jump", lift=0.2, tilt=0.2),
    Action(("waving a wing", "waving one wing"), arms=(-55, 48)),
    Action(("sitting", "sitting on the ground"), arms=(-58, -58), legs="sit", stretch=0.93),
)
DRIFTERS = (
    Action(("floating", "floating in the air"), lift=0.1),
    Action(("drifting", "drifting to one side"), lift=0.16, tilt=0.2, arms=(20, -40)),
    Action(("rising", "rising up"), lift=0.24, stretch=1.1, arms=(-70, -70)),
    Action(("waving", "waving hello"), lift=0.1, arms=(-40, 58)),
    Action(("spooking with raised arms", "with both arms up"), lift=0.14, arms=(50, 50)),
    Action(("holding {held}", "carrying {held}"), lift=0.08, holds=True),
    Action(("sinking low", "hovering just above the ground"), lift=0.03, stretch=0.9, tilt=-0.12),
)
ACTIONS = {
    "ball": ARMED, "pear": ARMED, "biped": ARMED, "golem": ARMED, "quadruped": WALKERS, "crawler": WALKERS,
    "shelled": WALKERS, "serpent": SERPENTS, "bird": FLIERS, "floater": DRIFTERS,
}


@dataclass(frozen=True)
class Pose:
    """One picture's own choices. yaw: the turn of the head in radians, positive to the picture's right before mirroring."""

    action: Action
    mood: Mood
    yaw: float
    mirror: bool
    scale: float
    shift: complex
    adrift: int

    def place(self) -> Place:
        at = self.shift - 1j * self.action.lift + 0.72j * (1 - self.scale)
        return Place(at, self.scale, self.action.tilt, self.action.stretch, self.mirror)


def pose(plan: str, kin: int, picture: int, seed: int) -> Pose:
    """The pose of a species' n-th picture; moods and actions do not repeat within a species before they run out."""
    actions = ACTIONS[plan]
    moods = permutation(len(MOODS), seed, "moods", kin)
    acts = permutation(len(actions), seed, "actions", kin)
    rng = random.Random(seed_for(seed, "pose", kin, picture))
    action, mood = actions[acts[picture % len(acts)]], MOODS[moods[picture % len(moods)]]
    side = 1 if picture % 2 == 0 else -1
    yaw = side * rng.choice((0.08, 0.3, 0.5, 0.62))
    scale = rng.uniform(0.86, 1.04) - 0.35 * action.lift
    free = 0.5 * (1.04 - scale)
    shift = complex(rng.uniform(-free, free), rng.uniform(-0.02, 0.04))
    return Pose(action, mood, yaw, rng.random() < 0.5, scale, shift, rng.choice((0, 2, 3, 4)))
