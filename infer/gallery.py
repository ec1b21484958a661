"""ENTRY: find images by what they show and by how they were made.

python infer/gallery.py                                          index outputs/, list the newest
python infer/gallery.py --search "a blue fridge steps:>20 model:pocket star:"
python infer/gallery.py --star outputs/0003/00001-43.png
python infer/gallery.py --search "fire" --page gallery.html      one HTML file, to keep or send
"""

from data.cli import parse
from data.errors import run_entry
from infer.config import GalleryOptions


def main() -> int:
    options = parse(GalleryOptions, prog="gallery.py", description=__doc__ or "", aliases={"-s": "--search"})
    from infer import galleries

    return galleries.run_gallery(options)


if __name__ == "__main__":
    run_entry(main)
