"""Data sets by name, as images in [0, 1] with a validation part of their own."""

from pursuitify.data.datasets import NAMES, load_data
from pursuitify.data.images import Data, Images, Normalised, augmentation

__all__ = ["NAMES", "Data", "Images", "Normalised", "augmentation", "load_data"]
