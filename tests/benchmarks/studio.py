"""How long until the studio's page can be used, and from Enter to a first preview: the real command, a real browser.

python -m tests.benchmarks.studio [--screenshot PNG] [--home FOLDER]

Nothing else should be running. The folder that the studio works in is made for it and thrown away after; that of --home
stays, and its runs are drawn with.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from tests.servers.browser import Web, browser
from tests.servers.studio import Studio, running

SHOWN = "a toucan"
SIZE = (1280, 840)


def main() -> None:
    """Print seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screenshot", type=Path, help="keep a picture of the page with four pictures on it")
    parser.add_argument("--home", type=Path, help="the folder to work in, that of `make demo` for example")
    options = parser.parse_args()
    home = nullcontext(str(options.home.resolve())) if options.home else tempfile.TemporaryDirectory()
    with home as folder, browser() as chromium, running(Path(folder)) as studio:
        web = Web(chromium.new_context(reduced_motion="reduce"))
        tab = Studio(web.page(SIZE), studio).open()
        print(f"page ready {time.monotonic() - studio.begun:.1f} s after the start")
        tab.draw("a blue cat")
        tab.finished()
        print(f"first preview {first_preview(tab):.2f} s after Enter")
        if options.screenshot:
            keep(tab, options.screenshot)
        web.close()


def first_preview(tab: Studio) -> float:
    """Seconds from Enter."""
    begun = time.monotonic()
    tab.draw("a yellow guitar")
    tab.page.wait_for_selector("#stage .preview img")
    found = time.monotonic() - begun
    tab.page.wait_for_selector("#generate:visible")
    return found


def keep(tab: Studio, path: Path) -> None:
    """The page with four pictures."""
    tab.page.check("#count input[value='4']", force=True)
    tab.draw(SHOWN)
    tab.page.wait_for_selector("#stop:visible")
    tab.page.wait_for_selector("#generate:visible")
    tab.page.wait_for_function("() => [...document.querySelectorAll('#stage img')].every(one => one.naturalWidth)")
    tab.page.screenshot(path=path)


if __name__ == "__main__":
    main()
