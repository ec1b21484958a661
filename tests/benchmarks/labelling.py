"""How long an annotator waits from Ctrl+Enter to the next focused box: a real server, a real browser, 20 pictures.

python -m tests.benchmarks.labelling [--screenshot PNG]

Nothing else should be running. The picture folder, the server and the browser are made for it and thrown away after.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from annotation.client import connect
from data import sample_set
from tests.servers.browser import Web, browser
from tests.servers.labelling import Labelling, log_in
from tests.servers.projects import push_pictures, running_server

PAUSES = 20
SIZE = 512  # pixels


def main() -> None:
    """Print the median and the 90th percentile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screenshot", type=Path, help="keep a picture of the first caption screen")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pauses = measure(Path(folder), options.screenshot)
    print(f"{len(pauses)} pauses: median {statistics.median(pauses):.2f} s, 90 % within {ninetieth(pauses):.2f} s")


def measure(folder: Path, screenshot: Path | None) -> list[float]:
    """Accept 21 drafts by Tab, Ctrl+Enter; seconds from each Ctrl+Enter to the next focused box."""
    pictures = folder / "creatures"
    sample_set.write_sample_folder(pictures, count=PAUSES + 1, size=SIZE)
    shown = (sample_set.sample_annotation(index) for index in range(PAUSES + 1))
    captions = {each.file_name: each.text for each in shown}
    with (
        running_server(folder / ".server") as running,
        connect(folder=running.folder) as client,
        browser() as chromium,
    ):
        screens = push_pictures(client, folder=pictures, count=PAUSES + 1, drafts=captions, name="creatures")
        web = Web(chromium.new_context())
        log_in(web.context, running)
        labelling = Labelling(web.page(), running.url).open(screens["text"], timed=True)
        if screenshot:
            labelling.page.screenshot(path=screenshot)
        for _ in range(PAUSES):
            labelling.finish("Tab", "Control+Enter")
        pauses = labelling.pauses()
        web.close()
    return pauses


def ninetieth(pauses: Sequence[float]) -> float:
    return statistics.quantiles(pauses, n=10)[-1]


if __name__ == "__main__":
    main()
