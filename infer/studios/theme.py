"""How the page looks: colours of paper, ink and madder for the library's own parts; the rest is in page.css."""

from __future__ import annotations

from pathlib import Path

from infer.studios.widgets import gr

HERE = Path(__file__).parent
CSS, SCRIPT = HERE / "page.css", HERE / "page.js"
FONT = ("ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")  # of the reader's machine
CODE = ("ui-monospace", "SFMono-Regular", "Menlo", "monospace")


def theme() -> gr.themes.Base:
    """The library's variables, for light and dark, out of the page's own."""
    look = {
        "body_background_fill": "var(--paper)", "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--faint)",
        "background_fill_primary": "var(--sheet)", "background_fill_secondary": "var(--paper)",
        "block_background_fill": "transparent", "block_border_width": "0px", "block_shadow": "none",
        "block_padding": "0px", "block_label_background_fill": "transparent", "block_title_text_color": "var(--ink)",
        "block_title_text_weight": "600", "block_info_text_color": "var(--faint)",
        "border_color_primary": "var(--line)",
        "border_color_accent": "var(--accent)", "color_accent": "var(--accent)", "color_accent_soft": "var(--wash)",
        "input_background_fill": "var(--field)", "input_background_fill_focus": "var(--field)",
        "input_border_color": "var(--line)", "input_border_color_focus": "var(--accent)", "input_shadow": "none",
        "input_shadow_focus": "none", "input_placeholder_color": "var(--faint)", "input_radius": "10px",
        "button_primary_background_fill": "var(--accent)", "button_primary_background_fill_hover": "var(--accent-deep)",
        "button_primary_text_color": "var(--on-accent)", "button_primary_border_color": "transparent",
        "button_secondary_background_fill": "var(--sheet)", "button_secondary_text_color": "var(--ink)",
        "button_secondary_background_fill_hover": "var(--wash)", "button_secondary_border_color": "var(--line)",
        "button_border_width": "1px", "slider_color": "var(--accent)", "panel_background_fill": "transparent",
        "checkbox_background_color": "var(--field)", "checkbox_background_color_selected": "var(--accent)",
        "checkbox_border_color": "var(--line)", "checkbox_border_color_selected": "var(--accent)",
        "checkbox_label_background_fill": "transparent", "checkbox_label_background_fill_selected": "var(--wash)",
        "checkbox_label_background_fill_hover": "var(--wash)", "checkbox_label_text_color": "var(--ink)",
        "checkbox_label_text_color_selected": "var(--ink)", "checkbox_label_border_color": "var(--line)",
    }  # fmt: skip
    both = look | {f"{name}_dark": value for name, value in look.items()}
    found = gr.themes.Base(font=FONT, font_mono=CODE)
    known = gr.themes.Base.set.__code__.co_varnames
    return found.set(**{name: value for name, value in both.items() if name in known})


def head() -> str:
    """The page's script, inside the page: nothing is loaded for it."""
    return f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>"


def css() -> str:
    return CSS.read_text(encoding="utf-8")
