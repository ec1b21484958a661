"""finetune.py on twelve creatures and a tiny model: from the command to a LoRA that diffusers loads."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.errors import InputError
from tests.recipes.conftest import FEW, QUICK, Finetune
from train import checkpoint, optim, trainer
from train.config import CONFIGS
from train.metrics import read_metrics
from train.run_folder import all_runs, newest_finished

ROOT = Path(__file__).parents[2]
LEFT = {
    *("config.yaml", "data.json", "plan.json", "versions.json", "metrics.jsonl", "best.json", "report.html"),
    *("README.md", "done", "checkpoints", "export", "tensorboard", ".lock"),
}


def exported(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "lora.safetensors")


def test_from_images_to_a_lora_that_diffusers_loads(
    finetune: Finetune, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune("--probe", adapter=()) == 0
    (run,) = all_runs(Path("runs"))
    assert run.path.name == "0001-lora-r16"
    assert {path.name for path in run.path.iterdir()} == LEFT
    assert newest_finished(Path("runs")) == run.path
    plan = run.facts("plan.json")
    assert plan["training"] + plan["held_out"] == 12
    assert plan["epochs"] == pytest.approx(4 * 4 / plan["training"], abs=0.01)
    assert sorted(run.facts("data.json")["train"].keys() | run.facts("data.json")["held_out"].keys()) == [
        f"{index:05d}.png" for index in range(12)
    ]
    lines = read_metrics(run.metrics)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert "<svg" in (run.path / "report.html").read_text()
    out = capsys.readouterr().out
    assert "next:     python infer/generate.py --model runs/0001-lora-r16" in out

    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, local_files_only=True)
    pipeline.load_lora_weights(str(run.export), weight_name="lora.safetensors")
    assert pipeline.get_active_adapters()


def test_a_single_image_to_validate_has_no_interval(finetune: Finetune) -> None:
    assert finetune("--validation.pictures", "1", steps=1) == 0
    assert "on one image only" in Path("runs/0001-lora-r16/README.md").read_text()


def test_nothing_held_out(finetune: Finetune) -> None:
    assert finetune("--pictures.held-out", "0", steps=1) == 0
    assert json.loads(Path("runs/0001-lora-r16/best.json").read_text())["side"] == "train"


def test_the_same_command_again_does_nothing_more_steps_extend_new_starts_over(
    finetune: Finetune, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(steps=2) == 0
    before = exported(Path("runs/0001-lora-r16"))
    assert finetune(steps=2) == 0
    assert "finished after 2 steps; nothing to do" in capsys.readouterr().out
    assert finetune(steps=4) == 0
    assert "resuming runs/0001-lora-r16 after step 2" in capsys.readouterr().out
    assert json.loads(Path("runs/0001-lora-r16/done").read_text()) == {"steps": 4}
    extended = exported(Path("runs/0001-lora-r16"))
    assert any(not torch.equal(before[name], extended[name]) for name in before)
    assert finetune("--new", steps=4) == 0
    whole = exported(Path("runs/0002-lora-r16"))
    assert all(torch.equal(whole[name], extended[name]) for name in whole), "extended is not the same as uninterrupted"


def test_preserved_prompts_change_the_weights_and_resume_to_the_bit(
    finetune: Finetune, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("words.txt").write_text("a red car\n# not this\na small house\n")
    held = ["--preserve.share", "0.5", "--preserve.prompts", "words.txt"]
    assert finetune(*held, steps=2) == 0
    assert "base 3.0 MiB" in capsys.readouterr().out, "the plan counts the frozen copy"
    assert finetune(*held, steps=4) == 0
    assert "resuming runs/0001-lora-r16 after step 2" in capsys.readouterr().out
    assert finetune(*held, "--new", steps=4) == 0
    assert finetune(steps=4) == 0
    resumed, whole, plain = (exported(Path(f"runs/000{number}-lora-r16")) for number in (1, 2, 3))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert any(not torch.equal(plain[name], whole[name]) for name in whole)


def test_a_longer_run_with_a_decaying_rate_is_another_run(
    finetune: Finetune, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune("--optim.schedule", "cosine", steps=2) == 0
    assert finetune("--optim.schedule", "cosine", steps=2) == 0
    assert "A larger --max-steps is another run (cosine follows the length)" in capsys.readouterr().out
    assert finetune("--optim.schedule", "cosine", steps=3) == 0
    assert len(all_runs(Path("runs"))) == 2


def test_ctrl_c_saves_and_the_same_command_goes_on(
    finetune: Finetune, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = trainer.train_step

    def interrupted(state: trainer.TrainState, *rest: object) -> None:
        original(state, *rest)  # type: ignore[arg-type]
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", interrupted)
        assert finetune() == 130
    assert "stopped after step 3 of 4; the same command resumes it" in capsys.readouterr().out
    assert newest_finished(Path("runs")) is None
    assert finetune() == 0
    assert finetune("--new") == 0
    resumed, whole = exported(Path("runs/0001-lora-r16")), exported(Path("runs/0002-lora-r16"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    one, other = (read_metrics(Path(f"runs/000{number}-lora-r16/metrics.jsonl")) for number in (1, 2))
    # a window's speed is the clock's, and the stop cut one window in two
    assert [line for line in one if "window" not in line] == [line for line in other if "window" not in line]


def test_full_fine_tuning_leaves_a_whole_model(finetune: Finetune, tiny_model: Path) -> None:
    assert finetune("--adapter.kind", "full", "--optim.kind", "adamw-8bit", steps=2, adapter=()) == 0
    model = Path("runs/0001-full/export/model")
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        for file in (tiny_model / part).iterdir():
            assert (model / part / file.name).read_bytes() == file.read_bytes(), "a frozen part changed"
    trained = load_file(model / "unet" / "diffusion_pytorch_model.safetensors")
    before = load_file(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")
    assert trained.keys() == before.keys()
    assert all(not torch.equal(trained[name], before[name]) for name in before), "a weight was not trained"


def test_the_average_is_exported(finetune: Finetune, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--optim.kind", "schedule-free", "--ema.decay", "0.9", "--lr", "0.001", "--memory.gradient-checkpointing")
    assert finetune(*flags, steps=3) == 0
    out = capsys.readouterr().out
    assert "schedule-free, learning rate 0.001, constant; validated and exported: the moving average (EMA 0.9)" in out
    assert "sdpa attention, channels-last, gradient checkpointing" in out
    (run,) = Path("runs").glob("0001-*")
    exported = load_file(run / "export" / "lora.safetensors")
    average = load_file(run / "checkpoints" / "000003" / "ema.safetensors")
    trained = load_file(run / "checkpoints" / "000003" / "weights.safetensors")
    for name, weight in trained.items():
        there = exported["unet." + name.replace(".default", "")]
        assert torch.equal(there, average[name]) and not torch.equal(there, weight)
    assert finetune(*flags, steps=3) == 0
    assert "finished after 3 steps" in capsys.readouterr().out
    assert finetune(*flags[:-1], "--dry-run", steps=3) == 0, "gradient checkpointing does not make another run"
    assert "finished after 3 steps" in capsys.readouterr().out


def test_what_is_not_here_is_said_before_anything_is_made(finetune: Finetune, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^--memory.attention: xformers"):
        finetune("--memory.attention", "xformers")
    monkeypatch.setitem(optim.LIBRARIES, "prodigy", "nosuchlibrary")
    with pytest.raises(InputError, match=r"^--optim.kind: prodigy needs the library nosuchlibrary"):
        finetune("--optim.kind", "prodigy", "--learning-rate", "1")
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_from_images_to_an_export(finetune: Finetune, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole command with all of torch.compile but the C++; stopped after two steps and extended."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    assert finetune("--compile", steps=2) == 0
    assert finetune("--compile", steps=3) == 0
    assert finetune(steps=3) == 0
    (compiled,), (plain,) = (list(Path("runs").glob(f"000{n}-*/export/lora.safetensors")) for n in (1, 2))
    one, other = load_file(compiled), load_file(plain)
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-4)


def test_the_plan_alone(finetune: Finetune, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("--dry-run", "--accumulate", "2") == 0
    out = capsys.readouterr().out
    assert "4 x 2 accumulated x 1 process = 8 images a step" in out
    assert "held out" in out and "tokens" in out
    assert not Path("runs").exists()


def test_a_cut_caption_is_named_before_the_first_step(
    finetune: Finetune, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "long"
    shutil.copytree(tiny_data, folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows = [row | {"text": "fire"} for row in rows[:-1]] + [rows[-1] | {"text": "fire " * 76 + "water"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert finetune("--dry-run", data=folder) == 0
    cut = capsys.readouterr().out.partition("truncated  1:")[2]
    assert f"{rows[-1]['file_name']} ({folder}/metadata.jsonl:12): 77 tokens, lost: fire water" in cut
    with pytest.raises(InputError, match=r"caption truncated: .*77 tokens, lost: fire water.*--strict"):
        finetune("--strict", data=folder)


@pytest.mark.parametrize("preset", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_shipped_config_runs(finetune: Finetune, preset: str) -> None:
    assert finetune(preset=preset, steps=1, adapter=()) == 0


def test_wide_images_and_a_file_that_is_no_image(
    finetune: Finetune, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wide images get a bucket of their own; what cannot be used is left out and named, or refused with --strict."""
    from PIL import Image

    folder = tmp_path / "mixed"
    shutil.copytree(tiny_data, folder)
    rows = (folder / "metadata.jsonl").read_text()
    for index in range(3):
        Image.new("RGB", (96, 48), (40 * index, 90, 120)).save(folder / f"wide {index}.png")
        rows += json.dumps({"file_name": f"wide {index}.png", "text": "a flat colour"}) + "\n"
    (folder / "broken.png").write_bytes(b"no image at all")
    (folder / "metadata.jsonl").write_text(rows + json.dumps({"file_name": "broken.png", "text": "x"}) + "\n")
    assert finetune(data=folder, steps=2) == 0
    out = capsys.readouterr().out
    assert "skipped" in out and "broken.png" in out
    assert len(json.loads(Path("runs/0001-lora-r16/plan.json").read_text())["buckets"]) == 2
    with pytest.raises(InputError, match=r"broken\.png.*--strict"):
        finetune("--strict", data=folder)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--model", "nowhere"], "--model nowhere: no such file or folder"),
        (["--pictures.size", "33"], "--pictures.size: 33 pixels; allowed: a multiple of 8"),
        (["--pictures.caption", "a {colour}"], "unknown field 'colour'"),
        (["--adapter.targets", "to_x"], "--adapter.targets: no layer is called 'to_x'"),
        (["--objective.kind", "velocity"], "--objective.kind: the base model predicts 'epsilon'"),
        (["--learning-rate", "-1"], "--learning-rate: '-1' is not allowed; allowed: greater than 0"),
        (["--learning-rat", "1"], "--learning-rat: unknown flag, did you mean '--learning-rate'?"),
        (["--config", "none.yaml"], "no such preset"),
        (["--run-name", "../x"], "--run-name"),
    ],
)
def test_mistakes_are_one_clear_line(finetune: Finetune, flags: list[str], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        finetune(*flags)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(Path("runs").glob("*-*")), "a run folder was left behind"


def test_sd14_says_that_it_is_not_here(finetune: Finetune) -> None:
    with pytest.raises(
        InputError, match=r"Stable Diffusion v1.4 is not on this machine. Get it with: hf download Comp"
    ):
        finetune("--config", str(CONFIGS / "sd14-lora.yaml"), "--model", "CompVis/stable-diffusion-v1-4")


def test_two_trainers_cannot_share_a_run(finetune: Finetune, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "fit", lambda *_: False)
        assert finetune() == 130
    (run,) = all_runs(Path("runs"))
    with run.lock(), pytest.raises(InputError, match="another process is training this run"):
        finetune()


def command(*flags: str, launcher: bool = False) -> list[str]:
    bin_folder = Path(sys.executable).parent
    config = ["--quiet", "--config_file", str(ROOT / "accelerate_config.yaml")]
    start = [str(bin_folder / "accelerate"), "launch", *config] if launcher else [sys.executable]
    return [*start, str(ROOT / "train" / "finetune.py"), *flags]


def test_kill_9_loses_nothing(
    finetune: Finetune, tmp_path: Path, tiny_model: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As typed; killed in the middle; the same command ends in the weights of a run that was not."""
    flags = ["--model", str(tiny_model), "--data", str(tiny_data), *QUICK, *FEW, "--max-steps", "24"]
    process = subprocess.Popen(command(*flags), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    checkpoints = tmp_path / "runs" / "0001-lora-r16" / "checkpoints"
    deadline = time.monotonic() + 240
    while not list(checkpoints.glob("[0-9]*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert newest_finished(tmp_path / "runs") is None
    assert finetune(steps=24) == 0
    assert "resuming runs/0001-lora-r16 after step" in capsys.readouterr().out
    assert finetune("--new", steps=24) == 0
    resumed, whole = exported(Path("runs/0001-lora-r16")), exported(Path("runs/0002-lora-r16"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_ctrl_c_with_nobody_reading_saves_too(tmp_path: Path, tiny_model: Path, tiny_data: Path) -> None:
    """`finetune.py | tee log`: the terminal's Ctrl-C ends tee as well."""
    flags = ["--model", str(tiny_model), "--data", str(tiny_data), *QUICK, *FEW, "--max-steps", "2000"]
    process = subprocess.Popen(
        command(*flags), cwd=tmp_path, preexec_fn=usual_interrupt, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    folder = tmp_path / "runs" / "0001-lora-r16" / "checkpoints"
    deadline = time.monotonic() + 240
    while not list(folder.glob("[0-9]*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    assert process.stdout is not None
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    lines = (folder.parent / "metrics.jsonl").read_text().splitlines()
    assert checkpoint.list_checkpoints(folder)[-1].name == f"{json.loads(lines[-1])['step']:06d}"


def usual_interrupt() -> None:
    """A shell's background jobs, and tests among them, ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


MISTAKES = ("--learning-rate", "-1", "--adpter.rank", "4")
UNKNOWN = "error: --adpter.rank: unknown flag, did you mean '--adapter.rank'?"


def test_a_mistake_ends_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(command(*MISTAKES), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert UNKNOWN in done.stderr and "Traceback" not in done.stderr


def test_a_mistake_through_the_launcher_ends_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    """accelerate's command as typed, in this process, where its libraries are loaded already."""
    from accelerate.commands import launch

    _, _, *typed = command(*MISTAKES, launcher=True)
    with pytest.raises(SystemExit) as ended:
        launch.launch_command(launch.launch_command_parser().parse_args(typed))
    err = capfd.readouterr().err
    assert ended.value.code == 1
    assert UNKNOWN in err and "Traceback" not in err


def test_help_is_quick(tmp_path: Path) -> None:
    """CPU seconds, not wall: the machine may be busy."""
    script = (
        "import os, runpy, sys; sys.argv = ['finetune.py', '--help']\n"
        "try: runpy.run_path(r'%s', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules\n"
        "print('CPU', sum(os.times()[:2]))"
    ) % (ROOT / "train" / "finetune.py")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--learning-rate" in done.stdout
    assert float(done.stdout.rpartition("CPU ")[2]) < 1.5
