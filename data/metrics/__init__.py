"""Feature matrices in, numbers out: how far a set of drawn pictures is from real ones."""
