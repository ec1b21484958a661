"""What a run leaves: each format is written, loaded back and compared before it gets its name."""
