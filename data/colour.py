"""Colour profiles: a picture saved as Display P3, Adobe RGB or a press' CMYK gets the colours that its owner saw."""

import io

from PIL import Image, ImageCms


def to_srgb(picture: Image.Image, rgb: Image.Image) -> tuple[Image.Image, list[str]]:
    """Convert to sRGB by the profile embedded in `picture`, and say so; `rgb` is the picture without that knowledge.

    Grey profiles differ from sRGB in little but gamma and are left alone. One that cannot be read changes nothing.
    """
    content = picture.info.get("icc_profile")
    if not content:
        return rgb, []
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        name = " ".join(ImageCms.getProfileDescription(profile).split())
        assert isinstance(profile.profile, ImageCms.core.CmsProfile)
        space = profile.profile.xcolor_space.strip()
        source = picture if space == picture.mode == "CMYK" else rgb if space == "RGB" else None
        if source is None or "srgb" in name.lower():
            return rgb, []
        converted = ImageCms.profileToProfile(source, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return rgb, ["its colour profile cannot be read"]
    assert converted is not None, "profileToProfile returns None only when asked to work in place"
    return converted, [f"colours are converted from {name} to sRGB"]
