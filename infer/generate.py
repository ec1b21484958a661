"""ENTRY: python infer/generate.py --prompt "a water type fridge" generates images and a labelled contact sheet."""

from data.errors import run_entry
from infer import config


def main() -> int:
    """Read the options first: a wrong flag is reported before torch is imported."""
    options = config.read_options()
    from infer import generation

    return generation.run_generation(options)


if __name__ == "__main__":
    run_entry(main)
