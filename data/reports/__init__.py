"""HTML reports: self-contained pages from jinja2 templates; nothing is loaded from elsewhere, all text is escaped."""

import base64
import hashlib
import io
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

TEMPLATES = Path(__file__).parent / "templates"
OPTIONAL = {"subtitle": "", "style": "", "script": "", "sections": ()}  # of base.html
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(template: str | Path, **context: Any) -> str:
    """Fill a template: a name in data/reports/templates, or the path of a template elsewhere that may extend these."""
    path = TEMPLATES / template
    return printable_text(environment(path.parent).get_template(path.name).render(OPTIONAL | context))


def macro(name: str, **context: Any) -> Markup:
    """A block of templates/blocks.html, filled."""
    module: Any = environment(TEMPLATES).get_template("blocks.html").module
    return Markup(printable_text(getattr(module, name)(**context)))


@cache
def environment(folder: Path) -> Environment:
    env = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["png"] = data_uri
    env.globals["content_policy"] = content_policy
    return env


def printable_text(text: str) -> str:
    """Bytes of a file name that are not UTF-8 become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def data_uri(image: Image.Image) -> str:
    """An image as a PNG inside the page."""
    content = io.BytesIO()
    image.convert("RGB").save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def content_policy(script: str) -> Markup:
    """A page may show what is in it, and run its own script, which is named by its hash."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Markup(f"{POLICY}; script-src 'sha256-{digest}'" if script else POLICY)
