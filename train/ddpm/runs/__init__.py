"""Behind fit.py, sample.py, compare.py and score.py: the algorithm of train/ddpm with the trainer's run folders."""
