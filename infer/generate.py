"""ENTRY: python infer/generate.py --prompt "a water type fridge" draws pictures and one labelled sheet of them."""

from data.errors import run_entry
from infer import config


def main() -> int:
    """Read the options, then draw; torch is imported only once they are known to be good."""
    options = config.read_options()
    from infer import generation

    return generation.run_generation(options)


if __name__ == "__main__":
    run_entry(main)
