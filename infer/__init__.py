"""Generation: images from a model and a prompt, comparisons, evaluation, the studio."""
