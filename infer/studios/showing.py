"""The page's own pieces of HTML: what is being drawn, what came out, the slider, and the gallery."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from infer.studios.desk import Done, Order

if TYPE_CHECKING:
    from infer.galleries.search import Hit

IDEAS = ("a water type fridge", "a blue cat", "a cactus with two red flowers", "a yellow guitar")
EMPTY = '<div class="empty"><div class="frame"></div><p>{}</p></div>'
FACTS = ("model", "lora", "sampler", "steps", "cfg", "seed")


def say(text: str) -> str:
    return html.escape(text, quote=True)


def empty(text: str = "Say what you would like to see, and press Draw.") -> str:
    return EMPTY.format(say(text))


def wrong(text: str) -> str:
    """What cannot be done, and what to do instead."""
    lines = "".join(f"<p>{say(line)}</p>" for line in text.splitlines())
    return f'<div class="wrong" role="alert">{lines}</div>'


def waiting(order: Order, ahead: int) -> str:
    """An order in the queue, or one whose first step has not been made."""
    words = {0: "Getting the brushes ready ..."}.get(ahead, f"{counted(ahead, 'order')} before yours")
    return f'<div class="empty busy" role="status"><div class="frame"></div><p>{say(words)}</p></div>'


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def drawing(order: Order) -> str:
    """Previews of what is being drawn, with finished ones in their places, and a bar."""
    left = f", {order.left:.0f} s left" if order.share > 0.15 else ""
    bar = (
        f'<div class="bar" role="progressbar" aria-valuenow="{order.share * 100:.0f}" aria-valuemin="0" '
        f'aria-valuemax="100"><i style="width:{order.share * 100:.1f}%"></i></div>'
        f'<p class="told" role="status">{order.share:.0%}{left}</p>'
    )
    done = {each.path.name: each for each in order.done if not each.base}
    looks = dict(order.looks)
    cells = [cell(looks.get(index), done, index, order) for index in range(max(order.count, 1))]
    return f'{bar}<div class="pictures {crowd(len(cells))}">{"".join(cells)}</div>'


def cell(look: bytes | None, done: dict[str, Done], index: int, order: Order) -> str:
    """One picture on its way."""
    there = next((each for name, each in done.items() if name.startswith(f"{index:05d}-")), None)
    if there is not None:
        return f'<figure><img src="{address(there.path)}" alt="{say(there.prompt)}"></figure>'
    ratio = f"aspect-ratio:{order.size[0]}/{order.size[1]}" if order.size[0] else ""
    if look is None:
        return f'<figure><div class="frame" style="{ratio}"></div></figure>'
    data = base64.b64encode(look).decode()
    return (
        f'<figure class="becoming"><img src="data:image/webp;base64,{data}" style="{ratio}" alt="a preview"></figure>'
    )


def finished(order: Order) -> str:
    """What came out; of a stopped order, what was finished."""
    notes = "".join(f'<p class="note">{say(note)}</p>' for note in order.notes)
    notes += "".join(
        '<p class="note">One picture broke down (its numbers overflowed). Try less guidance.</p>'
        for each in order.done
        if each.verdict == "nan"
    )
    if order.state == "stopped" and not order.done:
        return empty("Stopped. Nothing was finished.")
    if any(each.base for each in order.done):
        return notes + "".join(slider(*pair) for pair in pairs(order.done))
    cards = "".join(card(each) for each in order.done)
    return f'{notes}<div class="pictures {crowd(len(order.done))}">{cards}</div>'


def crowd(count: int) -> str:
    """How many stand beside each other."""
    return "one" if count == 1 else "few" if count <= 4 else "many"


def address(path: Path) -> str:
    """Of a picture in outputs/, on this server."""
    return link(Path(*path.parts[1:]).as_posix())


def link(name: str) -> str:
    return f"pictures/{say(quote(name))}"


def card(done: Done) -> str:
    """A finished picture and what can be done with it."""
    where = say(Path(*done.path.parts[1:]).as_posix())
    return (
        f'<figure><img src="{address(done.path)}" alt="{say(done.prompt)}"><figcaption>'
        f'<span class="seed">seed {done.seed}</span>'
        f'<button data-act="use" data-path="{where}" title="Put the settings of this picture into the fields">'
        f"Use settings</button>"
        f'<a href="{address(done.path)}" download="{say(done.path.name)}">Save</a></figcaption></figure>'
    )


def pairs(done: Sequence[Done]) -> list[tuple[Done, Done]]:
    """The base's picture and the tuned one of the same name."""
    base = {each.path.name: each for each in done if each.base}
    return [(base[each.path.name], each) for each in done if not each.base and each.path.name in base]


def slider(base: Done, tuned: Done) -> str:
    """Two pictures on top of each other; the handle says how much of which is seen."""
    return (
        '<figure class="compare" style="--at:50%">'
        f'<img src="{address(base.path)}" alt="by the base: {say(base.prompt)}">'
        f'<img class="over" src="{address(tuned.path)}" alt="by the tuned model: {say(tuned.prompt)}">'
        '<i class="handle"></i><input type="range" min="0" max="100" value="50" '
        'aria-label="Base on the left, tuned on the right">'
        '<span class="left">base</span><span class="right">tuned</span></figure>'
        f'<p class="told">{say(tuned.prompt)}, seed {tuned.seed}</p>'
    )


# ---- gallery


def gallery(hits: Sequence[Hit], asked: str) -> str:
    """A tile for each picture; a click opens it."""
    if not hits:
        nothing = "Nothing here looks like that." if asked.strip() else "The pictures that you draw come here."
        return empty(nothing)
    tiles = "".join(tile(hit) for hit in hits)
    return f'<p class="told" role="status">{counted(len(hits), "picture")}</p><div class="tiles">{tiles}</div>{DIALOG}'


def tile(hit: Hit) -> str:
    row: Any = hit.row
    prompt = row["prompt"] or hit.places[0]
    facts = {name: row[name] for name in FACTS if row[name] not in (None, "")}
    facts["size"] = f"{row['width']} x {row['height']}"
    if row["negative"]:
        facts["without"] = row["negative"]
    about = {"path": hit.places[0], "prompt": prompt, "star": row["star"], "facts": facts}
    star = '<i class="star" aria-label="favourite">\N{BLACK STAR}</i>' if row["star"] else ""
    return (
        f'<button class="tile" data-about="{say(json.dumps(about))}" aria-label="{say(prompt)}">'
        f'<img loading="lazy" src="{link(hit.places[0])}" alt="">{star}<span>{say(prompt)}</span></button>'
    )


DIALOG = (
    '<dialog class="seen"><div class="paper"><img alt=""><div class="about"><h3></h3><dl></dl><div class="acts">'
    '<button class="primary" data-act="use">Use these settings</button>'
    '<button data-act="star">Favourite</button><a download>Save</a><button data-act="close">Close</button>'
    "</div></div></div></dialog>"
)
