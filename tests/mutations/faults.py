"""Faults that trainers of this field have shipped, each as a change of one line of ours.

`seen`: where it was seen in public, or what kind of fault it is. The tests named must fail while the change is in.
"""

from __future__ import annotations

from dataclasses import dataclass

UNIT = "tests/unit/"
DDPM = "train/ddpm/"


@dataclass(frozen=True)
class Fault:
    """`before` occurs once in `file` and becomes `after`; then one of `tests` must fail."""

    name: str
    seen: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


LOOP, SAVING, STATE, WINDOW = "train/trainer.py", "train/trainer.py", "train/trainer.py", "train/trainer.py"
SHARE = "state.accelerator.backward(loss.sum() / (context.layout.batch_size * context.layout.accumulate))"

FAULTS = (
    Fault(
        "clipping clips nothing",
        "diffusers train_text_to_image_lora.py: an iterator that the optimiser has used up",
        *("train/optim.py", "clip_grad_norm_(optimized_weights(optimizer), limit)", "clip_grad_norm_(iter(()), limit)"),
        (f"{UNIT}test_loop.py::test_clipping_clips_the_global_norm",),
    ),
    Fault(
        "clipping each weight by itself",
        "ai-toolkit, OneTrainer's fused backward pass: not the global norm",
        LOOP,
        "norm = optim.clip_gradients(state.accelerator, optimizer, config.optim.clip_norm)",
        "norm = sum(optim.clip_gradients(state.accelerator, torch.optim.SGD([w], lr=1.0), config.optim.clip_norm) "
        "for w in optim.optimized_weights(optimizer))",
        (f"{UNIT}test_loop.py::test_clipping_clips_the_global_norm",),
    ),
    Fault(
        "accumulated gradients are summed, not averaged",
        "EveryDream2, ai-toolkit: the loss is not divided by the number of micro-batches",
        *(LOOP, SHARE, "state.accelerator.backward(loss.sum() / context.layout.batch_size)"),
        # not by the weights after a step: Adam does not feel the gradient's size
        (f"{UNIT}test_optim_step.py::test_every_update_has_weight_one",),
    ),
    Fault(
        "gradients are emptied between micro-batches",
        "ai-toolkit, gradient_accumulation_steps",
        LOOP,
        f"                {SHARE}\n",
        f"                {SHARE}\n            is_last or state.optimizer.zero_grad()\n",
        (f"{UNIT}test_loop.py::test_accumulation_is_one_large_batch",),
    ),
    Fault(
        "the logged loss is the last micro-batch's",
        "kohya sd-scripts, LossRecorder",
        LOOP,
        "buffer.losses.append(losses.mean())",
        "buffer.losses.append(losses[-context.layout.batch_size :].mean())",
        (f"{UNIT}test_loop.py::test_accumulation_is_one_large_batch", f"{UNIT}test_loop_seeing.py"),
    ),
    Fault(
        "the learning rate runs ahead with the processes",
        "diffusers #8236, accelerate #662: the scheduler is stepped once a process",
        LOOP,
        "optim.learning_rate(state.step, ",
        "optim.learning_rate(state.step * context.layout.processes, ",
        (f"{UNIT}test_optim_step.py::test_the_rate_follows_the_optimiser_step_alone",),
    ),
    Fault(
        "the learning rate runs ahead with accumulation",
        "diffusers #9633, kohya sd-scripts #251",
        LOOP,
        "optim.learning_rate(state.step, ",
        "optim.learning_rate(state.step * context.layout.accumulate, ",
        (f"{UNIT}test_optim_step.py::test_the_rate_follows_the_optimiser_step_alone",),
    ),
    Fault(
        "resume begins the epoch anew",
        "diffusers text_to_image: the sampler's position is not restored",
        *("data/dataset.py", "            if step < self.start:\n                continue\n", ""),
        (f"{UNIT}test_dataset.py::test_resume_goes_on_where_it_was",),
    ),
    Fault(
        "resume does not load the weights",
        "diffusers #12690: LoRA checkpoints were not loaded",
        SAVING,
        "        adapters.load_trainable_state(self.plain_unet(), saved.weights, folder)\n",
        "",
        (f"{UNIT}test_loop.py::test_a_stopped_run_ends_in_the_same_weights",),
    ),
    Fault(
        "resume does not load the optimiser",
        "EveryDream2: the optimiser's state is opt-in",
        SAVING,
        "        self.optimizer.load_state_dict(dict(saved.optimizer))\n",
        "",
        (f"{UNIT}test_loop.py::test_a_stopped_run_ends_in_the_same_weights",),
    ),
    Fault(
        "resume counts steps from 0",
        "kohya sd-scripts #1999, #2171",
        SAVING,
        "self.step, self.splits = saved.step, ",
        "self.step, self.splits = 0, ",
        (f"{UNIT}test_loop.py::test_a_stopped_run_ends_in_the_same_weights",),
    ),
    Fault(
        "resume does not load the average",
        "diffusers #5783, SimpleTuner: EMA begins anew",
        *(SAVING, "        self.ema.load_state(saved.average, folder)\n", ""),
        (f"{UNIT}test_optim_resume.py::test_twice_resumed_toy",),
    ),
    Fault(
        "the average is never updated",
        "ai-toolkit 82190b41, diffusers #7549",
        *(LOOP, "    state.ema.update(norm)\n", ""),
        (f"{UNIT}test_ema.py::test_the_loop_steps_it_and_validates_it",),
    ),
    Fault(
        "the raw weights are validated and exported",
        "OneTrainer #889",
        *(STATE, "with optim.averaged_weights(self.optimizer), self.ema.swapped():", "if True:"),
        (f"{UNIT}test_ema.py::test_what_is_looked_at_is_the_average",),
    ),
    Fault(
        "the raw weights do not come back after validation",
        "diffusers #2146: training goes on from the average",
        "train/ema.py",
        "        try:\n            yield\n        finally:\n            self.swap()\n",
        "        yield\n",
        (f"{UNIT}test_ema.py::test_swapped_and_back_bit_for_bit",),
    ),
    Fault(
        "a step that the scaler left out is averaged",
        "EMA moves although the weights did not",
        *("train/ema.py", "moved, n = torch.isfinite(norm)", "moved, n = torch.isfinite(torch.zeros_like(norm))"),
        (f"{UNIT}test_ema.py::test_a_step_that_was_left_out_is_not_averaged",),
    ),
    Fault(
        "LoRA is trained in the base's half precision",
        "diffusers #6363: in bf16 nine of ten weights never move at 1e-4",
        "train/lora.py",
        "parameter.data = parameter.data.float()",
        "parameter.data = parameter.data.to(unet.dtype)",
        (f"{UNIT}test_adapters.py::test_it_is_float32_on_a_half_precision_base",),
    ),
    Fault(
        "validation leaves the network in evaluation mode",
        "diffusers #13895: sampling changes the network that trains",
        "train/validation.py",
        "            denoiser.unet.train(was_training)\n",
        "            pass\n",
        (f"{UNIT}test_validation.py::test_it_leaves_no_trace",),
    ),
    Fault(
        "an export is compared with an answer that autocast rounded",
        "our own: full runs in fp16 and bf16 failed at their end",
        "train/trainer.py",
        "unwrap_model(state.unet, keep_fp32_wrapper=False, keep_torch_compile=False)",
        "unwrap_model(state.unet, keep_torch_compile=False)",
        ("tests/recipes/test_export.py::test_what_was_trained_in_mixed_precision",),
    ),
    Fault(
        "a run goes on with another number of processes",
        "our own: it then saw the same pictures again",
        "train/trainer.py",
        '    device.check_run_conditions(run.facts("plan.json"), accelerator, run.path)\n',
        "",
        ("tests/recipes/test_going_on.py::test_other_processes_and_precisions_do_not_go_on_unnoticed",),
    ),
    Fault(
        "validation draws new noise each time",
        "diffusers, ai-toolkit: two measurements differ by luck",
        "train/validation.py",
        'rng.normal((count, *latents.shape), "validation", entry_hash(entry))',
        "torch.randn((count, *latents.shape))",
        (f"{UNIT}test_validation.py",),
    ),
    Fault(
        "min-SNR for v lacks the + 1",
        "diffusers #5238, #6307",
        "train/ddpm/losses.py",
        "a.minimum(gamma * b),  # min(SNR, gamma) / (SNR + 1)",
        "(gamma * b / a).clamp(max=1.0),",
        (f"{UNIT}test_ddpm_losses.py",),
    ),
    Fault(
        "the cache does not look at the picture",
        "kohya sd-scripts #2269: latents are found by file name and shape",
        "data/latent_cache.py",
        '"latent", encoder, self.sha256, self.width',
        '"latent", encoder, self.path.name, self.width',
        (f"{UNIT}test_encoding.py::test_what_changes_is_a_miss_and_nothing_else",),
    ),
    Fault(
        "the cache does not look at the autoencoder",
        "kohya sd-scripts #2276: latents of another VAE",
        "data/latent_cache.py",
        '"latent", encoder, self.sha256',
        '"latent", self.sha256',
        (f"{UNIT}test_latent_cache.py::test_any_other_input_is_a_miss",),
    ),
    Fault(
        "the cache does not look at the orientation",
        "AnimaLoraStudio #176: one coin flip is frozen",
        *("data/latent_cache.py", "self.width, self.height, self.flip)", "self.width, self.height)"),
        (f"{UNIT}test_latent_cache.py::test_any_other_input_is_a_miss",),
    ),
    Fault(
        "the cache freezes the posterior's mean",
        "OneTrainer caches the mean, kohya one sample",
        "data/dataset.py",
        "return mean + deviation * copy_to(rng.normal(tuple(mean.shape), *position), mean.device)",
        "return mean",
        (f"{UNIT}test_dataset.py::test_latents_have_the_posteriors_mean_and_variance",),
    ),
    Fault(
        "NaN latents are kept",
        "kohya sd-scripts replaces them by zeros and prints",
        "data/latent_cache.py",
        "        if not bool(torch.isfinite(moments).all()):",
        "        moments = torch.nan_to_num(moments)\n        if not bool(torch.isfinite(moments).all()):",
        (f"{UNIT}test_latent_cache.py::test_nan_names_the_image",),
    ),
    Fault(
        "a dropped caption is zeros",
        "OneTrainer: guidance never shows the network zeros",
        *("data/dataset.py", "            return self.empty\n", "            return torch.zeros_like(self.empty)\n"),
        (f"{UNIT}test_objectives_noise.py::test_captions_are_dropped_at_their_rate_to_the_encoders_own_nothing",),
    ),
    Fault(
        "captions are not dropped once they are cached",
        "ai-toolkit ab5fef89",
        *("data/dataset.py", "captions.is_dropped(self.dropout, *here)", "captions.is_dropped(0.0, *here)"),
        (f"{UNIT}test_dataset.py::test_captions_orientation_and_dropout_have_their_rates",),
    ),
    Fault(
        "cut captions are not counted",
        "diffusers text_to_image cuts at 77 tokens without a word",
        *("train/training_set.py", "        captions_cut=cut,\n", "        captions_cut=[],\n"),
        ("tests/recipes/test_finetune.py::test_a_cut_caption_is_named_before_the_first_step",),
    ),
    Fault(
        "unknown keys of a preset are ignored",
        "ai-toolkit: kwargs.get turns a typo into the default",
        *("data/cli.py", 'ConfigDict(frozen=True, extra="forbid"', 'ConfigDict(frozen=True, extra="ignore"'),
        (f"{UNIT}test_cli.py::test_a_preset_is_blamed_by_line",),
    ),
    Fault(
        "a kohya file loses its alpha",
        "kohya_ss #458, diffusers #2326",
        "train/exporters/lora_files.py",
        'found[f"{key}.alpha"] = torch.tensor(alpha)',
        'found[f"{key}.alpha"] = torch.tensor(1.0)',
        (f"{UNIT}test_exports.py::test_every_file_of_a_lora_gives_the_same_prediction",),
    ),
    Fault(
        "the moments of a resumed AdamW lie in another order than its weights",
        "fused AdamW and channels-last, ours",
        "train/optim.py",
        "    optimizer.register_load_state_dict_post_hook(align_state)\n",
        "",
        (f"{UNIT}test_optim.py", f"{UNIT}test_optim_resume.py", f"{UNIT}test_checkpoint.py"),
    ),
    Fault(
        "a preview depends on its neighbours",
        "diffusers log_validation: one generator for all pictures",
        "infer/previews.py",
        "ImageRequest(index, one.prompt, one.seed)",
        "ImageRequest(index, one.prompt, one.seed + index)",
        (f"{UNIT}test_previews.py::test_a_picture_depends_on_its_prompt_and_seed_alone",),
    ),
    Fault(
        "micro-batches of other sizes weigh alike",
        "accelerate #1847, Lightning #19987: a short part of a window is over- or under-weighted",
        LOOP,
        SHARE,
        "accelerator.backward(losses.sum() / (len(batch.sample_ids) * len(parts)))",
        (f"{UNIT}test_pieces.py::test_out_of_memory_ends_in_the_same_weights",),
    ),
    Fault(
        "half precision without a scaler",
        "cloneofsimo/lora: small gradients vanish in fp16",
        LOOP,
        SHARE,
        "(losses.sum() / (layout.batch_size * layout.accumulate)).backward()",
        (f"{UNIT}test_loop.py::test_gradients_are_unscaled_before_they_are_clipped",),
    ),
    Fault(
        "the base is asked in another precision than the network that it holds",
        "our own: preserved prompts ended every run in bf16 on a CPU, and full fine-tuning asked a float32 base",
        "train/prior_preservation.py",
        "        with self.autocast():\n",
        "        if True:\n",
        (f"{UNIT}test_preservation.py::test_the_base_is_asked_as_the_trained_network_is",),
    ),
    Fault(
        "min-SNR is no number at zero terminal SNR",
        "diffusers #9451",
        "train/ddpm/losses.py",
        "(gamma * b / a).clamp(max=1.0),",
        "(a / b).clamp(max=gamma) * b / a,",
        (f"{UNIT}test_ddpm_losses.py::test_zero_terminal_snr_has_its_limits",),
    ),
    Fault(
        "weights are those of the schedule before it was rescaled",
        "kohya sd-scripts, get_noise_scheduler",
        "train/losses.py",
        "build_criterion(objective, schedule))",
        "build_criterion(objective, "
        '__import__("train.ddpm.schedule", fromlist=["it"]).scaled_linear(schedule.steps, 0.00085, 0.012)))',
        (f"{UNIT}test_objectives_training.py::test_the_criterion_is_put_up_once_from_the_schedule_of_the_run",),
    ),
    Fault(
        "frozen parts are saved in half precision",
        "diffusers train_text_to_image.py",
        "train/exporters/full_model.py",
        "    if not as_it_is:\n        cast = verify.cast_tensors(part_tensors(base, part), request.dtype, target)",
        "    if True:\n        cast = verify.cast_tensors(part_tensors(base, part), torch.float16, target)",
        (f"{UNIT}test_adapters.py::test_full_exports_a_whole_model",),
    ),
    Fault(
        "the first process waits for the others where they do not come",
        "diffusers #2606: saving under a test for the main process",
        SAVING,
        "        state.accelerator.wait_for_everyone()\n",
        "        if state.accelerator.is_main_process:\n            state.accelerator.wait_for_everyone()\n",
        ("tests/recipes/test_processes.py::test_two_processes_are_the_run_that_one_process_is",),
    ),
    Fault(
        "only the first process reads the saved step",
        "ai-toolkit, BaseSDTrainProcess.py",
        SAVING,
        "self.step, self.splits = saved.step, ",
        "self.step, self.splits = saved.step if self.accelerator.is_main_process else 0, ",
        ("tests/recipes/test_processes.py::test_two_processes_are_the_run_that_one_process_is",),
    ),
    Fault(
        "previews leave the network in evaluation mode",
        "diffusers #13895: drawing changes the network that trains",
        *("train/samples.py", "                module.training = was_training\n", "                pass\n"),
        (f"{UNIT}test_previews.py::test_the_training_feels_nothing",),
    ),
    Fault(
        "the cache does not look at the crop",
        "kohya sd-scripts #2269: resolutions are mixed",
        *("data/latent_cache.py", "self.sha256, self.width, self.height, self.flip)", "self.sha256, self.flip)"),
        (f"{UNIT}test_encoding.py::test_what_changes_is_a_miss_and_nothing_else",),
    ),
    Fault(
        "the cache does not look at the text encoder",
        "kohya sd-scripts #2276, for captions",
        "train/encode.py",
        'return model.fingerprints["text_encoder"] + model.fingerprints["tokenizer"]',
        'return model.fingerprints["tokenizer"]',
        (f"{UNIT}test_encoding.py::test_what_changes_is_a_miss_and_nothing_else",),
    ),
    Fault(
        "two CPU processes are two runs",
        "accelerate without ACCELERATE_USE_CPU",
        "train/device.py",
        "Accelerator(cpu=True) if everywhere > 1 and not torch.cuda.is_available() else Accelerator()",
        "Accelerator()",
        ("tests/recipes/test_processes.py::test_two_processes_are_the_run_that_one_process_is",),
    ),
    Fault(
        "noise is added after the last step",
        "labml ddpm: 1.3 grey levels of it stay on every picture",
        *(f"{DDPM}samplers.py", "if i == 0 or self.noise_scale == 0:", "if self.noise_scale == 0:"),
        (f"{UNIT}test_ddpm_samplers.py::test_contract_a_point_is_found_from_anywhere",),
    ),
    Fault(
        "few steps take the variances of the long chain",
        "diffusers #2076, pure noise; tutorials that skip timesteps",
        *(f"{DDPM}samplers.py", "Schedule(1.0 - abar / before)", "Schedule(schedule.betas[list(kept)])"),
        (f"{UNIT}test_ddpm_samplers.py::test_11_a_short_chain_keeps_the_noise_levels_it_visits",),
    ),
    Fault(
        "x_0 is clipped and eps left as it was",
        "many DDIM samplers: the two no longer make x_t",
        f"{DDPM}prediction.py",
        "replace(self, x0=x0, eps=diffusion.eps_from_x0(self.schedule, self.xt, x0, self.t))",
        "replace(self, x0=x0)",
        (f"{UNIT}test_ddpm_samplers.py::test_10_the_two_samplers_draw_the_same",),
    ),
    Fault(
        "the bound in the hybrid loss is a thousand times too weak",
        "lucidrains learned_gaussian_diffusion.py: 0.001 on one term instead of on all T",
        *(f"{DDPM}elbo.py", "HYBRID_WEIGHT * T * variational_term(", "HYBRID_WEIGHT * variational_term("),
        (f"{UNIT}test_ddpm_elbo.py::test_19_the_bound_does_not_reach_the_mean_in_hybrid",),
    ),
    Fault(
        "the two edges of the discretised decoder are swapped",
        "lecture slides that copy eq. 13 of DDPM",
        f"{DDPM}elbo.py",
        "log_ndtr((HALF_BIN - centre) * scale), log_ndtr((centre + HALF_BIN) * scale)",
        "log_ndtr((centre + HALF_BIN) * scale), log_ndtr((HALF_BIN - centre) * scale)",
        (f"{UNIT}test_ddpm_elbo.py::test_14_the_bins_sum_to_one",),
    ),
    Fault(
        "a divergence in the bound takes the step's own abar for the one before",
        "an index off by one: samples stay good, only the sum tells",
        f"{DDPM}elbo.py",
        "true_log_variance = gather(schedule.posterior_log_variance, i, like=x0)",
        "true_log_variance = gather(schedule.posterior_log_variance.roll(1), i, like=x0)",
        (f"{UNIT}test_ddpm_elbo.py::test_06_the_bound_is_the_entropy",),
    ),
)
