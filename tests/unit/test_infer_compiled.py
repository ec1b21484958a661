"""--compile draws the same pictures from graphs made beforehand, or says in a line why it does not."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import InputError
from infer import config, generation, lora_loading, metadata, pipeline, png_info
from infer.generation import GenerationJob
from tests.tiny import tiny_lora
from train.model import load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),  # inductor's imports
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
]
CPU = torch.device("cpu")


@pytest.fixture
def dynamo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
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


def stand_in(monkeypatch: pytest.MonkeyPatch, compiled_call: Callable[..., Any]) -> None:
    """In place of torch.compile: compiled_call(call, *inputs)."""
    monkeypatch.setattr(torch, "compile", lambda call, **how: partial(compiled_call, call))


def job_of(model: Path, *argv: object, device: torch.device = CPU) -> tuple[Any, GenerationJob]:
    options = config.read_options([str(word) for word in ("--model", model, "--steps", 3, "--compile", *argv)])
    dtype = pipeline.choose_dtype(options.dtype, device)
    loaded = load_model(str(model), dtype=dtype)
    job = generation.plan_job(options, loaded, device, options.loras)
    return pipeline.build_pipeline(loaded, None, device), job


def images(pipe: Any, job: GenerationJob, wear: Any = lambda worn: None) -> list[Any]:
    return [drawn.image for drawn in pipeline.generate_images(pipe, job.pictures, job.settings, wear=wear)]


def psnr(one: Any, two: Any) -> float:
    return png_info.psnr(np.asarray(one, dtype=float), np.asarray(two, dtype=float))


def test_pictures_are_the_same_and_nothing_is_compiled_once_they_are_begun(
    tiny_model: Path, tmp_path: Path, dynamo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with a LoRA, one without. Without the backend, which takes minutes (below)."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, mode, **how: plain(call, backend="eager", **how))
    lora = tiny_lora(tiny_model, tmp_path / "style.safetensors", strength=0.3)
    (tmp_path / "prompts.txt").write_text(f"a water <lora:{lora}:0.5>\na fire", encoding="utf-8")
    pipe, job = job_of(tiny_model, "--from-file", tmp_path / "prompts.txt", "--num-images", 2)
    files = list(dict.fromkeys(file for picture in job.pictures for file in picture.loras))
    lora_loading.load_loras(pipe, files)
    wear = partial(lora_loading.activate_loras, pipe, files)
    eager = images(pipe, job, wear=wear)
    line = generation.compile_unet(pipe, job, job.pictures, wear)
    graphs = dynamo["stats"]["unique_graphs"]
    assert graphs == 2
    assert line.startswith("compile: 2 graphs in ")
    again = images(pipe, job, wear=wear)
    assert dynamo["stats"]["unique_graphs"] == graphs
    assert [one.tobytes() for one in again] == [one.tobytes() for one in eager]
    assert len({picture.tobytes() for picture in again}) == 4


def test_every_shape_is_compiled_before_the_first_image(tiny_model: Path, tmp_path: Path) -> None:
    """Sizes, text lengths, guided steps and those without, and LoRAs each have a graph of their own."""
    lora = tiny_lora(tiny_model, tmp_path / "style.safetensors")
    lines = ["a fire", "a water", f"a <lora:{lora}:1>", "a --w 32", "a --l 1", "fire " * 90, "a fire --s 2"]
    (tmp_path / "prompts.txt").write_text("\n".join(lines), encoding="utf-8")
    pipe, job = job_of(tiny_model, "--from-file", tmp_path / "prompts.txt", "--guidance-stop", 0.5)
    shapes = [generation.shape_of(job, picture) for picture in job.pictures]
    assert shapes[0] == shapes[1] == shapes[6]
    assert len(set(shapes)) == 5
    guided, plain = generation.first_predictions(pipe, job, job.pictures[0], lambda worn: None)
    assert guided.shape == plain.shape == (1, 4, 16, 16)
    assert len(generation.first_predictions(pipe, job, job.pictures[4], lambda worn: None)) == 1, "guidance 1 is none"


def test_the_command_writes_it_down_and_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, lambda call, *inputs, **more: call(*inputs, **more))
    argv = ["--model", "pocket", "--steps", "2", "--prompt", "a fire", "--outdir"]
    assert generation.run_generation(config.read_options([*argv, str(tmp_path / "a"), "--compile"])) == 0
    assert "compile: 1 graphs in " in capsys.readouterr().out
    drawn = tmp_path / "a" / "00000-42.png"
    assert metadata.read_metadata(drawn).compiled
    assert (
        generation.run_generation(config.read_options(["--params-from", str(drawn), "--outdir", str(tmp_path / "b")]))
        == 0
    )
    said = capsys.readouterr().out
    assert "compile: 1 graphs" in said and "the same picture, bit for bit" in said
    assert generation.run_generation(config.read_options([*argv, str(tmp_path / "c")])) == 0
    assert not metadata.read_metadata(tmp_path / "c" / "00000-42.png").compiled


def test_a_folder_begun_without_it_is_not_gone_on_with(tiny_model: Path) -> None:
    (_, one), (_, other) = job_of(tiny_model), job_of(tiny_model, "--no-compile")
    model = load_model(str(tiny_model))
    assert one.compile and not other.compile
    assert one.identity(model) != other.identity(model)


def test_a_compiler_that_fails_or_computes_otherwise_is_one_line(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(call: Any, *inputs: Any, **more: Any) -> Any:
        raise RuntimeError("backend='inductor' raised:\nOSError: No space left on device")

    def strays(call: Any, *inputs: Any, **more: Any) -> Any:
        return tuple(1.01 * each for each in call(*inputs, **more))

    def breaks(call: Any, *inputs: Any, **more: Any) -> Any:
        return tuple(each * torch.nan for each in call(*inputs, **more))

    pipe, job = job_of(tiny_model)
    for broken, said in ((fails, "No space left on device"), (strays, "1.00%"), (breaks, "inf%")):
        stand_in(monkeypatch, broken)
        with pytest.raises(InputError) as caught:
            generation.compile_unet(pipe, job, job.pictures, lambda worn: None)
        assert caught.value.where == "--compile" and caught.value.fix
        assert said in caught.value.what and "\n" not in str(caught.value)
        pipe.unet._compiled_call_impl = None


@pytest.mark.slow
def test_a_second_compilation_is_cached(tiny_model: Path, dynamo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """With the C++. The second time everything comes out of the cache; the pictures' distance is printed."""
    pipe, job = job_of(tiny_model, "--prompt", "a fire")
    eager = images(pipe, job)
    print(generation.compile_unet(pipe, job, job.pictures, lambda worn: None))
    assert dynamo["inductor"]["fxgraph_cache_miss"] == 1
    drawn = images(pipe, job)
    torch.compiler.reset()
    dynamo.clear()
    again, job = job_of(tiny_model, "--prompt", "a fire")
    print(generation.compile_unet(again, job, job.pictures, lambda worn: None))
    assert dynamo["inductor"]["fxgraph_cache_miss"] == 0 and dynamo["inductor"]["fxgraph_cache_hit"] >= 1
    assert [one.tobytes() for one in images(again, job)] == [one.tobytes() for one in drawn]
    apart = psnr(eager[0], drawn[0])
    with capsys.disabled():
        print(f"compiled: {apart:.1f} dB from the picture as it is")
    assert apart > 50


@pytest.mark.gpu
def test_cuda_graphs_draw_the_same_pictures(tiny_model: Path, dynamo: Any) -> None:
    """Every call is the replay of a graph; PNDM, which keeps predictions across steps, sees each as it was."""
    device = torch.device("cuda")
    pipe, job = job_of(tiny_model, "--num-images", 8, "--guidance-stop", 0.5, device=device)
    eager = images(pipe, job)
    generation.compile_unet(pipe, job, job.pictures, lambda worn: None)
    again = images(pipe, job)
    assert dynamo["inductor"]["cudagraph_skips"] == 0
    assert dynamo["stats"]["unique_graphs"] == 2
    assert min(psnr(one, two) for one, two in zip(eager, again, strict=True)) > 35
    assert [one.tobytes() for one in images(pipe, job)] == [one.tobytes() for one in again]
