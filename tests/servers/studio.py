"""The studio as people have it before them: the real command in a folder of its own, and its page in a real browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from playwright.sync_api import Page
from safetensors import safe_open
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
POCKET_UNET = ROOT / "data" / "pocket" / "base" / "unet" / "diffusion_pytorch_model.safetensors"
OPEN = re.compile(r"the studio is open: (\S+)")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Running:
    """A studio's process. home: where it was started. begun: time.monotonic() of that. opening: processor seconds until
    it listened.
    """

    process: subprocess.Popen[str]
    home: Path
    url: str
    begun: float
    opening: float

    @property
    def outputs(self) -> Path:
        return self.home / "outputs"

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        return cpu_of(self.process.pid)

    def memory(self) -> float:
        """MB that it holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024

    def pictures(self) -> list[Path]:
        """Finished ones, the oldest first."""
        return sorted(self.outputs.glob("[0-9]*/0*.png"))


def cpu_of(pid: int) -> float:
    """Seconds of processor time that a process used. Source: proc(5), fields 14 and 15 of stat."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def cpu_below(pid: int) -> float:
    """Of a process and all that it started: a browser is many."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return cpu_of(pid) + sum(cpu_below(int(child)) for child in children)


def write_lora(file: Path, rank: int = 2, strength: float = 0.05) -> None:
    """A LoRA of noise for the embedded base's attention, written without loading a network."""
    draw = np.random.default_rng(0)
    layers: dict[str, np.ndarray] = {}
    with safe_open(POCKET_UNET, framework="numpy") as weights:
        for name in weights.keys():  # noqa: SIM118
            layer, dot, kind = name.rpartition(".")
            if dot and kind == "weight" and layer.endswith((".to_q", ".to_k", ".to_v")):
                wide, deep = weights.get_slice(name).get_shape()
                layers[f"unet.{layer}.lora_A.weight"] = draw.normal(size=(rank, deep)).astype(np.float32)
                layers[f"unet.{layer}.lora_B.weight"] = draw.normal(size=(wide, rank)).astype(np.float32) * strength
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(layers, file)


@contextmanager
def running(home: Path, *flags: str) -> Iterator[Running]:
    """A studio on a free port, until the block ends; Ctrl-C must end it well."""
    command = [sys.executable, str(ROOT / "infer" / "studio.py"), "--port", "0", *flags]
    own = {"PYTHONPATH": str(ROOT), "ATELIER_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    own["MALLOC_ARENA_MAX"] = "2"  # what each thread's own heap keeps is no leak
    begun = time.monotonic()
    log = home / "studio.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, cwd=home, env=os.environ | own, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            url = address(process, log)
            yield Running(process, home, url, begun, cpu_of(process.pid))
            process.send_signal(2)
            assert process.wait(30) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def address(process: subprocess.Popen[str], log: Path) -> str:
    """Where it listens, as it says itself."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := OPEN.search(line):
            return found[1]
    raise AssertionError(f"the studio did not open: {log.read_text()}")


@dataclass(frozen=True)
class Studio:
    """One tab."""

    page: Page
    running: Running

    def open(self) -> Studio:
        """Go to the page, and wait until something can be typed."""
        self.page.goto(self.running.url)
        self.page.wait_for_selector("#prompt textarea")
        self.page.wait_for_selector("#generate")
        return self

    def opened(self) -> float:
        """As open(); processor seconds of the page's own thread, the longest of the browser's."""
        teller = self.page.context.new_cdp_session(self.page)
        teller.send("Performance.enable", {"timeDomain": "threadTicks"})
        self.open()
        found = {each["name"]: each["value"] for each in teller.send("Performance.getMetrics")["metrics"]}
        teller.detach()
        return found["TaskDuration"]

    def go(self, place: str) -> None:
        """Generate, Scribble, Compare or Gallery."""
        self.page.check(f"#place input[value={place}]", force=True)

    def mode(self, name: str) -> None:
        """Simple or Expert."""
        self.page.check(f"#mode input[value={name}]", force=True)

    def set(self, field: str, value: object) -> None:
        """Type into an expert field."""
        box = self.page.locator(f"#{field} textarea, #{field} input[type=number], #{field} input[type=text]").first
        box.fill(str(value))
        box.blur()

    def choose(self, field: str, option: str) -> None:
        """Take one of a list."""
        self.page.click(f"#{field} input")
        self.page.click(f"[role=option][aria-label='{option}']")

    def say(self, prompt: str) -> None:
        self.page.fill("#prompt textarea", prompt)

    def value(self, field: str) -> str:
        return self.page.locator(f"#{field} textarea, #{field} input").first.input_value()

    def draw(self, prompt: str) -> None:
        """Say what, and press Enter."""
        self.say(prompt)
        self.page.press("#prompt textarea", "Enter")

    def finished(self) -> None:
        """Until pictures with their captions stand on the stage."""
        self.page.wait_for_selector("#stage figcaption, #stage .compare")

    def stage(self) -> str:
        return self.page.inner_text("#stage")
