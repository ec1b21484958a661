"""--compile generates the same images from graphs made beforehand, or says why it does not."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infer import config, generation, lora_loading, metadata, pipeline, png_info
from infer.generation import GenerationJob
from tests.errors import error_of
from tests.tiny import tiny_lora
from train.model import load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),  # inductor's imports
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
]
CPU = torch.device("cpu")


@pytest.fixture
def dynamo() -> Iterator[Any]:
    """A fresh compiler, left as it was found. Compiling happens in this process: no workers stay behind."""
    import torch._dynamo
    import torch._inductor.config
    from torch._dynamo.utils import counters

    limits = torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit
    torch._dynamo.reset()
    counters.clear()
    with torch._inductor.config.patch(compile_threads=1):
        yield counters
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit = limits


def replace_compiler(monkeypatch: pytest.MonkeyPatch, compiled_call: Callable[..., Any]) -> None:
    """In place of torch.compile: compiled_call(call, *inputs)."""
    monkeypatch.setattr(torch, "compile", lambda call, **how: partial(compiled_call, call))


def job_of(model: Path, *argv: object, device: torch.device = CPU) -> tuple[Any, GenerationJob]:
    options = config.read_options([str(word) for word in ("--model", model, "--steps", 3, "--compile", *argv)])
    loaded = load_model(str(model), dtype=pipeline.choose_dtype(options.dtype, device))
    job = generation.plan_job(options, loaded, device, options.loras)
    return pipeline.build_pipeline(loaded, None, device), job


def images(pipe: Any, job: GenerationJob, activate: Any = lambda loras: None) -> list[Any]:
    generated = pipeline.generate_images(pipe, job.requests, job.settings, activate=activate)
    return [each.image for each in generated]


def psnr(one: Any, two: Any) -> float:
    return png_info.psnr(np.asarray(one, dtype=float), np.asarray(two, dtype=float))


def test_every_shape_is_compiled_before_the_first_image_and_images_are_the_same(
    tiny_model: Path, tmp_path: Path, dynamo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes, guided and unguided steps, and LoRAs have graphs of their own. Without the slow backend."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, mode, **how: plain(call, backend="eager", **how))
    lora = tiny_lora(tiny_model, tmp_path / "style.safetensors", strength=0.3)
    lines = [f"a <lora:{lora}:0.5> --w 32 --h 32", "a --l 1", "b --l 1"]
    (tmp_path / "prompts.txt").write_text("\n".join(lines), encoding="utf-8")
    pipe, job = job_of(tiny_model, "--from-file", tmp_path / "prompts.txt", "--guidance-stop", 0.5)
    files = list(dict.fromkeys(file for request in job.requests for file in request.loras))
    lora_loading.load_loras(pipe, files)
    activate = partial(lora_loading.activate_loras, pipe, files)
    eager = images(pipe, job, activate)
    assert "2 shapes" in generation.compile_unet(pipe, job, job.requests, activate)
    graphs = dynamo["stats"]["unique_graphs"]
    again = images(pipe, job, activate)
    assert dynamo["stats"]["unique_graphs"] == graphs
    assert [one.tobytes() for one in again] == [one.tobytes() for one in eager]


def test_it_is_recorded_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_compiler(monkeypatch, lambda call, *inputs, **more: call(*inputs, **more))

    def run(name: str, *argv: object) -> Path:
        options = config.read_options([*map(str, argv), "--outdir", str(tmp_path / name)])
        assert generation.run_generation(options) == 0
        return tmp_path / name / "00000-42.png"

    argv = ["--model", "pocket", "--steps", 2, "--prompt", "a fire"]
    image = run("a", *argv, "--compile")
    assert metadata.read_metadata(image).compiled
    capsys.readouterr()
    run("b", "--params-from", image)
    output = capsys.readouterr().out
    assert "compile: " in output and "bit for bit" in output
    assert not metadata.read_metadata(run("c", *argv)).compiled


def test_a_folder_begun_without_it_is_not_resumed(tiny_model: Path) -> None:
    (_, one), (_, other) = job_of(tiny_model), job_of(tiny_model, "--no-compile")
    model = load_model(str(tiny_model))
    assert one.options.compile and not other.options.compile
    assert one.identity(model, False) != other.identity(model, False)


def fails(call: Any, *inputs: Any, **more: Any) -> Any:
    raise RuntimeError("backend='inductor' raised:\nOSError: No space left on device")


def computes_otherwise(call: Any, *inputs: Any, **more: Any) -> Any:
    return tuple(1.01 * each for each in call(*inputs, **more))


def computes_nan(call: Any, *inputs: Any, **more: Any) -> Any:
    return tuple(each * torch.nan for each in call(*inputs, **more))


@pytest.mark.parametrize(
    ("compiled", "words"), [(fails, "No space left on device"), (computes_otherwise, "%"), (computes_nan, "inf%")]
)
def test_a_compiler_that_fails_or_computes_otherwise(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, compiled: Callable[..., Any], words: str
) -> None:
    pipe, job = job_of(tiny_model)
    replace_compiler(monkeypatch, compiled)
    error = error_of(generation.compile_unet, pipe, job, job.requests, lambda loras: None)
    assert error.where == "--compile" and error.fix
    assert words in error.what and "\n" not in str(error)


@pytest.mark.slow
def test_inductor_generates_the_same_image(tiny_model: Path, dynamo: Any) -> None:
    pipe, job = job_of(tiny_model, "--prompt", "a fire")
    eager = images(pipe, job)
    generation.compile_unet(pipe, job, job.requests, lambda loras: None)
    assert psnr(eager[0], images(pipe, job)[0]) > 50


@pytest.mark.gpu
def test_cuda_graphs_generate_the_same_images(tiny_model: Path, dynamo: Any) -> None:
    """Every call is the replay of a graph; PNDM, which keeps predictions across steps, sees each as it was."""
    pipe, job = job_of(tiny_model, "--num-images", 8, "--guidance-stop", 0.5, device=torch.device("cuda"))
    eager = images(pipe, job)
    generation.compile_unet(pipe, job, job.requests, lambda loras: None)
    again = images(pipe, job)
    assert dynamo["inductor"]["cudagraph_skips"] == 0
    assert dynamo["stats"]["unique_graphs"] == 2
    assert min(psnr(one, two) for one, two in zip(eager, again, strict=True)) > 35
    assert [one.tobytes() for one in images(pipe, job)] == [one.tobytes() for one in again]
