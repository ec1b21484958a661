"""fit.py: train a diffusion model from scratch. `Trainer.train_step` is algorithm 1 of Ho et al., arXiv 2006.11239.

Read from top to bottom: `fit` opens or creates the run folder, `Trainer` builds everything once, `train_loop` says what
happens between two steps: log, validate, save a checkpoint, generate a preview.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from data import rng
from data.dataset import BatchLayout
from data.errors import InputError
from train import checkpoint, device, optim, run_folder
from train.ddpm.image_sets import ImageSet, load_image_set, to_uint8
from train.ddpm.losses import TimestepSampler
from train.ddpm.runs import model as models
from train.ddpm.runs import report
from train.ddpm.runs.batches import Batch, BatchStream, measure_errors, spread_timesteps, validation_set
from train.ddpm.runs.config import FitConfig, identity
from train.ddpm.runs.model import KIND, Model, ModelInfo, blame_flag
from train.ddpm.samplers import make_sampler
from train.ddpm.unets.build import NetworkShape, build_network
from train.metrics import MetricBuffer, MetricsLogger, RunLogger, Speed, bin_losses, read_metrics
from train.optim import Ema
from train.profiler import peak_flops
from train.run_folder import Run
from train.signals import launcher_pid, stop_requests, survive_closed_output
from train.torch_compile import check_gradients
from train.validation import HELD_OUT, TRAIN, Losses, paired_difference


def fit(config: FitConfig, *, split_seed: int | None = None) -> tuple[int, Run]:
    """Train as configured, or resume the run with these settings; returns the exit code and the run.

    split_seed: the seed of the held-out split, if it is not the run's own.
    """
    optim.check_installed(config.optim)
    check_objective(config)
    accelerator = device.create_accelerator(config.threads)
    device.set_tf32(True)
    images, held_out = load_images(config, accelerator, config.seed if split_seed is None else split_seed)
    trainer = Trainer(config, accelerator, images, held_out)
    run = None if config.new else run_folder.find_run(config.runs, trainer.identity)
    if run is not None and (run.done or 0) >= trainer.steps:
        accelerator.print(f"{run.path} has these settings and is finished; --new starts over.\n{next_commands(run)}")
        return 0, run
    trainer.build()
    accelerator.print("\n".join(trainer.plan()))
    run = run or trainer.create_run()
    return trainer.train(run), run


def check_objective(config: FitConfig) -> None:
    """Raise InputError for an objective that the schedule, or a preview sampler that the objective does not allow."""
    with blame_flag("--objective.predicts"):
        models.build_parametrization(config.objective).check(models.build_schedule(config.schedule))
    if config.drawings.every:
        with blame_flag("--drawings.sampler"):
            sampler = make_sampler(config.drawings.sampler)
        if sampler.corruption == "mix" != config.objective.corruption:
            what = "the naive sampler is for --objective.corruption mix"
            raise InputError(what, where="--drawings.sampler", allowed="another, e.g. ddim")


def load_images(config: FitConfig, accelerator: Accelerator, seed: int) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images. Raises InputError if --conditional is given and an image has no class."""
    with accelerator.main_process_first():  # the first process fills the cache
        images = load_image_set(config.data, seed=seed)
    if config.conditional and (images.labels is None or bool((images.labels < 0).any())):
        fix = "Put each class into a sub-folder, or add --no-conditional."
        raise InputError(f"images of {config.data.set} without a class", where="--conditional", fix=fix)
    return images.split(config.data.held_out, seed)


class Trainer:
    """A run of fit.py. `step` is the number of optimiser steps done."""

    def __init__(self, config: FitConfig, accelerator: Accelerator, images: ImageSet, held_out: ImageSet) -> None:
        self.config, self.accelerator, self.images, self.held_out = config, accelerator, images, held_out
        self.layout = BatchLayout(config.batch_size, 1, accelerator.num_processes, accelerator.process_index)
        self.steps = config.steps(len(images), self.layout.global_batch)
        self.identity = identity(config, images.fingerprint, self.steps)
        self.step = 0
        self.logger: MetricsLogger = MetricsLogger()

    def build(self) -> None:
        """Network, optimiser, average, loss and batches; before the loop, once."""
        config, accelerator, on = self.config, self.accelerator, self.accelerator.device
        self.model = build_model(config, self.images, on)
        network = self.model.network.train()
        weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self.ema = Ema(weights, config.ema)
        self.network: Any = accelerator.prepare(network)  # which moves weights
        self.optimizer: Any = accelerator.prepare(optim.build_optimizer(weights.values(), config.optim))
        self.network = torch.compile(self.network, dynamic=False) if config.compile else self.network
        self.has_dropout = any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in network.modules())
        self.schedule = self.model.schedule.to(on)
        self.corrupt = models.build_corruption(config.objective)
        self.loss = models.build_loss(config.objective, self.schedule)
        gather: Any = accelerator.gather
        self.timesteps = TimestepSampler(self.schedule.steps, config.objective.bound == "importance", gather)
        images, dropout = self.images.to(on), config.class_dropout if config.conditional else None
        self.batches = BatchStream(images, self.layout, config.seed, self.timesteps, dropout, config.channels_last)
        splits = {name: images for name, images in ((HELD_OUT, self.held_out), (TRAIN, self.images)) if len(images)}
        count = config.looks.pictures
        self.validation_sets = {name: validation_set(images, count, self.model) for name, images in splits.items()}
        self.base: dict[str, Losses] = {}  # x_0 errors before step 1, by split
        peak = peak_flops(on, accelerator.mixed_precision)
        self.speed = Speed(step_flops(self.model.info), peak, accelerator.num_processes)
        self.metrics = MetricBuffer()

    # ---- algorithm 1 of arXiv 2006.11239

    def train_step(self) -> None:
        """One optimiser step. Nothing in it waits for the device, unless timesteps are sampled by importance."""
        config, metrics = self.config, self.metrics
        metrics.start_step()
        rate = optim.learning_rate(self.step, config.optim, config.learning_rate, self.steps)
        optim.set_learning_rate(self.optimizer, rate)
        if self.has_dropout:  # a function of the position, like all randomness
            torch.manual_seed(rng.seed_for(config.seed, "ddpm", "dropout", self.step, self.layout.rank))
        # x_0 ~ q(x_0), t ~ Uniform({1, ..., T}), eps ~ N(0, I)                                            lines 2-4
        batch = self.batches.batch(self.step)
        losses = self.sample_losses(self.network, batch)
        # take a gradient step on || eps - eps_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t) ||^2         line 5
        self.accelerator.backward((losses * batch.weights).mean())
        norm = optim.clip_gradients(self.accelerator, self.optimizer, config.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(norm)
        self.timesteps.update(batch.t, losses.detach())
        metrics.losses.append((losses.detach() * batch.weights).mean())
        metrics.norms.append(norm)
        metrics.rates.append(rate)
        metrics.bins.append(bin_losses(losses.detach(), batch.t, self.schedule.steps))
        metrics.sample_ids.append([f"image {place}" for place in self.batches.positions(self.step).tolist()])
        self.step += 1

    def sample_losses(self, network: nn.Module, batch: Batch) -> Tensor:
        """(B,) the loss of each image."""
        xt = self.corrupt(self.schedule, batch.x0, batch.eps, batch.t)
        output = network(xt, batch.t, batch.labels)
        return self.loss(output.float(), batch.x0, batch.eps, xt, batch.t)

    # ---- the loop

    def train_loop(self, run: Run) -> bool:
        """Train to the last step. False if stopped before; the step is saved in any case."""
        resumed_at = self.step or None  # what is due at that step was done before it was saved
        with stop_requests(launcher_pid()) as stop:
            while True:
                last, stopping = self.step >= self.steps, bool(stop)
                if self.step != resumed_at:
                    self.between_steps(run, last=last, stopping=stopping)
                if last or stopping:
                    return last
                self.train_step()
                self.logger.advance(1)

    def between_steps(self, run: Run, *, last: bool, stopping: bool) -> None:
        """Log, validate, save and generate, where it is due."""
        config, step, main = self.config, self.step, self.accelerator.is_main_process
        validating = step % config.looks.every == 0 or last
        saving = step > 0 and (step % config.checkpoints.every == 0 or last or stopping)
        previewing = step > 0 and config.drawings.every > 0 and (step % config.drawings.every == 0 or last)
        if step % config.log_every == 0 or validating or saving:
            self.log()
        if validating:
            self.validate()
        if saving:
            if main:
                self.save(run)
            self.accelerator.wait_for_everyone()
        if previewing and not stopping and main:
            self.preview(run)
        if (validating or previewing) and main:
            report.write_report(run, self.steps)

    def log(self) -> None:
        """Write the numbers of the last steps, averaged over processes. Raises InputError for NaN or infinity."""
        failure = self.metrics.flush(
            self.step, self.accelerator, self.layout, self.speed, self.logger, timesteps=self.schedule.steps
        )
        if failure:
            fix = "The last checkpoint is from before; a lower --learning-rate starts a new run."
            raise InputError(failure, where="training", fix=fix)

    def validate(self) -> None:
        """The error of x_0 at fixed noise, on held-out images and on as many training images."""
        timesteps = spread_timesteps(self.schedule.steps, self.config.looks.timesteps)
        with self.averaged():
            errors = {name: measure_errors(self.model, *each, timesteps) for name, each in self.validation_sets.items()}
        self.base = self.base or (errors if self.step == 0 else {})
        change = {
            name: vars(paired_difference(errors[name], base))
            for name, base in self.base.items()
            if self.step and name in errors and errors[name].values.shape == base.values.shape  # same --looks
        }
        line = {
            "step": self.step,
            "validation": {name: losses.mean for name, losses in errors.items()},
            "change": change,
            "timesteps": timesteps,
            "per_timestep": {name: losses.per_timestep for name, losses in errors.items()},
        }
        self.logger.write([line])
        text = ", ".join(f"{name} {losses.mean:.4f}" for name, losses in errors.items())
        self.logger.say(f"step {self.step}: error of x_0 at fixed noise: {text}")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network has the averaged weights and is in eval mode."""
        network = self.model.network
        training = network.training
        with self.ema.swapped():
            network.eval()
            try:
                yield
            finally:
                network.train(training)

    def preview(self, run: Run) -> None:
        """A grid from the same noise each time, drawings/STEP.png."""
        options = self.config.drawings
        sampler = make_sampler(options.sampler, count=min(options.steps, self.schedule.steps))
        labels = self.model.labels_of([], options.count, "--conditional")
        with self.averaged():
            images = self.model.generate(sampler, options.count, seed=0, labels=labels, clip=True)
        grid = report.image_grid(to_uint8(images.nan_to_num(0.0)))
        file = report.write_png(grid, run.path / "drawings" / f"{self.step:06d}.png")
        self.logger.log_image("drawings", self.step, file)

    # ---- checkpoints and the run folder

    def save(self, run: Run) -> None:
        """Save a checkpoint, then delete the oldest."""
        scaler = self.accelerator.scaler
        extra = {
            "scaler": scaler.state_dict() if scaler is not None else None,
            "base": {name: losses.values.tolist() for name, losses in self.base.items()},
            "timesteps": self.timesteps.state(),
        }
        weights, state = self.model.network.state_dict(), self.optimizer.state_dict()
        saved = checkpoint.Checkpoint(self.step, weights, state, extra, self.ema.state())
        checkpoint.save_checkpoint(run.checkpoints, saved, self.identity)
        checkpoint.prune_checkpoints(run.checkpoints, self.config.checkpoints.keep)

    def resume(self, run: Run) -> None:
        """Load the newest valid checkpoint, bit for bit. Raises InputError for another precision or process count."""
        device.check_run_conditions(run.facts("data.json"), self.accelerator, run.path)
        saved = checkpoint.resume_checkpoint(self.accelerator, run.checkpoints, self.identity)
        if saved is None:
            return
        self.model.network.load_state_dict(dict(saved.weights))
        self.optimizer.load_state_dict(dict(saved.optimizer))
        self.ema.load_state(saved.average, run.checkpoints)
        if self.accelerator.scaler is not None and saved.extra["scaler"]:
            self.accelerator.scaler.load_state_dict(dict(saved.extra["scaler"]))
        self.timesteps.load_state(dict(saved.extra.get("timesteps", {})))
        self.base = {name: Losses(torch.tensor(rows).double().numpy()) for name, rows in saved.extra["base"].items()}
        self.step = saved.step
        self.accelerator.print(f"resuming {run.path} after step {saved.step}")

    @survive_closed_output()
    def train(self, run: Run) -> int:
        """Train in the run's folder and export the result; returns the exit code."""
        main = self.accelerator.is_main_process
        with run.lock() if main else nullcontext():
            self.resume(run)
            if main:
                run.reopen()
                tensorboard = self.config.tensorboard
                self.logger = RunLogger(run.path, start=self.step, stop=self.steps, tensorboard=tensorboard)
            try:
                if self.config.compile and self.step < self.steps:
                    self.check_compiled()
                finished = self.train_loop(run)
            finally:
                self.logger.close()
            if not finished:
                stopped = f"stopped after step {self.step} of {self.steps}; the same command resumes {run.path}"
                self.accelerator.print(stopped)
                return 130
            if main:
                self.export(run)
        return 0

    def check_compiled(self) -> None:
        """Compare the compiled network's gradients with the plain one's before step 1. Raises InputError."""
        batch = self.batches.batch(self.step)

        def loss_of(network: nn.Module) -> Tensor:
            torch.manual_seed(0)  # the same dropout
            return self.sample_losses(network, batch).mean()

        check_gradients(self.network, loss_of, "no")

    def export(self, run: Run) -> None:
        """Save the averaged weights, the report and the README, and mark the run as finished, last."""
        with self.averaged():
            models.save_model(self.model, run.export)
        report.write_readme(run, self.plan(), next_commands(run))
        report.write_report(run, self.steps, ended=f"Finished after {self.step} steps.")
        run.finish(self.step)
        bell = "\a" if sys.stdout.isatty() else ""  # notify who waits at the terminal
        print(f"{bell}finished:  {run.export}")
        print(report.format_speed(read_metrics(run.metrics)))
        print(f"report:    {run.path / 'report.html'}")
        print(next_commands(run))

    def plan(self) -> list[str]:
        """What will be done, for the terminal and the README."""
        config, images = self.config, self.images
        size = sum(weight.numel() for weight in self.model.network.parameters())
        classes = f", {len(images.classes)} classes" if images.classes else ""
        conditional = ", conditional" if config.conditional else ""
        epochs = self.steps * self.layout.global_batch / len(images)
        shape = " x ".join(map(str, images.pixels.shape[1:]))
        lines = [
            f"set:       {images.name}, {len(images)} images of {shape}{classes}; {len(self.held_out)} held out",
            f"network:   {config.network.kind}, {size:,} parameters, predicts {config.objective.predicts}{conditional}",
            f"schedule:  {config.schedule.name}, {config.schedule.steps} steps",
            f"training:  {self.steps} steps of {self.layout.global_batch} images ({epochs:.1f} epochs), "
            f"{device.device_name(self.accelerator.device)}, {device.describe_precision(self.accelerator)}",
        ]
        return lines + [f"note:      {note}" for note in images.notes[:5]]

    def create_run(self) -> Run:
        """The run folder, created by the first process and known to all."""
        config, images, paths = self.config, self.images, [""]
        if self.accelerator.is_main_process:
            facts = {
                "identity": self.identity,
                "kind": KIND,
                "set": images.name,
                "fingerprint": images.fingerprint,
                "pictures": len(images),
                "held_out": len(self.held_out),
                "classes": list(images.classes),
                "notes": list(images.notes),
                "steps": self.steps,
                **device.run_conditions(self.accelerator),
            }
            files = {
                "config.yaml": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
                "data.json": run_folder.to_json(facts),
                "versions.json": run_folder.to_json(run_folder.library_versions()),
            }
            paths = [str(run_folder.create_run(config.runs, config.name, files).path)]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(paths)
        return Run(Path(paths[0]))


def build_model(config: FitConfig, images: ImageSet, on: torch.device) -> Model:
    """The network with random weights that follow from the seed."""
    classes = images.classes if config.conditional else ()
    answers = 2 if config.objective.variance == "learned-range" else 1
    frame = NetworkShape(images.channels, images.size, len(classes), answers)
    options = {name: getattr(config, name) for name in ("network", "schedule", "objective")}
    info = ModelInfo(**options, frame=frame, classes=classes, source=images.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.seed_for(config.seed, "ddpm", "weights"))
        network = build_network(config.network, frame)
    memory = torch.channels_last if config.channels_last else torch.contiguous_format
    return Model(network.to(on, memory_format=memory), info, on)  # type: ignore[call-overload]


def step_flops(info: ModelInfo) -> int:
    """Operations of one image's training step, forward and backward; a multiply-add counts as two."""
    frame = info.frame
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build_network(info.network, frame).train()
        xt, t = torch.empty(1, frame.channels, frame.size, frame.size), torch.zeros(1, dtype=torch.int64)
        network(xt, t, t if frame.classes else None).square().mean().backward()
    return int(counter.get_total_flops())


def next_commands(run: Run) -> str:
    return (
        f"next:      python train/ddpm/sample.py --run {run.path}\n"
        f"           python train/ddpm/score.py --run {run.path}"
    )
