"""Label Studio's labelling page as an annotator uses it: keys go in, and what is visible comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from playwright.sync_api import BrowserContext, Page

from annotation.server import Server
from tests.servers.browser import PATIENCE

FILE = ".atelier .file .lsf-htx-richtext"
# the picture is there, another one than before, and there is something to answer in
READY = """before => {
  const file = document.querySelector('.atelier .file .lsf-htx-richtext')
  const picture = document.querySelector('.atelier .picture img')
  if (!file?.innerText || file.innerText === before || !picture?.naturalWidth) return false
  return document.activeElement.tagName === 'TEXTAREA' || document.querySelector('.lsf-choices') !== null
}"""
OVER = f"before => document.body.innerText.includes('No More Tasks') || ({READY})(before)"
# seconds from each Ctrl+Enter until the box of the next picture has the focus; the old one shows up once more before
PAUSES = """
window.pauses = []
let submitted = null
const file = () => document.querySelector('.atelier .file .lsf-htx-richtext')?.innerText
addEventListener('keydown', e => {
  if (e.ctrlKey && e.key === 'Enter') submitted = {at: performance.now(), file: file()}
}, true)
const look = () => {
  if (submitted && document.activeElement.tagName === 'TEXTAREA' && file() && file() !== submitted.file) {
    window.pauses.push((performance.now() - submitted.at) / 1000)
    submitted = null
  }
  requestAnimationFrame(look)
}
look()
"""


class Box(NamedTuple):
    """A rectangle on the page, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def within(self, width: float, height: float) -> bool:
        return self.left >= 0 and self.top >= 0 and self.right <= width and self.bottom <= height


@dataclass(frozen=True)
class Labelling:
    """One tab with the stream of a project."""

    page: Page
    url: str

    def stream(self, number: int) -> str:
        """The deep link to a project's stream, as push prints it."""
        return f"{self.url}/projects/{number}/data?labeling=1"

    def open(self, number: int, *, timed: bool = False) -> Labelling:
        """Go to the stream of a project by its deep link, and wait until it can be answered. timed: for `pauses`."""
        if timed:
            self.page.add_init_script(PAUSES)
        self.page.goto(self.stream(number))
        self.wait(READY, "")
        return self

    def wait(self, script: str, argument: str | None = None) -> None:
        """Wait until a script says true. To ask at every frame would make the browser draw all the time."""
        self.page.wait_for_function(script, arg=argument, polling=50)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def type(self, text: str) -> None:
        self.page.keyboard.type(text)

    def finish(self, *keys: str) -> None:
        """Press the keys that end this picture, and wait for the next one, or for the end of them all."""
        before = self.file()
        self.press(*keys)
        self.wait(OVER, before)

    def wait_for(self, name: str) -> None:
        """Wait until the picture of that name is shown."""
        self.wait(f"({READY})('') && document.querySelector('{FILE}').innerText === '{name}'")

    def file(self) -> str:
        """The name of the picture that is shown."""
        return self.page.inner_text(FILE)

    def text(self) -> str | None:
        """What stands in the box, if the focus is in it."""
        return self.page.evaluate("document.activeElement.tagName === 'TEXTAREA' ? document.activeElement.value : null")

    def focus(self) -> str:
        """What the focus is on, by the name that a screen reader would say."""
        return self.page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.tagName")

    def chosen(self) -> list[str]:
        """The choices that are filled, in the order of the screen."""
        return self.page.eval_on_selector_all(".lsf-choices input:checked", "found => found.map(each => each.name)")

    def at_end(self) -> bool:
        return "No More Tasks" in self.page.inner_text("body")

    def pauses(self) -> list[float]:
        """Seconds from each Ctrl+Enter to the next focused box, of a page that was opened `timed`."""
        return self.page.evaluate("window.pauses")

    def where(self, selector: str) -> Box:
        """The place of the first element that fits."""
        script = "e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom] }"
        found: list[float] = self.page.eval_on_selector(selector, script)
        return Box(*found)


def log_in(context: BrowserContext, server: Server) -> None:
    """Log the browser in with the server's own user, who comes to the home page."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"{server.url}/user/login/")
    give_login(page, server)
    page.wait_for_url(lambda url: "login" not in url)
    page.close()


def give_login(page: Page, server: Server) -> None:
    """Fill in the form that asks who one is."""
    page.fill("input[name=email]", server.login.user)
    page.fill("input[name=password]", server.login.password)
    page.keyboard.press("Enter")


class Answer(NamedTuple):
    """What the server keeps of one answer."""

    file_name: str
    values: dict[str, str]  # field -> what was written or chosen
    skipped: bool
    origin: str | None  # "prediction": a draft taken as it was; "prediction-changed": edited


def answers(client: Any, number: int) -> list[Answer]:
    """Every answer in a project, in the order in which they were given."""
    tasks = client.retry(lambda sdk: list(sdk.tasks.list(project=number, page_size=1000, fields="all")))
    given = [(task.data["file_name"], each) for task in tasks for each in task.annotations or []]
    return [read(name, each) for name, each in sorted(given, key=lambda pair: pair[1]["id"])]


def read(name: str, annotation: dict[str, Any]) -> Answer:
    results = annotation["result"]
    values = {each["from_name"]: next(iter(each["value"].values())) for each in results}
    assert all(len(value) == 1 for value in values.values()), values
    origin = results[0].get("origin") if results else None
    return Answer(name, {key: value[0] for key, value in values.items()}, annotation["was_cancelled"], origin)
