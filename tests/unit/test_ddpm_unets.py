"""Each network against its source: parameters counted, answers compared where the source can be run."""

import re
from typing import cast, get_args

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

from data.errors import InputError
from tests import annotated_unet
from train.ddpm import diffusion, schedule
from train.ddpm.config import AnyKind, BasicUNetOptions, ConvNextOptions, PaperOptions, PlainUNetOptions, UNet2DOptions
from train.ddpm.unets import paper
from train.ddpm.unets.build import BUILDERS, BasicUNet, NetworkShape, build_network
from train.ddpm.unets.convnext import AnnotatedUNet
from train.ddpm.unets.layers import sinusoidal_embedding, upsample_nearest

SCHEDULE = schedule.linear(20)
NARROW: dict[str, AnyKind] = {
    "basic": BasicUNetOptions(),
    "plain": PlainUNetOptions(),
    "convnext": ConvNextOptions(width=8, multiples=(1, 2)),
    "resnet": ConvNextOptions(width=12, multiples=(1, 2), block="resnet", scale_shift=True),
    "paper": PaperOptions(widths=(32, 64), blocks=1),
    "unet2d": UNet2DOptions(widths=(32, 64), blocks=1),
}


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def shaken(network: nn.Module) -> nn.Module:
    """Every weight random, those that start at zero too, or most of a network could not be seen."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return network.eval()


@pytest.mark.parametrize(
    ("options", "channels", "size", "parameters"),
    [
        (BasicUNetOptions(), 1, 28, 309_057),
        (BasicUNetOptions(final_activation=True), 3, 32, 312_259),
        (PlainUNetOptions(), 1, 28, 309_057),
        (ConvNextOptions(full_skip=False), 1, 28, 2_996_315),
        (ConvNextOptions(), 1, 28, 3_013_479),
        (PaperOptions(), 3, 32, 35_746_307),
        (UNet2DOptions(), 1, 28, 1_707_009),
    ],
)
def test_18_as_many_parameters_as_the_source(options: AnyKind, channels: int, size: int, parameters: int) -> None:
    with torch.device("meta"):
        frame = NetworkShape(channels, size)
        assert count(build_network(options, frame)) == parameters


def test_every_kind_has_a_builder() -> None:
    assert {kind.model_fields["kind"].default for kind in get_args(AnyKind)} == set(BUILDERS)


# ---- the course's


def test_a_last_silu_cannot_paint_black() -> None:
    """The defect: SiLU is never below -0.2785, and images reach -1."""
    torch.manual_seed(0)
    x, t = 30 * torch.randn(2, 1, 16, 16), torch.zeros(2, dtype=torch.long)
    old, mended = BasicUNet(1, final_activation=True), BasicUNet(1)
    mended.load_state_dict(old.state_dict())
    with torch.no_grad():
        assert old(x, t).min() >= -0.2785
        assert mended(x, t).min() < -1


def test_skips_carry_what_the_middle_loses() -> None:
    """Max-pooling hides all but the largest of four pixels: without skips a change of the others is not seen."""
    torch.manual_seed(0)
    with_skips, without = BasicUNet(1), BasicUNet(1, skips=False)
    without.load_state_dict(with_skips.state_dict())
    x = torch.randn(1, 1, 8, 8)
    t = torch.zeros(1, dtype=torch.long)
    assert not torch.equal(with_skips(x, t), without(x, t))
    middle = torch.zeros(1, 64, 4, 4)
    assert torch.equal(without.upsample_and_skip(middle, torch.ones(1, 64, 8, 8)), torch.zeros(1, 64, 8, 8))
    assert torch.equal(with_skips.upsample_and_skip(middle, torch.ones(1, 64, 8, 8)), torch.ones(1, 64, 8, 8))


def test_the_mix_is_x_t_at_another_scale() -> None:
    seen: list[torch.Tensor] = []
    places: list[torch.Tensor] = []

    def spy(xt: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        seen.append(xt)
        places.append(t)
        return xt

    x0, eps, t = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([0, 9, 19])
    tables = (SCHEDULE.sqrt_alphas_cumprod, SCHEDULE.sqrt_one_minus_alphas_cumprod)
    s, n = (table[t].float().reshape(-1, 1, 1, 1) for table in tables)
    diffusion.adapt_mix_network(spy, SCHEDULE)(s * x0 + n * eps, t)
    amount = (n / (s + n)).flatten()
    torch.testing.assert_close(seen[0], diffusion.linear_mix(x0, eps, amount))
    nearest = (diffusion.mix_amount(torch.arange(20), 20)[None] - amount[:, None]).abs().amin(1)
    torch.testing.assert_close((diffusion.mix_amount(places[0], 20) - amount).abs(), nearest)


# ---- annotated diffusion's


def test_annotated_diffusion_answers_alike() -> None:
    """The published network with its weights in ours, the forgotten skip left out: the same numbers."""
    torch.manual_seed(0)
    published = annotated_unet.Unet(28, (1, 2, 4), channels=1)
    network = AnnotatedUNet(1, full_skip=False)
    network.load_state_dict(annotated_unet.ported(published.state_dict()))
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([0, 999])
    with torch.no_grad():
        torch.testing.assert_close(network(x, t), published(x, t), atol=2e-5, rtol=1e-4)


def test_the_full_size_skip_is_used() -> None:
    """A change at the full size reaches the answer past the middle; in the original it does not."""
    torch.manual_seed(0)
    for full_skip in (True, False):
        network = AnnotatedUNet(1, width=8, multiples=(1, 2), full_skip=full_skip)
        full: list[torch.Tensor] = []
        network.down[0].register_forward_hook(lambda *a, full=full: full.append(a[2]))  # type: ignore[misc]
        network.shrink[0].register_forward_hook(lambda *a: a[2].detach())
        answer = network(torch.randn(1, 1, 8, 8), torch.tensor([3]))
        (gradient,) = torch.autograd.grad(answer.sum(), full, allow_unused=True)
        assert (gradient is not None) == full_skip


def test_groups_divide_every_width() -> None:
    """ResNet blocks at width 28 crashed: eight groups do not divide 28."""
    network = build_network(ConvNextOptions(block="resnet"), NetworkShape(1, 28))
    assert network(torch.zeros(1, 1, 28, 28), torch.tensor([5])).shape == (1, 1, 28, 28)
    assert {m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)} == {1, 4, 8}


def test_without_time_the_answer_does_not_depend_on_it() -> None:
    x, early, late = torch.randn(1, 1, 8, 8), torch.tensor([0]), torch.tensor([9])
    for time in (True, False):
        network = build_network(ConvNextOptions(width=8, multiples=(1, 2), time=time), NetworkShape(1, 8))
        assert torch.equal(network(x, early), network(x, late)) is not time


# ---- the paper's


def diffusers_paper() -> nn.Module:
    """UNet2DModel as the paper's U-Net, with random weights everywhere."""
    return shaken(
        UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
        )
    )


RENAMED = {  # diffusers' names, whole parts of a dotted name in this order, and ours
    "time_embedding.linear_1": "told.first", "time_embedding.linear_2": "told.second", "conv_in": "enter",
    "mid_block.resnets.0": "middle.0", "mid_block.attentions.0": "middle.1", "mid_block.resnets.1": "middle.2",
    "down_blocks": "down", "up_blocks": "up", "resnets": "blocks", "time_emb_proj": "time", "conv_shortcut": "shortcut",
    "to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "out", "conv_out": "leave", "conv_norm_out": "norm",
    "group_norm": "norm", "downsamplers.0": "resize", "upsamplers.0": "resize",
}  # fmt: skip


def own_name(name: str) -> str:
    """A weight's name in diffusers' UNet2DModel -> in PaperUNet."""
    for theirs, ours in RENAMED.items():
        name = re.sub(rf"(^|(?<=\.)){re.escape(theirs)}(?=\.)", ours, name)
    return name


def test_18_all_35_746_307_weights_answer_as_in_diffusers() -> None:
    """The paper's own widths; images of 8 pixels, which its four levels halve down to one."""
    theirs = diffusers_paper().to(torch.float64)
    with torch.device("meta"):
        ours = paper.PaperUNet(3).eval()
    ours.load_state_dict({own_name(name): weight for name, weight in theirs.state_dict().items()}, assign=True)
    assert count(ours) == 35_746_307
    x, t = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 999])
    with torch.no_grad():
        expected = theirs(x, t).sample
        torch.testing.assert_close(ours(x, t), expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


def test_18_an_untrained_paper_network_answers_zero() -> None:
    network = paper.PaperUNet(1, widths=(32, 64), blocks=1).eval()
    assert not network(torch.randn(2, 1, 8, 8), torch.tensor([0, 9])).any()


# ---- what all are told


def test_18_sines_are_the_papers() -> None:
    """Row t holds sin(t w_i), then cos(t w_i), w from 1 to 1/10000; diffusers' embedding with both ends included."""
    table = sinusoidal_embedding(torch.tensor([0, 3]), 6)
    w = torch.tensor([1.0, 1e-2, 1e-4])
    torch.testing.assert_close(table[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(table[1], torch.cat([(3 * w).sin(), (3 * w).cos()]))
    t = torch.arange(1000)
    theirs = get_timestep_embedding(t, 128, flip_sin_to_cos=False, downscale_freq_shift=1)
    torch.testing.assert_close(sinusoidal_embedding(t, 128), theirs, atol=1e-4, rtol=0)  # float32 angles of up to 999


@pytest.mark.parametrize("name", ["convnext", "paper"])
def test_18_every_skip_is_consumed(name: str) -> None:
    """A change at each size on the way down is seen in the answer although the middle is silenced."""
    network = shaken(build_network(NARROW[name], NetworkShape(3, 8)))
    middle = [part for part_name, part in network.named_children() if part_name.startswith("middle")]
    for part in [each for child in middle for each in (child if isinstance(child, nn.ModuleList) else [child])]:
        part.register_forward_hook(lambda *a: a[2].detach())
    seen: list[torch.Tensor] = []
    for level in cast(nn.ModuleList, network.get_submodule("down")):
        parts = cast(nn.ModuleList, level.blocks) if name == "paper" else [level]
        for part in parts:
            part.register_forward_hook(lambda *a: seen.append(a[2]))
    answer = network(torch.randn(1, 3, 8, 8), torch.tensor([3]))
    assert len(seen) == 2
    assert all(gradient.any() for gradient in torch.autograd.grad(answer.sum(), seen))


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("answers", [1, 2])
def test_every_network_keeps_the_frame(name: str, answers: int) -> None:
    frame = NetworkShape(3, 8, answers=answers)
    if answers == 2 and name in ("basic", "plain"):
        with pytest.raises(InputError, match="cannot predict a variance"):
            build_network(NARROW[name], frame)
        return
    network = shaken(build_network(NARROW[name], frame))
    answer = network(torch.randn(2, 3, 8, 8), torch.tensor([0, 19]))
    assert answer.shape == (2, 3 * answers, 8, 8)
    assert answer.isfinite().all()


@pytest.mark.parametrize("name", NARROW)
def test_classes_are_told_or_refused(name: str) -> None:
    frame = NetworkShape(1, 8, classes=3)
    if name in ("basic", "plain"):
        with pytest.raises(InputError, match="not conditioned on time or class"):
            build_network(NARROW[name], frame)
        return
    network = shaken(build_network(NARROW[name], frame))
    x, t = torch.randn(1, 1, 8, 8).expand(3, 1, 8, 8), torch.full((3,), 7)
    with torch.no_grad():
        told = network(x, t, torch.tensor([0, 2, 3]))
        nothing = network(x, t)
    assert not torch.allclose(told[0], told[1])
    torch.testing.assert_close(told[2], nothing[2])  # label 3 of 3 classes is "no class"


def test_doubling_is_the_same_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(8.0).reshape(1, 2, 2, 2)
    eager = upsample_nearest(x)
    assert eager[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(upsample_nearest(x), eager)


@pytest.mark.parametrize("name", NARROW)
def test_a_size_that_cannot_be_halved_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"--data.size: network .* halves the size .* 9 pixels"):
        build_network(NARROW[name], NetworkShape(1, 9))


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="32 groups do not divide 40 channels"):
        build_network(PaperOptions(widths=(40, 64)), NetworkShape(1, 8))
    with pytest.raises(InputError, match="32 groups do not divide 40 channels"):
        build_network(UNet2DOptions(widths=(40, 64)), NetworkShape(1, 8))
