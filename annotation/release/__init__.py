"""Answers made into a data set: join, export, lock, differences between releases."""
