"""Images for benches, pictures and training: folders, the photographs of scikit-image, and digits on these."""

from msvit.data.digits import DigitsOnPhotographs
from msvit.data.images import IMAGE_SUFFIXES, list_images, load_images, read_image
from msvit.data.samples import SAMPLE_NAMES, sample_photographs

__all__ = [
    "IMAGE_SUFFIXES",
    "SAMPLE_NAMES",
    "DigitsOnPhotographs",
    "list_images",
    "load_images",
    "read_image",
    "sample_photographs",
]
