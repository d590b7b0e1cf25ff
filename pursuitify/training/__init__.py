"""Fine-tuning, on Hugging Face accelerate: one call, resumable to the last digit."""

from pursuitify.training.config import Config
from pursuitify.training.evaluation import Score, evaluate
from pursuitify.training.finetune import finetune
from pursuitify.training.interrupt import Interrupted
from pursuitify.training.objectives import reconstruction
from pursuitify.training.recipes import RECIPES, recipe
from pursuitify.training.result import Result

__all__ = [
    "RECIPES",
    "Config",
    "Interrupted",
    "Result",
    "Score",
    "evaluate",
    "finetune",
    "recipe",
    "reconstruction",
]
