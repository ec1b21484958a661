"""What is trained: the whole U-Net, or a low-rank adapter on it."""
