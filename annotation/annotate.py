"""Pictures to captions with Label Studio: start the server, push pictures, pull what people wrote, make a data set.

python annotation/annotate.py start --images FOLDER
"""

import sys

from annotation.commands import dispatch
from data.errors import run_entry


def main() -> int:
    return dispatch(sys.argv[1:])


if __name__ == "__main__":
    run_entry(main)
