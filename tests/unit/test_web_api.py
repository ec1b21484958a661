"""A1111's API with a tiny model: the same images as generate.py, within limits."""

import base64
import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image, PngImagePlugin

from data.errors import InputError
from infer import generation, metadata, pipeline
from infer.config import GenerateOptions, StudioOptions
from infer.web import app, worker
from infer.web.components import from_settings, to_request
from infer.web.gallery import Gallery
from infer.web.page import parse_seed
from infer.web.service import Backend, StudioService
from infer.web.worker import Worker
from tests.tiny import tiny_lora
from train import model

STEPS = 3


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder to work in, with two LoRAs."""
    found = tmp_path_factory.mktemp("studio")
    (found / "loras").mkdir()
    for number, name in enumerate(("ink", "clay")):
        tiny_lora(tiny_model, found / "loras" / f"{name}.safetensors", seed=number)
    return found


@pytest.fixture(scope="module")
def service(home: Path, tiny_model: Path) -> Iterator[StudioService]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        yield StudioService(
            StudioOptions(model=str(tiny_model)),
            lambda options, models: Backend(Worker(options, models), Gallery(options.judge, models)),
        )


@pytest.fixture(scope="module")
def client(service: StudioService) -> Iterator[TestClient]:
    with TestClient(app.build(service)) as found:
        yield found


def drawn(client: TestClient, **asked: Any) -> tuple[list[bytes], dict[str, Any]]:
    """The pictures and the account of a job."""
    given = {"prompt": "a fire type cat", "steps": STEPS, "seed": 7, "cfg_scale": 7.0} | asked
    found = client.post("/sdapi/v1/txt2img", json=given)
    assert found.status_code == 200, found.text
    answer = found.json()
    assert answer["parameters"]["prompt"] == given["prompt"]
    return [base64.b64decode(each) for each in answer["images"]], json.loads(answer["info"])


def by_generate(home: Path, model: Path, **options: Any) -> dict[str, bytes]:
    """The files that generate.py writes, by their way from its folder."""
    folder = home / f"by-generate-{len(list(home.iterdir()))}"
    asked = {"prompt": ("a fire type cat",), "steps": STEPS, "seed": 7, "guidance_scale": 7.0} | options
    assert generation.run_generation(GenerateOptions(model=str(model), outdir=folder, **asked)) == 0
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("0*.png"))}


def test_the_files_are_generates_byte_for_byte(client: TestClient, home: Path, tiny_model: Path) -> None:
    pictures, info = drawn(client, n_iter=2, batch_size=2, sampler_name="Euler a", negative_prompt="blurry")
    theirs = by_generate(home, tiny_model, num_images=4, scheduler="euler_a", negative_prompt="blurry")
    assert pictures == list(theirs.values())
    assert info["all_seeds"] == [7, 8, 9, 10] and info["sampler_name"] == "Euler a"
    assert [Path(file).read_bytes() for file in info["files"]] == pictures
    assert {Path(file).parts[0] for file in info["files"]} == {"outputs"}
    assert info["infotexts"][1].startswith("a fire type cat\nNegative prompt: blurry\nSteps: 3, Sampler: Euler a")


def test_styles_schedules_and_sizes(client: TestClient, home: Path, tiny_model: Path) -> None:
    asked = {"styles": ["origami"], "sampler_name": "DPM++ 2M", "scheduler": "karras", "width": 96, "height": 64}
    pictures, info = drawn(client, **asked)
    options = {"style": "origami", "scheduler": "dpmpp_2m_karras", "width": 96, "height": 64}
    assert pictures == list(by_generate(home, tiny_model, **options).values())
    assert (info["width"], info["height"], info["styles"]) == (96, 64, ["origami"])


def test_a_lora_is_taken_off_again(client: TestClient, home: Path, tiny_model: Path) -> None:
    before, _ = drawn(client)
    ink, _ = drawn(client, prompt="a fire type cat <lora:ink:0.5>")
    clay, _ = drawn(client, prompt="a fire type cat <lora:clay:0.5>")
    after, _ = drawn(client)
    assert len({before[0], ink[0], clay[0]}) == 3
    assert before == after
    lora = (f"{home / 'loras' / 'clay.safetensors'}:0.5",)
    assert clay == list(by_generate(home, tiny_model, lora=lora).values())


@pytest.mark.usefixtures("client")
def test_base_and_tuned_are_generates_as_well(service: StudioService, home: Path, tiny_model: Path) -> None:
    wanted = {"prompt": "a fire type cat", "steps": STEPS, "seed": 7, "guidance_scale": 7.0, "compare_base": True}
    job = service.submit({**wanted, "loras": {"ink": 0.5}})
    assert job.finished.wait(60) and job.state == "done", job.error
    theirs = by_generate(home, tiny_model, lora=(f"{home / 'loras' / 'ink.safetensors'}:0.5",), compare_base=True)
    assert {image.is_base: image.path.read_bytes() for image in job.images} == {
        False: theirs["00000-7.png"],
        True: theirs["base/00000-7.png"],
    }
    assert job.images[0].path.parent.joinpath("compare.png").is_file()


def test_a_random_seed_is_told(client: TestClient) -> None:
    pictures, info = drawn(client, seed=-1)
    again, _ = drawn(client, seed=info["seed"])
    assert pictures == again and info["seed"] >= 0


def test_what_a_picture_tells(client: TestClient) -> None:
    pictures, info = drawn(client)
    coded = base64.b64encode(pictures[0]).decode()
    for path in ("/sdapi/v1/png-info", "/png-info"):
        for image in (coded, f"data:image/png;base64,{coded}"):
            found = client.post(path, json={"image": image}).json()
            assert found["info"] == info["infotexts"][0]
            assert found["parameters"]["Seed"] == "7" and metadata.KEY in found["items"]
    huge = [coded_bytes(declaring(*size)) for size in ((8_000, 11_000), (20_000, 20_000))]
    for wrong in ("!!!", "", coded_bytes(b"no image"), *huge):
        assert client.post("/png-info", json={"image": wrong}).status_code == 422


def coded_bytes(content: bytes) -> str:
    return base64.b64encode(content).decode()


def declaring(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is so large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    parts = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("body", ['{"prompt": "a", "cfg_scale": NaN}', '{"prompt": 3, "x": "\\ud800"}', "no json"])
def test_a_body_that_cannot_be_repeated_is_refused_in_words(client: TestClient, body: str) -> None:
    found = client.post("/sdapi/v1/txt2img", content=body, headers={"content-type": "application/json"})
    assert found.status_code == 422 and "body" in found.json()["detail"]


def test_what_there_is(client: TestClient, tiny_model: Path) -> None:
    samplers = {each["name"] for each in client.get("/sdapi/v1/samplers").json()}
    assert {"Euler a", "DPM++ 2M", "DDIM"} <= samplers
    titles = [each["title"] for each in client.get("/sdapi/v1/sd-models").json()]
    assert titles[0] == tiny_model.name and "pocket" in titles
    assert [each["name"] for each in client.get("/sdapi/v1/loras").json()] == ["clay", "ink"]
    assert "origami" in {each["name"] for each in client.get("/sdapi/v1/prompt-styles").json()}
    assert {"label": "Karras", "name": "karras", "aliases": None} in client.get("/sdapi/v1/schedulers").json()


def test_switching_the_model(client: TestClient, service: StudioService, tiny_model: Path) -> None:
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == tiny_model.name
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "pocket", "eta_noise": 3}).status_code == 200
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "pocket"
    refused = client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "pokket"})
    assert refused.status_code == 422 and "did you mean 'pocket'" in refused.json()["detail"]
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": tiny_model.name}).status_code == 200
    assert service.default_model == tiny_model.name


def test_progress_and_interrupt(client: TestClient, service: StudioService) -> None:
    idle = client.get("/sdapi/v1/progress").json()
    assert (idle["progress"], idle["current_image"], idle["state"]["job_count"]) == (0.0, None, 0)
    job = service.submit({"prompt": "a long job", "steps": 150, "num_images": 8})
    until = time.monotonic() + 60
    while not job.previews and time.monotonic() < until:
        time.sleep(0.005)
    busy = client.get("/sdapi/v1/progress").json()
    assert 0 < busy["progress"] < 1 and busy["state"]["sampling_steps"] == 150 and busy["eta_relative"] > 0
    assert base64.b64decode(busy["current_image"]).startswith(b"\x89PNG")
    assert client.get("/sdapi/v1/progress?skip_current_image=true").json()["current_image"] is None
    assert client.post("/sdapi/v1/interrupt").status_code == 200
    assert job.finished.wait(60) and job.state == "stopped"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"prompt": " "}, "prompt"), ({"steps": 151}, "less than or equal to 150"),
        ({"steps": "many"}, "valid integer"), ({"batch_size": 8, "n_iter": 8}, "more than 16 images"),
        ({"cfg_scale": "nan"}, "finite"),
        ({"seed": 2**63}, "less than or equal"), ({"width": 4096, "height": 4096}, "4096 x 4096 is more than 4 times"),
        ({"width": 63, "height": 64}, "63 is not a multiple of"), ({"enable_hr": True}, "upscaling"),
        ({"script_name": "x"}, "scripts"), ({"styles": ["origammi"]}, "did you mean 'origami'"),
        ({"sampler_name": "Eulerr"}, "unknown sampler 'Eulerr'"),
        ({"override_settings": {"sd_model_checkpoint": "/etc/passwd"}}, "unknown model '/etc/passwd'"),
        ({"prompt": "x <lora:/etc/passwd:1>"}, "without its folder"),
        ({"prompt": "x <lora:../secret:1>"}, "without its folder"),
        ({"prompt": "x <lora:nothing:1>"}, "there is no LoRA 'nothing'"),
        ({"prompt": "__../../etc/passwd__"}, "there is no wildcard"),
        ({"prompt": "x" * 5000}, "at most 4000 characters"),
        ({"prompt": "{e$$a|b|c|d|e} {e$$a|b|c|d|e}"}, "25 images; allowed: 16"),
    ],
)  # fmt: skip
def test_what_is_refused(client: TestClient, home: Path, asked: dict[str, Any], told: str) -> None:
    folders = set(home.glob("outputs/*"))
    found = client.post("/sdapi/v1/txt2img", json={"prompt": "a cat", "steps": 1} | asked)
    assert found.status_code == (404 if "sampler_name" in asked else 422)
    assert told in json.dumps(found.json(), ensure_ascii=False)
    assert set(home.glob("outputs/*")) == folders


@pytest.mark.usefixtures("client")
def test_nothing_stays_of_an_order_that_was_not_begun(service: StudioService, home: Path) -> None:
    folders = set(home.glob("outputs/*"))
    Image.new("RGB", (64, 64), "white").save(home / "white.png")
    weak = {"prompt": "a cat", "steps": 3, "scribble": home / "white.png", "strength": 0.2}
    job = service.submit(weak)
    assert job.finished.wait(60) and job.state == "failed", job.error
    many = service.submit({"prompt": "a {e$$a|b|c|d|e|f|g|h|i|j} " * 4, "steps": 1, "num_images": 16})
    begun = time.monotonic()
    assert many.finished.wait(60) and "160000 images" in many.error
    assert time.monotonic() - begun < 5, "refused before so many are prepared"
    assert set(home.glob("outputs/*")) == folders


def test_what_only_a1111_needs_is_let_be(client: TestClient) -> None:
    harmless = {"restore_faces": False, "tiling": False, "enable_hr": False, "alwayson_scripts": {}, "script_args": [],
                "save_images": True, "eta": None, "override_settings": {"CLIP_stop_at_last_layers": 1}}  # fmt: skip
    pictures, _ = drawn(client, **harmless)
    assert len(pictures) == 1
    assert drawn(client, send_images=False)[0] == []


def test_no_path_leaves_the_output_folder(client: TestClient, home: Path) -> None:
    _, info = drawn(client)
    name = Path(info["files"][0]).relative_to("outputs").as_posix()
    assert client.get(f"/pictures/{name}").content.startswith(b"\x89PNG")
    Image.new("RGB", (8, 8)).save(home / "secret.png")
    (home / "outputs" / ".scribbles").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(home / "outputs" / ".scribbles" / "x.png")
    (home / "outputs" / "link.png").symlink_to(home / "secret.png")
    (home / "outputs" / "away").symlink_to(home)
    folder = name.split("/")[0]
    for path in ("..%2fsecret.png", "%2e%2e/secret.png", f"{folder}/..%2f..%2fsecret.png", str(home / "secret.png"),
                 "link.png", "away/secret.png", ".scribbles/x.png", f"{folder}/run.jsonl", folder, ""):  # fmt: skip
        assert client.get(f"/pictures/{path}").status_code in (404, 422), path


# ---- the settings of a picture, once more


def image_settings(service: StudioService, name: str) -> dict[str, Any]:
    return service.backend().gallery.settings(service.image_path(name))


def again(service: StudioService, name: str) -> Path:
    """The picture that the page draws with the settings of another in its fields."""
    found = {"scribble": "", **from_settings(image_settings(service, name))}
    fields = {field: "" if isinstance(value, dict) else value for field, value in found.items()}  # dict: as it was
    job = service.submit(to_request(fields) | {"seed": parse_seed(fields)})
    assert job.finished.wait(60) and job.state == "done", job.error
    return job.images[0].path


def pixels(path: Path) -> tuple[tuple[int, int], bytes]:
    with Image.open(path) as picture:
        return picture.size, picture.tobytes()


@pytest.mark.parametrize(
    "asked",
    [
        {"negative_prompt": "blurry", "steps": 4},
        {
            "prompt": "a {red|blue} cat <lora:ink:0.5> <lora:clay:-0.3>",
            "styles": ["origami"],
            "sampler_name": "Euler a",
        },
        {"width": 96, "height": 32, "cfg_scale": 1.5},
    ],
)
def test_settings_of_a_picture_draw_it_again(client: TestClient, service: StudioService, asked: dict[str, Any]) -> None:
    _, info = drawn(client, **asked)
    was = Path(info["files"][0])
    assert pixels(again(service, was.relative_to("outputs").as_posix())) == pixels(was)


@pytest.mark.usefixtures("client")
def test_settings_of_other_programs_and_what_cannot_be_repeated(service: StudioService, home: Path) -> None:
    (home / "outputs").mkdir(exist_ok=True)
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a (red) cat\nSteps: 5, Sampler: Euler a, CFG scale: 6.5, Seed: 9, Size: 64x64")
    Image.new("RGB", (64, 64)).save(home / "outputs" / "theirs.png", pnginfo=info)
    recipe = metadata.read_metadata(again(service, "theirs.png"))
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.guidance_scale) == ("a (red) cat", 9, 5, 6.5)
    Image.new("RGB", (64, 64)).save(home / "outputs" / "silent.png")
    with pytest.raises(InputError, match="no generation settings"):
        image_settings(service, "silent.png")
    changes: dict[str, dict[str, Any]] = {
        "it was made with 'gone', which is not here": {"model": {"name": "gone", "fingerprint": ""}},
        "200 is too much": {"steps": 200},
        "it was made from a scribble": {"inputs": ({"role": "init", "name": "x", "sha256": ""},)},
    }
    for told, change in changes.items():
        other = metadata.ImageMetadata.model_validate({**recipe.model_dump(), **change})
        metadata.write_png(home / "outputs" / "other.png", Image.new("RGB", (64, 64)), other)
        with pytest.raises(InputError, match=told):
            image_settings(service, "other.png")


def test_the_linear_guess_shows_a_picture(tiny_model: Path) -> None:
    """Of the size of the latents, and near the mean colours of what was encoded."""
    pipe = pipeline.build_pipeline(model.load_model(str(tiny_model)), None, torch.device("cpu"))
    assert isinstance(worker.choose_preview(pipe, 64), worker.DecodedPreview)
    guess = worker.LinearPreview(pipe, 32)
    assert guess(torch.zeros(1, 4, 16, 24)).size == (24, 16)
    latents, colours = worker.fit_samples(pipe, 32)
    spread = colours - colours.mean(0)
    error = worker.with_ones(latents) @ guess.map - colours
    assert error.square().mean() < spread.square().mean()
