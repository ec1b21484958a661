"""LoRAs: loaded as diffusers loads them, measured against a closed form, and refused when they would do nothing."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.errors import InputError
from infer import lora_loading, pipeline
from infer.config import LoraFile
from infer.pipeline import SamplingSettings
from infer.prompts import ImageRequest
from infer.text_encoding import PromptEncoder
from tests.tiny import tiny_lora, tiny_pipeline
from train.model import load_model

SETTINGS = SamplingSettings(steps=2, guidance_scale=7.5, width=64, height=64)
CPU = torch.device("cpu")


def build(model: Path) -> StableDiffusionPipeline:
    return pipeline.build_pipeline(load_model(str(model)), None, CPU)


def latents(pipe: StableDiffusionPipeline) -> Tensor:
    states = PromptEncoder(pipe).pair(["a water type fridge"], "")
    return pipeline.sample_micro_batch(
        pipe, [ImageRequest(0, "a water type fridge", 1)], SETTINGS, states, lambda *_: None
    )


@pytest.fixture(scope="module")
def lora(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lora(tiny_model, tmp_path_factory.mktemp("lora") / "style.safetensors")


def change_of(state: dict[str, Tensor], scaling: float) -> float:
    """|| scaling B A || over all layers, straight from the file."""
    pairs = [(tensor, state[key.replace("lora_A", "lora_B")]) for key, tensor in state.items() if "lora_A" in key]
    return scaling * sum(((b @ a).square().sum().item()) for a, b in pairs) ** 0.5


def test_it_draws_what_diffusers_draws_with_the_same_file(tiny_model: Path, lora: Path) -> None:
    pipe, plain = build(tiny_model), build(tiny_model)
    base = latents(plain)
    (effect,) = lora_loading.load_loras(pipe, [LoraFile(lora, 0.5)])
    plain.load_lora_weights(str(lora), adapter_name="style")
    plain.set_adapters(["style"], [0.5])
    assert torch.equal(latents(pipe), latents(plain))
    assert (latents(pipe) - base).abs().max() > 1e-2
    assert (effect.matched, effect.layers, effect.unused) == (64, 32, ())


def test_the_change_is_measured_exactly(tiny_model: Path, lora: Path) -> None:
    pipe = build(tiny_model)
    weights = lora_loading.layer_sizes(pipe)
    state = load_file(lora)
    touched = {lora_loading.layer_of(key) for key in state}
    norm = sum(pipe.unet.get_parameter(f"{layer[5:]}.weight").square().sum().item() for layer in touched) ** 0.5
    (effect,) = lora_loading.load_loras(pipe, [LoraFile(lora, 0.25)])
    assert touched < set(weights)
    assert effect.change == pytest.approx(change_of(state, scaling=2.0 * 0.25), rel=1e-5)  # alpha / rank is 2
    assert effect.share == pytest.approx(effect.change / norm, rel=1e-5)


def test_several_add_up_at_their_weights(tiny_model: Path, lora: Path, tmp_path: Path) -> None:
    other = tiny_lora(tiny_model, tmp_path / "other.safetensors", seed=1)
    pipe = build(tiny_model)
    lora_loading.load_loras(pipe, [LoraFile(lora, 0.5), LoraFile(other, -2.0)])
    layer = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    wanted = torch.zeros(layer.weight.shape)
    for file, weight in ((lora, 0.5), (other, -2.0)):
        state = load_file(file)
        wanted += weight * 2 * state[f"{key}.lora_B.weight"] @ state[f"{key}.lora_A.weight"]
    x = torch.randn(3, layer.weight.shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.allclose(layer(x) - layer.base_layer(x), x @ wanted.T, atol=1e-5)


def test_kohyas_names_mean_the_same(tiny_model: Path, lora: Path, tmp_path: Path) -> None:
    kohya: dict[str, Tensor] = {}
    for key, tensor in load_file(lora).items():
        layer = lora_loading.layer_of(key).removeprefix("unet.").replace(".", "_")
        end = "lora_down" if "lora_A" in key else "lora_up"
        kohya[f"lora_unet_{layer}.{end}.weight"] = tensor
        kohya[f"lora_unet_{layer}.alpha"] = torch.tensor(8.0)  # rank 4: scaling 2, as in the diffusers file
    save_file(kohya, tmp_path / "kohya.safetensors")
    ours, theirs = build(tiny_model), build(tiny_model)
    lora_loading.load_loras(ours, [LoraFile(lora)])
    (effect,) = lora_loading.load_loras(theirs, [LoraFile(tmp_path / "kohya.safetensors")])
    assert effect.unused == ()
    assert torch.equal(latents(ours), latents(theirs))


def test_a_lora_of_the_text_encoder_is_applied_too(tiny_model: Path, tmp_path: Path) -> None:
    made = build(tiny_model)
    made.text_encoder.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"]))
    draw = torch.Generator().manual_seed(0)
    state = {
        f"text_encoder.{name.replace('.default', '')}": torch.randn(weight.shape, generator=draw)
        for name, weight in made.text_encoder.named_parameters()
        if "lora_" in name
    }
    save_file(state, tmp_path / "words.safetensors")
    pipe = build(tiny_model)
    before = pipeline.PromptEncoder(pipe)(["a fire"])
    (effect,) = lora_loading.load_loras(pipe, [LoraFile(tmp_path / "words.safetensors")])
    assert (effect.matched, effect.unused) == (len(state), ())
    assert not torch.allclose(pipeline.PromptEncoder(pipe)(["a fire"]), before)


def test_keys_that_find_no_layer_are_named_and_strict_refuses_them(
    tiny_model: Path, lora: Path, tmp_path: Path
) -> None:
    state = load_file(lora)
    strange = {f"unet.attic.{n}.to_q.lora_A.weight": torch.ones(4, 32) for n in range(7)}
    save_file(state | strange, tmp_path / "more.safetensors")
    (effect,) = lora_loading.load_loras(build(tiny_model), [LoraFile(tmp_path / "more.safetensors")])
    assert set(effect.unused) == set(strange)
    assert effect.matched == len(state)
    assert lora_loading.join_keys(effect.unused).endswith(" and 2 more")
    with pytest.raises(InputError, match=r"unet\.attic\.0"):
        lora_loading.load_loras(build(tiny_model), [LoraFile(tmp_path / "more.safetensors")], strict=True)


def error_of(model: Path, file: Path, weight: float = 1.0) -> str:
    with pytest.raises(InputError) as caught:
        lora_loading.load_loras(build(model), [LoraFile(file, weight)])
    assert caught.value.where == f"--lora {file}"
    return caught.value.what


def test_loras_without_effect(tiny_model: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    untrained = tiny_lora(tiny_model, tmp_path / "zero.safetensors", strength=0)
    assert "products are zero" in error_of(tiny_model, untrained)
    assert "weight is 0" in error_of(tiny_model, lora, 0.0)
    state = load_file(lora)
    state[next(iter(state))][0, 0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    assert "NaN" in error_of(tiny_model, tmp_path / "nan.safetensors")
    monkeypatch.setattr(lora_loading, "relative_change", lambda changed, base: 0.0)  # half precision rounds it away
    assert "prediction" in error_of(tiny_model, lora)


def test_loras_of_another_architecture(tiny_model: Path, lora: Path, tmp_path: Path) -> None:
    wide = {key: torch.ones(4, 320) if "lora_A" in key else torch.ones(320, 4) for key in load_file(lora)}
    save_file(wide, tmp_path / "wide.safetensors")
    assert "unet.down_blocks.0" in error_of(tiny_model, tmp_path / "wide.safetensors")
    key = "transformer.blocks.0.to_q.lora_A.weight"
    save_file({key: torch.ones(4, 8)}, tmp_path / "foreign.safetensors")
    assert key in error_of(tiny_model, tmp_path / "foreign.safetensors")


def test_files_that_are_not_loras(tiny_model: Path, lora: Path, tmp_path: Path) -> None:
    cut, text, pickled = tmp_path / "cut.safetensors", tmp_path / "text.safetensors", tmp_path / "old.pt"
    cut.write_bytes(lora.read_bytes()[:-100])
    text.write_text("hello")
    torch.save(load_file(lora), pickled)
    strange = tmp_path / "strange.safetensors"
    save_file({"lora_unet_nothing_known.weight": torch.ones(2, 2)}, strange)
    whole = tiny_model / "unet" / "diffusion_pytorch_model.safetensors"
    for file in (tmp_path / "missing.safetensors", cut, text, pickled, strange, whole):
        error_of(tiny_model, file)


def test_a_wider_model_is_no_problem_for_its_own_lora(tmp_path: Path) -> None:
    """The x8 autoencoder of SD v1 beside the x4 of the embedded base: sizes come from the model."""
    model = tiny_pipeline(tmp_path / "x8", factor=8)
    file = tiny_lora(model, tmp_path / "a.safetensors", rank=2)
    (effect,) = lora_loading.load_loras(build(model), [LoraFile(file)])
    assert effect.change == pytest.approx(change_of(load_file(file), scaling=2.0), rel=1e-5)


def test_laid_down_again_the_base_is_what_it_was_bit_for_bit(tiny_model: Path, lora: Path, tmp_path: Path) -> None:
    """Complaint: unfusing leaves rounding behind, and taking off one of several takes off another."""
    pipe = build(tiny_model)
    base = latents(pipe)
    other = LoraFile(tiny_lora(tiny_model, tmp_path / "other.safetensors", seed=1), 0.5)
    files = [LoraFile(lora), other]
    lora_loading.load_loras(pipe, files)
    both = latents(pipe)
    lora_loading.activate_loras(pipe, files, [other])
    alone = build(tiny_model)
    lora_loading.load_loras(alone, [other])
    assert torch.equal(latents(pipe), latents(alone))
    lora_loading.activate_loras(pipe, files, [])
    assert torch.equal(latents(pipe), base)
    lora_loading.activate_loras(pipe, files, files)
    assert torch.equal(latents(pipe), both)


def test_the_change_is_shown_block_by_block_and_in_the_prediction(tiny_model: Path, lora: Path) -> None:
    pipe = build(tiny_model)
    base = lora_loading.probe_prediction(pipe)
    (effect,) = lora_loading.load_loras(pipe, [LoraFile(lora)])
    assert list(effect.blocks) == ["down 0", "up 1", "middle"]
    squared = sum(share**2 for share in effect.blocks.values())
    assert effect.share**2 < squared, "blocks' shares are of their own weights"
    assert effect.prediction == pytest.approx(
        ((lora_loading.probe_prediction(pipe) - base).norm() / base.norm()).item()
    )
    (weaker,) = lora_loading.load_loras(build(tiny_model), [LoraFile(lora, 0.01)])
    assert 0 < weaker.prediction < effect.prediction / 5


def test_blocks_by_their_layers_names() -> None:
    names = ["unet.down_blocks.2.attentions.0.x", "unet.mid_block.y", "unet.up_blocks.1.z", "unet.conv_in"]
    found = [lora_loading.block_of(name) for name in [*names, "text_encoder.encoder.layers.0.q_proj"]]
    assert found == ["down 2", "middle", "up 1", "other", "text"]
