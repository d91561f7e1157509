"""Images for benches, pictures and training: folders of images, and the photographs of the scikit-image wheel."""

from msvit.data.images import IMAGE_SUFFIXES, list_images, load_images, read_image
from msvit.data.samples import SAMPLE_NAMES, sample_photographs

__all__ = ["IMAGE_SUFFIXES", "SAMPLE_NAMES", "list_images", "load_images", "read_image", "sample_photographs"]
