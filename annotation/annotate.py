"""Caption images with Label Studio: start the server, push images, pull captions, export a dataset.

python annotation/annotate.py start --images FOLDER
"""

import sys

from annotation.cli import dispatch
from data.errors import run_entry


def main() -> int:
    return dispatch(sys.argv[1:])


if __name__ == "__main__":
    run_entry(main)
