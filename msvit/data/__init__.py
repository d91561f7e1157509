"""Images for benchmarks, figures and training: folders, scikit-image's photographs, and digits on photographs."""

from msvit.data.decoding import MAX_PIXELS, MEAN_COLOUR, UnreadableImageError, decode_image
from msvit.data.digits import DigitsOnPhotographs
from msvit.data.images import IMAGE_SUFFIXES, list_images, load_images, read_image
from msvit.data.samples import SAMPLE_NAMES, sample_photographs

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "MEAN_COLOUR",
    "SAMPLE_NAMES",
    "DigitsOnPhotographs",
    "UnreadableImageError",
    "decode_image",
    "list_images",
    "load_images",
    "read_image",
    "sample_photographs",
]
