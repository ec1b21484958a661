"""A blind sheet: two pictures a prompt in an order that nobody sees, a choice each, and the share with its interval."""

from __future__ import annotations

import json
from collections.abc import Sequence

from data import rng
from data.reports.page import Page, escape
from infer.evaluation.collect import BASE, TUNED, Gathered
from infer.evaluation.prompts import Ask
from infer.evaluation.report import small

QUESTIONS = ("Which one shows what the words say?", "Which one looks like the pictures above?")
SHOWN = 8  # training pictures above
STYLE = ".pair{display:flex;gap:1rem;align-items:center;margin:1rem 0}.pair fieldset{border:0}"
# Wilson's interval, as data/metrics/statistics.py has it: the sheet works without Python
SCRIPT = """
const tuned = JSON.parse(document.getElementById('key').textContent);
const said = document.getElementById('said');
function wilson(k, n) {
  const z = 1.959964, p = k / n, d = 1 + z * z / n;
  const m = (p + z * z / (2 * n)) / d, h = z / d * Math.sqrt(p * (1 - p) / n + z * z / (4 * n * n));
  return [k === 0 ? 0 : m - h, k === n ? 1 : m + h];
}
function count(question) {
  let k = 0, n = 0;
  tuned.forEach((side, i) => {
    const chosen = document.querySelector(`input[name="q${question}-${i}"]:checked`);
    if (chosen) { n += 1; k += chosen.value === side ? 1 : 0; }
  });
  if (!n) return 'nothing chosen yet';
  const [low, high] = wilson(k, n).map(x => (100 * x).toFixed(0));
  return `tuned chosen in ${k} of ${n}: ${(100 * k / n).toFixed(0)} % (95 % ${low} to ${high})`;
}
document.getElementById('tell').addEventListener('click', () => {
  said.textContent = [0, 1].map(q => document.getElementById('question' + q).textContent + ' ' + count(q)).join('\\n');
});
"""


def sides(asks: Sequence[Ask], seed: int) -> list[str]:
    """Where the tuned picture of each pair stands."""
    return ["left" if rng.integer(2, seed, "blind", ask.text, ask.seed) else "right" for ask in asks]


def page(found: Gathered) -> Page:
    """A pair for each prompt without style and each of the thesis', the first seed of each."""
    first = {ask.text: ask for ask in reversed((*found.questions.plain, *(ask for ask, _ in found.questions.figures)))}
    asks = list(first.values())[:40]
    stands = sides(asks, found.seed)
    made = Page(
        "Which is better?", "Choose without knowing which model drew it; then ask for the result.", STYLE, SCRIPT
    )
    made.strip(
        [(small(picture), "") for picture in found.references[:SHOWN]], title="The style", columns=SHOWN, width=90
    )
    for place, (ask, tuned) in enumerate(zip(asks, stands, strict=True)):
        order = (TUNED, BASE) if tuned == "left" else (BASE, TUNED)
        made.strip([(small(found.drawings.cells[side, ask].image), "") for side in order],
                   title=f"{place + 1}. {ask.text}", columns=2)  # fmt: skip
        made.add("".join(choice(place, number) for number in range(len(QUESTIONS))))
    key = f'<span hidden id="key">{escape(json.dumps(stands))}</span>'
    heads = "".join(f'<span hidden id="question{n}">{escape(text)}</span>' for n, text in enumerate(QUESTIONS))
    return made.add(f'{key}{heads}<p><button id="tell">Result</button></p><pre id="said"></pre>')


def choice(place: int, number: int) -> str:
    name = f"q{number}-{place}"
    radios = "".join(
        f'<label><input type="radio" name="{name}" value="{side}"> {side}</label> ' for side in ("left", "right")
    )
    return f"<fieldset><legend>{escape(QUESTIONS[number])}</legend>{radios}</fieldset>"
