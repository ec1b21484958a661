"""Networks that answer (x_t, t, labels): a course's two, a tutorial's, the paper's and diffusers' UNet2DModel."""
