"""ENTRY: python infer/compare.py --x "model=base,tuned" --y "seed=1..3" lays pictures side by side, each drawn once."""

from data.errors import run_entry
from infer.comparing import options


def main() -> int:
    """Read the options, then draw; torch is imported only once they are known to be good."""
    asked = options.read()
    from infer.comparing import job

    return job.run(asked)


if __name__ == "__main__":
    run_entry(main)
