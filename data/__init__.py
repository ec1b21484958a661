"""Words everyone shares, and pictures on their way to tensors."""
