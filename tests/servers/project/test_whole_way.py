"""From images to a LoRA through every command, on a real server."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from annotation import project, server
from annotation.cli import dispatch
from annotation.client import Client, Task
from data import sample_set, validate
from data.cli import parse
from tests import sessions
from tests.servers.project.conftest import answer, tasks_of
from train.config import ALIASES, CONFIGS, Config
from train.run_folder import Run, all_runs

pytestmark = pytest.mark.servers

COUNT = 8
QUICK = [
    *("--preserve.share", "0"),
    *("--max-steps", "2", "--pictures.size", "32", "--batch-size", "2", "--adapter.targets", "attention"),
    *("--validation.every", "2", "--validation.pictures", "1", "--validation.timesteps", "2", "--no-probe"),
    *("--checkpoints.every", "2", "--logging.every", "2", "--threads", "1", "--previews.every", "0"),
]


def caption(task: Task) -> str:
    """What an annotator would say of a creature."""
    about = sample_set.sample_annotation(int(task.data["file_name"].partition(".")[0]))
    return f"{about.name}, a {about.type} type creature"


def choose(client: Client, task: Task, **chosen: str) -> None:
    """A triage by single keys."""
    items = [
        {"id": field, "from_name": field, "to_name": "image", "type": "choices", "value": {"choices": [choice]}}
        for field, choice in chosen.items()
    ]
    client.sdk.annotations.create(id=task.id, lead_time=2.0, result=items)  # type: ignore[arg-type]


def work_through(client: Client, found: project.Project) -> dict[str, str]:
    """Caption as a person does: correct drafts, write, skip one, send one away in the triage. File name -> caption."""
    captions: dict[str, str] = {}
    for number, task in enumerate(tasks_of(client, found)):
        if number == 0:
            answer(client, task, was_cancelled=True, seconds=3.0)
            continue
        captions[task.data["file_name"]] = caption(task)
        answer(client, task, caption(task), seconds=30.0)
    for number, task in enumerate(tasks_of(client, found, "triage")):
        about = sample_set.sample_annotation(int(task.data["file_name"].partition(".")[0]))
        assert about.type is not None
        reason = {"skip_reason": "blurred"} if number == 1 else {}
        choose(client, task, type=about.type, quality="good", **reason)
        if reason:
            del captions[task.data["file_name"]]
    return captions


def bring_to_the_server(label_studio: server.Server, capsys: pytest.CaptureFixture[str]) -> project.Project:
    """Pictures, with a caption that somebody wrote elsewhere, pushed by `start`; nothing is left for another push."""
    own = ["--server", str(label_studio.folder)]
    sample_set.write_sample_folder(Path("whole way"), count=COUNT, size=32)
    Path("old").mkdir()
    shutil.copy("whole way/00003.png", "old/renamed.png")
    Path("old/renamed.txt").write_text("a caption of before.\nand another one.")
    Path("whole way/metadata.jsonl").unlink()
    assert dispatch(["import", "old", "--images", "whole way"]) == 0
    assert "1 further caption of 1 image left out" in capsys.readouterr().out
    push = ["--images", "whole way", "--types", ",".join(sample_set.TYPES), "--keep-duplicates"]
    assert dispatch(["start", *push, *own]) == 0
    said = capsys.readouterr().out
    found = project.load_project("whole way")
    assert f"{label_studio.url}  (already running" in said and "login.json" in said and "next:" in said
    assert all(f"{label_studio.url}/projects/{number}/data?labeling=1" in said for number in found.screens.values())
    assert dispatch(["push", *own]) == 0
    assert f"0 new, {COUNT} existing" in capsys.readouterr().out
    assert dispatch(["doctor", *own]) == 0, capsys.readouterr().out
    assert dispatch(["invite", *own]) == 0
    assert f"{label_studio.url}/user/signup/?token=" in capsys.readouterr().out
    return found


def train(release: str, model: Path) -> Run:
    """Look at a release with prepare, which finds nothing wrong, and fine-tune on it for two steps."""
    prepare = parse(validate.PrepareOptions, [release, "--size", "32"], prog="prepare.py", aliases=validate.ALIASES)
    assert validate.validate_folder(prepare) == 0
    finetune = ["--data", release, "--model", str(model), *QUICK]
    config = parse(Config, finetune, prog="finetune.py", preset=CONFIGS / "pocket.yaml", aliases=ALIASES)
    assert sessions.run(config) == 0
    (run,) = all_runs(Path("runs"))
    return run


def test_from_images_to_weights(
    label_studio: server.Server, client: Client, tiny_model: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    own = ["--server", str(label_studio.folder)]
    captions = work_through(client, bring_to_the_server(label_studio, capsys))
    assert dispatch(["pull", *own]) == 0
    assert f"{2 * COUNT} new, 0 changed, 0 deleted" in capsys.readouterr().out
    assert dispatch(["status"]) == 0
    assert f"{COUNT - 1} done, 1 skipped, 0 open of {COUNT} (100%)" in capsys.readouterr().out
    assert dispatch(["lint", "--leave-out=vocabulary", *own]) == 0, capsys.readouterr().out
    capsys.readouterr()

    assert dispatch(["export", "--into", "release", "--strict"]) == 0
    said = capsys.readouterr().out
    assert "left out, skip_reason blurred: 1" in said and "left out, skipped: 1" in said
    rows = [json.loads(line) for line in Path("release/metadata.jsonl").read_text().splitlines()]
    assert {row["file_name"]: row["text"] for row in rows} == captions
    assert {row["annotator"] for row in rows} == {"annotator 1"}
    assert not any(server.USER.encode() in path.read_bytes() for path in Path("release").rglob("*") if path.is_file())

    run = train("release", tiny_model)
    facts = run.facts("data.json")
    assert facts["train"].keys() | facts["held_out"].keys() == captions.keys()
    weights = load_file(run.export / "lora.safetensors")
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name), "nothing was learned"
