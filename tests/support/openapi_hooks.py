"""What schemathesis sends where /openapi.json asks for images: real ones, or a form or zip of them."""

import io
import zipfile

import schemathesis
from hypothesis import strategies as st
from images import encoded, texture

_IMAGES = st.sampled_from([encoded(texture(seed, 48), form) for seed in range(3) for form in ("PNG", "JPEG")])


def _zipped(images: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, image in enumerate(images):
            archive.writestr(f"{number}", image)
    return buffer.getvalue()


for _kind in ("image/png", "image/jpeg", "image/tiff", "application/octet-stream"):
    schemathesis.openapi.media_type(_kind, _IMAGES)
schemathesis.openapi.media_type("application/zip", st.lists(_IMAGES, min_size=1, max_size=4).map(_zipped))
