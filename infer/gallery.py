"""ENTRY: find pictures by what they show and by how they were made.

python infer/gallery.py                                          index outputs/, list the newest
python infer/gallery.py --search "a blue fridge steps:>20 model:pocket star:"
python infer/gallery.py --star outputs/0003/00001-43.png
python infer/gallery.py --search "fire" --page gallery.html      a page of its own, to keep or send
"""

from data.errors import run_entry
from data.options import parse
from infer.galleries.options import GalleryOptions


def main() -> int:
    options = parse(GalleryOptions, prog="gallery.py", description=__doc__ or "", aliases={"-s": "--search"})
    from infer.galleries import job

    return job.run(options)


if __name__ == "__main__":
    run_entry(main)
