"""Data sets by name, as images in [0, 1] with a validation part of their own."""

from pursuitify.data.images import Data, Images, Normalised, augmentation
from pursuitify.data.load_data import NAMES, load_data

__all__ = ["NAMES", "Data", "Images", "Normalised", "augmentation", "load_data"]
