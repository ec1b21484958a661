"""Reference captions, as a careful annotator writes them: type, name, body, colours, parts, mood and pose."""

import random

from data.rng import seed_for
from tools.pocket.drawing.poses import Pose
from tools.pocket.drawing.species import Species

BODIES = {  # "{}" is the main colour
    "ball": ("a round {} body", "a {} ball-shaped body", "a {} body as round as a ball"),
    "pear": ("a plump {} body", "a {} pear-shaped body", "a tall, plump {} body"),
    "biped": ("a small {} body and a big head", "a big {} head and a little body on two feet"),
    "quadruped": ("a {} body on four short legs", "a four-legged {} body", "four {} legs and a big head"),
    "serpent": ("a long {} body without legs", "a coiled {} body", "a {} snake-like body"),
    "bird": ("an egg-shaped {} body and a beak", "a round {} body with wings", "a {} body, wings and an orange beak"),
    "floater": ("a {} floating body without legs", "a dome-shaped {} body that floats"),
    "crawler": ("a long {} body of round segments", "a {} caterpillar-like body", "a segmented {} body"),
    "shelled": ("a {} head and a domed {trim} shell", "a {} body and a {trim} shell on its back"),
    "golem": ("a heavy, square {} body", "a blocky {} body with big arms", "a broad {} body and strong arms"),
}
EAR_WORDS = {
    "round": "round ears", "pointed": "pointed ears", "long": "long ears", "floppy": "floppy ears",
    "fin": "fins for ears", "leaf": "leaf-shaped ears", "crystal": "crystal horns", "horn": "two small horns",
    "wisp": "wispy horns", "blade": "blade-like ears", "antenna": "two antennae",
}
CREST_WORDS = {
    "fin": "a fin on its head", "drop": "a water drop on its head", "curl": "a curl on its head",
    "flames": "flames on its head", "flame": "a flame on its head", "sprout": "a sprout on its head",
    "flower": "a pink flower on its head", "bud": "a pink bud on its head", "bolt": "a lightning bolt on its head",
    "tuft": "a tuft of hair", "crystals": "a crown of crystals", "crystal": "a crystal on its head",
    "stones": "stones on its head", "ghost flame": "mint ghost flames on its head", "spikes": "spikes on its head",
    "bubble": "a bubble on its head", "star": "a star on its head", "bow": "a bow on its head",
    "hexagon": "a steel hexagon on its head",
}
TAIL_WORDS = {
    "fluke": "a whale-like tail", "fin": "a tail fin", "flame": "a burning tail", "leaf": "a leaf tail",
    "bolt": "a lightning bolt tail", "crystal": "a crystal tail", "puff": "a fluffy round tail",
    "club": "a stone club tail", "wisp": "a wispy tail", "stinger": "a stinger tail", "star": "a star-tipped tail",
    "heart": "a heart-shaped tail", "blade": "a blade tail", "hexagon": "a hexagonal tail tip",
    "curled": "a curled tail",
}
MOTIFS = {
    "water": "drops", "fire": "flames", "grass": "leaves", "electric": "bolts", "ice": "crystals", "rock": "stones",
    "ghost": "ghost flames", "poison": "spikes", "fairy": "stars", "metal": "steel plates",
}
MARKS = {"spots": "spots", "stripes": "stripes", "socks": "paws"}
PAWLESS = ("serpent", "bird")
TAILED = ("ball", "pear", "biped", "quadruped", "bird", "shelled")


def caption(species: Species, pose: Pose, seed: int, index: int) -> str:
    """The caption of one picture; `index` chooses among the wordings."""
    rng = random.Random(seed_for(seed, "caption", index))
    kind, name, coat = f"{species.kind.word} type", species.name, species.coat
    body = _article(rng.choice(BODIES[species.plan]).format(coat.main.word, trim=coat.trim.word))
    first, second = rng.sample(_parts(species), 2)
    mood, act = rng.choice(pose.mood.words), rng.choice(pose.action.words)
    act = act.replace("{held}", a(species.kind.held))
    return rng.choice((
        f"{a(kind)} creature named {name} with {body}, {first} and {mood}, {act}",
        f"{name}, {a(kind)} creature with {body}, {first} and {second}, {act}, with {mood}",
        f"{a(coat.main.word)} {kind} creature named {name} {act}, with {first} and {mood}",
        f"{a(kind)} creature, {name}, {act}; it has {body}, {first} and {mood}",
        f"{a(kind)} creature named {name} {act}: {body}, {first}, {second}, {mood}",
        f"{name} the {kind} creature {act}, {body}, {first} and {mood}",
    ))


def a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _article(words: str) -> str:
    """'a aqua body' -> 'an aqua body'."""
    head, tail = words.split(" ", 1)
    return a(tail) if head in ("a", "an") else words


def _parts(species: Species) -> list[str]:
    """What an annotator would point at; never fewer than three things."""
    words = [*_on_the_body(species)]
    if species.crest != "none":
        words.append(CREST_WORDS[species.crest])
    if species.plan in TAILED:
        words.append(TAIL_WORDS[species.tail])
    if species.ears != "none" and species.plan != "golem":
        words.append(EAR_WORDS[species.ears])
    if species.winged and species.plan not in ("bird", "crawler", "shelled", "golem"):
        words.append("small wings")
    words.extend(_markings(species))
    plain = [f"{a(species.coat.belly.word)} belly", "big shining eyes"]
    return words if len(words) > 2 else [*words, *plain]


def _markings(species: Species) -> list[str]:
    if species.marking == "mask":
        return [f"{a(species.coat.belly.word)} mask around its eyes"]
    if species.marking not in MARKS or (species.marking == "socks" and species.plan in PAWLESS):
        return []
    return [f"{species.coat.trim.word} {MARKS[species.marking]}"]


def _on_the_body(species: Species) -> tuple[str, ...]:
    """What the body plan itself carries of the type's motif."""
    many = MOTIFS[species.kind.word]
    where = {
        "golem": f"{many} on its shoulders", "crawler": f"{many} along its back",
        "shelled": f"{many} on its shell",
        "serpent": f"a tail that ends in {a(species.kind.single)}",
    }
    return (where[species.plan],) if species.plan in where else ()
