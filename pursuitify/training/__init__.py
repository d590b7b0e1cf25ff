"""Fine-tuning, on Hugging Face accelerate: one call, resumable to the last digit."""

from pursuitify.training.config import RECIPES, Config, recipe
from pursuitify.training.evaluation import Score, evaluate
from pursuitify.training.finetune import Result, finetune
from pursuitify.training.loop import Interrupted
from pursuitify.training.objectives import reconstruction

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
