"""ENTRY: a web page on this machine to generate, compare and find images, with AUTOMATIC1111's API.

python infer/studio.py                                   then open http://127.0.0.1:7860
python infer/studio.py --model runs/0003-lora-r16 --port 8000
python infer/studio.py --host 0.0.0.0 --password-file ~/.studio-password     for other people on the network too

Clients of AUTOMATIC1111's API work with it: POST /sdapi/v1/txt2img and more.
"""

import os

from data.atomic_io import cache_root
from data.cli import parse
from data.errors import run_entry
from infer.config import StudioOptions
from infer.web.auth import listen, read_password


def main() -> int:
    options = parse(StudioOptions, prog="studio.py", description=__doc__ or "", aliases={"--listen": "--host"})
    password = read_password(options)
    with listen(options.host, options.port) as listener:
        print("starting ...", flush=True)
        temporary = str(cache_root() / "studio")  # uploads; not in the folder that all users of the machine share
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": temporary}
        from infer.web import app

        return app.serve(options, password, listener, load_backend)


def load_backend(options, models):
    """torch takes seconds to import: load it once the page is open."""
    from infer.web.gallery import Gallery
    from infer.web.service import Backend
    from infer.web.worker import Worker

    return Backend(Worker(options, models), Gallery(options.judge, models))


if __name__ == "__main__":
    run_entry(main)
