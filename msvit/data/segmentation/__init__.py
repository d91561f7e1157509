"""Images with a class for every pixel: pairs of folders, ADE20K's layout, their augmentation, and digits with masks."""

from msvit.data.segmentation.ade20k import ADE20K_CLASSES
from msvit.data.segmentation.augmentation import Augmentation
from msvit.data.segmentation.digits import DigitSegmentation
from msvit.data.segmentation.label_files import IGNORE_INDEX
from msvit.data.segmentation.layouts import CLASSES_FILE, Split, find_split, read_class_names
from msvit.data.segmentation.paired_folders import PairedFolders

__all__ = [
    "ADE20K_CLASSES",
    "CLASSES_FILE",
    "IGNORE_INDEX",
    "Augmentation",
    "DigitSegmentation",
    "PairedFolders",
    "Split",
    "find_split",
    "read_class_names",
]
