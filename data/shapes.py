"""Names for tensors and the legend of their axes, so that a signature tells its shapes.

B batch   C channels   H, W image height and width in pixels   h, w latent height and width
L text tokens   D width of a text state   T steps of the noise schedule
"""

from torch import Tensor

Images = Tensor  # (B, 3, H, W) in [-1, 1]
Latents = Tensor  # (B, C, h, w) scaled by the autoencoder's scaling_factor: about unit variance; C is 4 in SD v1
Moments = Tensor  # (B, 2C, h, w) mean and log-variance of the autoencoder's posterior, unscaled
Posterior = Tensor  # (B, 2C, h, w) mean and standard deviation of the autoencoder's posterior, unscaled
TextStates = Tensor  # (B, L, D) last hidden states of the text encoder
Timesteps = Tensor  # (B,) int64 in [0, T)
PerSample = Tensor  # (B,) one number a sample
Table = Tensor  # (T,) float64, one number a timestep
