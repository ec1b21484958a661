"""What a run will take: time, disk space, free memory, buckets and folders, and the lines about them; the probe."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from data.buckets import Bucket
from data.dataset import BatchLayout, StepSampler
from data.schema import Annotation, Sample
from tests.tiny import tiny_unet
from train import adapters, estimate, optim
from train.config import Config, LoraOptions
from train.estimate import RunEstimate, count_due
from train.plan import bucket_uses, disk_lines, folder_uses, format_bytes, format_flops, format_seconds, memory_lines
from train.plan import use_lines as lines_of_use
from train.profiler import UnetInput
from train.run_folder import Run
from train.training_set import FolderShare, TrainingSet

GIB = 2**30
NOTHING: Any = None


@pytest.mark.parametrize("stop", [1, 7, 10, 20])
@pytest.mark.parametrize("every", [1, 3, 10, 50])
def test_how_often_something_is_due(stop: int, every: int) -> None:
    for done in range(stop + 1):
        due = [step for step in range(done + 1, stop + 1) if step % every == 0 or step == stop]
        assert count_due(done, stop, every) == len(due)


def test_numbers_as_text() -> None:
    memory = {"parts": {"weights": GIB}, "phases": {"training": GIB}, "free": GIB}
    assert len(memory_lines(memory, {"needed": GIB, "free": GIB, "helps": []})) == 2
    helps = ["--batch-size 1", "--optim.kind adamw-8bit"]
    line = memory_lines(memory, {"needed": 2 * GIB, "free": GIB, "helps": helps})[-1]
    assert line.startswith("warning") and "2.00 GiB" in line and "1.00 GiB" in line
    assert line.endswith("would fit with --batch-size 1 or with --optim.kind adamw-8bit")
    assert [format_seconds(s) for s in (3, 89, 91, 7200)] == ["3 s", "89 s", "1.5 min", "2.0 h"]
    assert [format_bytes(b) for b in (2**20, GIB)] == ["1.0 MiB", "1.00 GiB"]
    assert [format_flops(c) for c in (1.62e9, 2.407e12)] == ["1.62 G", "2.41 T"]


@pytest.mark.parametrize(("free", "spare", "helps"), [(3, 1, "--checkpoints.keep 1, or with "), (3, 0, ""), (2, 1, "")])
def test_a_disk_that_is_too_small_gives_a_warning(free: int, spare: int, helps: str) -> None:
    disk = {"checkpoint": GIB, "kept": 2, "export": GIB // 2, "total": int(3.5 * GIB), "free": 4 * GIB, "spare": spare}
    assert len(disk_lines(disk)) == 1
    line = disk_lines(disk | {"free": free * GIB})[-1]
    assert line.startswith("warning") and "3.50 GiB" in line and f"{free}.00 GiB" in line
    assert line.endswith(f"would fit with {helps}--runs on a larger one")


@pytest.mark.parametrize("earlier", [False, True])
def test_disk_space_is_that_of_the_place_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    """A run's own files are its own room; a folder that is not there yet is made on the disk of the one above it."""
    run = tmp_path / "runs" / "0001"
    if earlier:
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "weights").write_bytes(bytes(100))
    asked: list[Path] = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(free=1000)

    monkeypatch.setattr("shutil.disk_usage", usage)
    config = Config.model_validate({"runs": tmp_path / "runs" / "of" / "mine", "checkpoints": {"keep": 3}})
    planned = RunEstimate(config, NOTHING, NOTHING, NOTHING, NOTHING, earlier=Run(run) if earlier else None)
    vars(planned)["shapes"] = [torch.Size((10,))]
    monkeypatch.setattr(RunEstimate, "export_bytes", lambda self: 7)
    disk = planned.disk()
    assert (disk["free"], asked) == (1100 if earlier else 1000, [run if earlier else tmp_path])
    assert (disk["checkpoint"], disk["kept"], disk["total"]) == (120, 4, 5 * 120 + 7), "the best and one being written"


def test_a_resumed_run_tells_its_speed_from_its_own_steps(tmp_path: Path) -> None:
    """No probe: the earlier session's images a second, if it ran on such a device."""
    (tmp_path / "plan.json").write_text(json.dumps({"device": "CPU"}))
    lines = [{"step": step, "images_per_second": speed} for step, speed in ((1, None), (2, 4.0), (3, 8.0), (4, 9.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 5}]))
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), num_processes=1, process_index=0)
    plain = RunEstimate(Config(batch_size=16), accelerator, NOTHING, NOTHING, NOTHING)
    assert replace(plain, earlier=Run(tmp_path)).timing == (2.0, "as in the steps before")
    (tmp_path / "plan.json").write_text(json.dumps({"device": "NVIDIA A10"}))
    assert replace(plain, earlier=Run(tmp_path)).seconds_before() is None
    assert plain.seconds_before() is None


# ---- the probe


def tiny_lora() -> Any:
    unet: Any = tiny_unet(16)
    adapters.inject(unet, LoraOptions(rank=2), 0)
    return unet.train()


def test_the_probe_changes_no_weight_gradient_generator_or_optimiser_state() -> None:
    unet = tiny_lora()
    optimizer = optim.build_optimizer([weight for weight in unet.parameters() if weight.requires_grad], Config().optim)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    generator = torch.get_rng_state()
    micro, update, steps = estimate.probe_steps(unet, UnetInput(2, 16, 16), Accelerator(cpu=True), Config())
    assert steps == estimate.PROBE_STEPS and micro > 0 and update > 0
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())
    assert all(weight.grad is None for weight in unet.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not optimizer.state and unet.training


def test_a_long_step_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(clock))
    assert estimate.timed(lambda: None, torch.device("cpu")) == [20.0]


def test_gradients_are_cleared_even_if_the_probe_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = tiny_lora()

    def broken(*_: Any) -> torch.optim.Optimizer:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(optim, "build_optimizer", broken)
    with pytest.raises(torch.OutOfMemoryError):
        estimate.probe_steps(unet, UnetInput(1, 8, 8), Accelerator(cpu=True), Config())
    assert all(weight.grad is None for weight in unet.parameters())


# ---- what the plan says of buckets and folders is what the sampler does


def sample(name: str, width: int, height: int) -> Sample:
    return Sample(Path(name), Annotation(file_name=name), "", name, width, height)


@pytest.fixture
def dataset() -> TrainingSet:
    square = [sample(f"square {i}", 64, 64) for i in range(9)] + [sample("small", 32, 48)]
    wide = [sample("wide", 192, 64), sample("heavy", 128, 64)]
    names = [item.annotation.file_name for item in (*square, *wide)]
    empty: dict[str, Any] = {key: [] for key in ("left_out", "warnings", "captions_cut", "held_out")}
    return TrainingSet(
        found=12,
        train=[*square, *wide],
        buckets={Bucket(64, 64): square, Bucket(96, 48): wide},
        square=Bucket(64, 64),
        prompts={name: ["a"] for name in names},
        weights={name: 9.0 if name == "heavy" else 1.0 for name in names},
        shares=[FolderShare("cats", 1, 11, 1), FolderShare("dogs", 9, 1, 0)],
        **{"near_duplicates": 0, "tokens": "", "fingerprint": "", **empty},
    )


def test_buckets(dataset: TrainingSet) -> None:
    uses = bucket_uses(dataset, global_batch=4, steps=40)
    square, wide = uses["64x64"], uses["96x48"]
    assert (square["pictures"], square["enlarged"], square["batches"]) == (10, 1, 2.5)
    assert square["mean_cropped"] == pytest.approx((1 / 3) / 10) and square["worst_cropped"] == pytest.approx(1 / 3)
    assert (wide["pictures"], wide["enlarged"], wide["batches"]) == (2, 0, 0.5)
    assert wide["mean_cropped"] == pytest.approx((1 - 2 / 3) / 2)
    weights = [[dataset.weights[s.annotation.file_name] for s in held] for held in dataset.buckets.values()]
    sampler = StepSampler([10, 2], BatchLayout(4), seed=0, start=0, stop=40, weights=weights)
    turns = Counter(batch[0].bucket for batch in sampler)
    assert [turns[0], turns[1]] == [square["steps"], wide["steps"]] == [20, 20]


def test_folders_are_seen_as_often_as_their_weights_say(dataset: TrainingSet) -> None:
    cats, dogs = folder_uses(dataset.shares, global_batch=4, steps=40)
    assert cats["times"] == pytest.approx(8.0) and dogs["times"] == pytest.approx(72.0)
    assert cats["times"] * 11 + dogs["times"] * 1 == pytest.approx(160)
    assert folder_uses(dataset.shares[:1], 4, 40) == []
    lines = lines_of_use(bucket_uses(dataset, 4, 40), folder_uses(dataset.shares, 4, 40), global_batch=4)
    heads = ["folder     cats", "folder     dogs", "bucket     64x64", "bucket     96x48"]
    assert [line.split(":")[0] for line in lines[:4]] == heads
    assert lines[4].startswith("warning") and lines[4].endswith("96x48 (2)")
    assert not any(line.startswith("warning") for line in lines_of_use(bucket_uses(dataset, 2, 40), [], global_batch=2))
