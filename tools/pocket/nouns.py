"""The nouns that the base model learns: emoji names from Unicode's own list, cleaned to what a person would say.

Four nouns that Unicode lacks (fridge, calculator, toucan, capybara) come from tools/pocket/drawn.py.
"""

import re
from functools import cache
from pathlib import Path

from data.errors import InputError

EMOJI_LIST = Path("/usr/share/unicode/emoji/emoji-test.txt")  # Debian: unicode-data
LINE = re.compile(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (.*)")
DRAWN = ("calculator", "capybara", "fridge", "toucan")
WHOLE_GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
SKIPPED_SUBGROUPS = ("time", "money", "hotel")
SKIPPED = re.compile(
    r"clock$|thirty|oncoming|globe showing|Japan|moon face|quarter moon|gibbous|waning|waxing|new moon|sun behind"
    r"|guide dog|service dog|black cat|black bird|front-facing|departure|arrival|map of|^love hotel|^wedding$"
    r"|speaker (low|medium|high)|bell with slash|with (arrow|pen|key|flash|raised|lowered)|unlocked|tilted right"
    r"|^(green|blue|orange) book|page|tray|incoming|fax|pager|yen|euro|pound|low battery|index dividers|card index"
    r"|linked|open file|notebook with|ledger|wedge of|2nd|3rd|umbrella (on|with)|snowman without|^construction$"
    r"|motorized|^station$|^foggy$|^metro$|^light rail$|railway car|mountain railway|tram car|trolleybus|minibus"
    r"|suspension railway|cableway|at dusk|sunrise over|^goal net|playing cards|mahjong|identification|funeral"
    r"|man’s|woman’s sandal|rescue worker|one-piece|briefs|clutch|hammer and|chart increasing with|videocassette"
    r"|trackball|computer disk|dvd|rolled-up|spiral (notepad|calendar)|tear-off|label$|bookmark tabs|Kaaba|kaaba"
    r"|^(fish cake|oden|tamale|moon cake|sake|mate|dango|custard)|stuffed flatbread|beverage box|tumbler|pouring"
    r"|clinking beer|tanabata|pine decoration|moon viewing|sparkler|admission|softball|rugby|field hockey|game$"
    r"|derelict|houses|building construction|hindu|shinto|synagogue|national park|small airplane|motor boat|^ship$"
    r"|two-hump|water buffalo|^ox$|^ewe$|pig nose|white cane|hair pick|ballet|flat shoe|thong|kimono|sari|lotion"
    r"|^(monkey|dog|cat|tiger|horse|cow|pig|mouse|rabbit|dragon) face$|^cloud with lightning$|level slider"
    r"|control knobs"
    r"|lacrosse|black nib|card file|hamsa|nazar|carp streamer|1st place|^chart|placard|round pushpin|musical score"
    r"|reminder ribbon|rosette|leafy green|rice cracker|curry rice|muted speaker|railway track|motorway|prayer beads"
    r"|wilted|ballot box|fluttering|petri|hot springs|in hole|old key|empty nest|high-speed|cut of meat|canned food"
    r"|hospital$|bank$|post office|^hotel|convenience|department|auto rickshaw|aerial tram|articulated|sport utility"
)


def listed(text: str) -> list[str]:
    """Comma-separated words over several lines."""
    return [" ".join(part.split()) for part in text.split(",")]


SINGLES = listed("""
grinning face, winking face, smiling face with sunglasses, crying face, angry face, sleeping face, thinking face,
nerd face, smiling face with heart-eyes, face with tongue, cold face, hot face, nauseated face, exploding head,
partying face, smiling face with halo, smiling face with horns, cowboy hat face, skull, skull and crossbones, pile
of poo, clown face, ogre, goblin, ghost, alien, alien monster, robot, love letter, heart with arrow, broken heart,
heart on fire, red heart, speech balloon, kiss mark, thumbs up, waving hand, raised fist, victory hand, handshake,
nail polish, leg, foot, ear, nose, brain, lungs, tooth, bone, eyes, eye, tongue, mouth, flexed biceps, mechanical
arm, baby, man, woman, boy, girl, old man, old woman, astronaut, firefighter, police officer, ninja, princess, cook,
farmer, artist, mermaid, vampire, zombie, fairy, genie, elf, mage, Santa Claus, superhero, troll, skier, person
surfing, person biking, woman dancing, footprints, coin, money bag, dollar banknote, bellhop bell, luggage,
hourglass done, watch, alarm clock, stopwatch, mantelpiece clock, warning, no entry, recycling symbol, radioactive,
peace symbol, yin yang, man’s shoe, woman’s hat, woman’s boot, hammer and wrench, poodle, hospital, bank, hotel
""")
RENAMED = {
    "Christmas tree": "christmas tree", "Santa Claus": "santa claus", "Statue of Liberty": "statue of liberty",
    "T-Rex": "t-rex", "american football": "football", "automobile": "car", "bellhop bell": "hotel bell",
    "billed cap": "cap", "bottle with popping cork": "champagne bottle",
    "carpentry saw": "saw", "cheese wedge": "cheese", "classical building": "greek temple", "closed book": "book",
    "closed umbrella": "folded umbrella", "couch and lamp": "couch", "cricket": "cricket insect",
    "dollar banknote": "banknote", "ear of corn": "corn", "fire engine": "fire truck", "flexed biceps": "arm",
    "flying disc": "frisbee", "fork and knife with plate": "dinner plate", "game die": "die",
    "gem stone": "diamond", "hammer and wrench": "tools",
    "headphone": "headphones", "high voltage": "lightning bolt", "honeybee": "bee",
    "horizontal traffic light": "traffic light on its side", "hot beverage": "cup of coffee",
    "hourglass done": "hourglass", "lady beetle": "ladybug", "locked": "padlock",
    "magnifying glass tilted left": "magnifying glass", "man’s shoe": "shoe", "mantelpiece clock": "clock",
    "optical disk": "cd", "passenger ship": "cruise ship", "pool 8 ball": "8 ball", "piñata": "pinata",
    "red apple": "apple", "ring buoy": "lifebuoy", "roll of paper": "toilet paper", "shallow pan of food": "paella",
    "soft ice cream": "ice cream cone", "sun with face": "sun with a face",
    "teacup without handle": "teacup", "thong sandal": "flip-flop", "vertical traffic light": "traffic light",
    "water wave": "wave", "woman’s boot": "boot", "woman’s clothes": "blouse", "woman’s hat": "sun hat",
    "wrapped gift": "gift", "kitchen knife": "knife", "mobile phone": "phone", "collision": "explosion",
    "no entry": "no entry sign", "warning": "warning sign", "radioactive": "radioactive sign", "ice": "ice cube",
    "steaming bowl": "noodle soup", "speech balloon": "speech bubble", "police car light": "siren",
    "globe with meridians": "globe", "snow-capped mountain": "snowy mountain", "lotus": "lotus flower",
    "night with stars": "night sky", "cooking": "fried egg", "tennis": "tennis ball",
    "badminton": "shuttlecock", "ping pong": "table tennis racket", "bowling": "bowling ball",
    "ice hockey": "hockey stick", "performing arts": "theatre masks", "locomotive": "steam train",
    "bullseye": "target", "nut and bolt": "bolt", "link": "chain link", "alembic": "flask",
    "camping": "campsite", "memo": "notepad", "pushpin": "pin", "film frames": "film",
    "studio microphone": "microphone on a stand",
}  # fmt: skip
ALIASES = {
    "car": "automobile", "bicycle": "bike", "phone": "mobile phone", "television": "tv", "padlock": "lock",
    "airplane": "plane", "lightning bolt": "electricity", "droplet": "water drop", "wave": "water", "rock": "stone",
    "skull and crossbones": "poison", "herb": "grass", "cup of coffee": "coffee", "hamburger": "burger",
    "fridge": "refrigerator", "snowflake": "snow", "wind face": "wind", "hot pepper": "chili pepper",
    "couch": "sofa", "diamond": "gem", "honey pot": "honey", "doughnut": "donut", "dove": "white dove",
    "desktop computer": "computer", "fire": "flame", "ice cube": "ice", "t-rex": "dinosaur",
    "military helmet": "helmet", "soccer ball": "ball", "mage": "wizard", "gift": "present", "night sky": "night",
    "jack-o-lantern": "halloween pumpkin",
}  # fmt: skip
# hard to name, or too near to another noun
LEFT_OUT = listed("""
adhesive bandage, alien monster, balance scale, barber pole, bento box, blowfish, bridge at night, bullet train, bus
stop, campsite, carousel horse, chain link, chestnut, cityscape, clamp, clinking glasses, cloud with lightning and
rain, club suit, diamond suit, heart suit, spade suit, cold face, confetti ball, curling stone, cyclone, deciduous
tree, desert, diya lamp, dodo, elevator, e-mail, exploding head, falafel, file cabinet, film projector, firecracker,
flatbread, fog, folding hand fan, fondue, ginger root, headstone, hot face, house with garden, hyacinth, ice cream,
joker, kiss mark, knot, lab coat, leopard, long drum, mammoth, manual wheelchair, martial arts uniform, mechanical
arm, microphone on a stand, military medal, milky way, mirror ball, monorail, mount fuji, mouse trap, musical notes,
nauseated face, nest with eggs, notepad, oil drum, olive, orangutan, oyster, paella, partying face, person biking,
person surfing, pick, playground slide, postal horn, pot of food, purse, recycling symbol, red envelope, roasted
sweet potato, running shirt, safety vest, satellite antenna, seat, seedling, shamrock, shaved ice, shortcake,
smiling face with halo, smiling face with heart-eyes, smiling face with horns, sparkles, spouting whale, sun with a
face, takeout box, telephone receiver, tokyo tower, tools, traffic light on its side, triangular ruler, tropical
drink, video camera, white flower, wind chime, wood, world map, firefighter, artist, farmer, troll, goblin, ogre,
genie, woman dancing, bolt, kick scooter, old woman, money bag, peace symbol, thinking face, musical score, framed
picture, hotel bell, chipmunk, wing, hotel, school, clipboard, tropical fish, bubbles, poultry leg, shopping bags,
tongue, handshake, sheaf of rice, siren, sunrise, sunset, straight ruler, rice ball, baguette bread, microbe,
stadium, steam train, tangerine, thread, bison, badger,
""")


def unicode_names() -> dict[str, tuple[str, str, str]]:
    """Every fully qualified emoji without skin tone: name -> (characters, group, subgroup)."""
    if not EMOJI_LIST.exists():
        raise InputError("the list of emoji is missing", where=EMOJI_LIST, fix="apt install unicode-data.")
    names, group, subgroup = {}, "", ""
    for line in EMOJI_LIST.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line[9:].strip()
        elif line.startswith("# subgroup: "):
            subgroup = line[12:].strip()
        elif (match := LINE.match(line)) and ":" not in match[2]:
            characters = "".join(chr(int(code, 16)) for code in match[1].split())
            names[match[2]] = (characters, group, subgroup)
    return names


def is_kept(name: str, group: str, subgroup: str) -> bool:
    """Things one can name at a glance; near-duplicates, signs and regional variants are left out."""
    if name in SINGLES:
        return True
    return group in WHOLE_GROUPS and subgroup not in SKIPPED_SUBGROUPS and not SKIPPED.search(name)


@cache
def emoji_nouns() -> dict[str, str]:
    """Noun -> the emoji's characters, for every noun with a glyph in the colour font."""
    kept = {}
    for name, (characters, group, subgroup) in unicode_names().items():
        if is_kept(name, group, subgroup):
            kept[RENAMED.get(name, name).lower().replace("’", "'")] = characters
    return {noun: characters for noun, characters in kept.items() if noun not in LEFT_OUT}


def all_nouns() -> list[str]:
    """Every noun of the base model, sorted."""
    return sorted({*emoji_nouns(), *DRAWN})


def spoken(noun: str, alias: bool) -> str:
    """The noun, or its other everyday name where it has one."""
    return ALIASES.get(noun, noun) if alias else noun
