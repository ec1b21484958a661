"""ENTRY: a page on this machine where pictures are drawn from words and scribbles, compared, and found again.

python infer/studio.py                                   then open http://127.0.0.1:7860
python infer/studio.py --model runs/0003-lora-r16 --port 8000
python infer/studio.py --host 0.0.0.0 --password-file ~/.studio-password     for others in the house as well

Programs made for AUTOMATIC1111's interface work with it: POST /sdapi/v1/txt2img and the like.
"""

from data.errors import run_entry
from data.options import parse
from infer.studios.options import StudioOptions


def main() -> int:
    options = parse(StudioOptions, prog="studio.py", description=__doc__ or "", aliases={"--listen": "--host"})
    from infer.studios import serving

    return serving.run(options)


if __name__ == "__main__":
    run_entry(main)
