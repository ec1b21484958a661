"""The set that is meant by a word: digits, creatures, a folder, a preset, or a name on the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data.errors import InputError, suggest
from data.sets import digits, folder, hub
from data.sets.options import SetOptions
from data.sets.pictures import Pictures
from data.sets.presets import PRESETS
from data.walk import missing_folder

OWN = ("digits", "creatures")
FEWEST = 2  # pictures: one to train on, one to hold out


def load(options: SetOptions, *, seed: int) -> Pictures:
    """The pictures that the options ask for, not yet split. Raises InputError, naming the flag, for what cannot be."""
    # a set of the hub is already filtered and cut to --data.most, before its pictures were decoded
    found = chosen(options, seed).only(options.only).at_most(options.most, seed)
    if len(found) < FEWEST:
        raise InputError(f"{len(found)} picture in {options.set}", where="--data.set", allowed=f"{FEWEST} or more")
    flip = found.flip if options.flip is None else options.flip
    return replace(found, flip=flip)


def chosen(options: SetOptions, seed: int) -> Pictures:
    """The whole set, by the word for it."""
    word, path = options.set, Path(options.set).expanduser()
    if word == "digits":
        return coloured(digits.load(options.size), options)
    if word == "creatures":
        return creatures(options)
    if word in PRESETS:
        return preset(options, seed)
    if path.is_dir():
        return hub.load(options, seed=seed) if hub.is_saved(path) else folder.load(path, options.size, options.mode)
    if word.startswith((".", "/", "~")) or word.count("/") > 1 or path.exists():
        raise missing_folder(path)
    if "/" in word:
        return hub.load(options, seed=seed)
    words = [*OWN, *PRESETS]
    allowed = f"{', '.join(words)}, a folder, or OWNER/NAME of a data set on the hub"
    raise InputError(f"unknown set {word!r}{suggest(word, words)}", where="--data.set", allowed=allowed)


def coloured(found: Pictures, options: SetOptions) -> Pictures:
    """Grey pictures in three equal channels, if colour was asked for."""
    return replace(found, pixels=found.pixels.repeat(1, 3, 1, 1)) if options.mode == "RGB" else found


def creatures(options: SetOptions) -> Pictures:
    """The sample set, drawn at the size that is trained on."""
    from data.sample_set import sample_folder

    size = options.size or folder.SIZE
    found = folder.load(sample_folder(size=size), size, options.mode, name="creatures")
    return replace(found, flip=True)


def preset(options: SetOptions, seed: int) -> Pictures:
    """A data set of the hub as its preset has it, but for what was asked for."""
    known = PRESETS[options.set]
    asked = options.model_copy(
        update={
            "set": known.hub,
            "size": options.size or known.size,
            "mode": options.mode or known.mode,
            "subset": options.subset or known.subset,
            "only": options.only or list(known.only),
        }
    )
    return replace(hub.load(asked, seed=seed), name=options.set, flip=known.flip)
