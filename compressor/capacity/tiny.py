"""The same recipe at the smallest size: to see that it runs through, not to learn anything of it."""

from __future__ import annotations

from typing import Any

from compressor.errors import UsageError
from compressor.recipe import Recipe
from compressor.sections import SettingSection

WIDTHS, SEEDS, EPOCHS = 2, 2, 2
TRAINING, TEST = 200, 300
MOST: dict[str, int] = {
    "train_samples": TRAINING,
    "test_samples": TEST,
    "ablation_samples": TEST // 2,
    "chunk_samples": TRAINING,
    "max_rows": 10 * TEST,
    "orders": 1,
    "chunks": 3,
    "regressions": 2,
}
"""What a recipe asks for more of, it gets so much of."""


def tiny(recipe: Recipe) -> Recipe:
    """`recipe` with its two least widths, two seeds, two epochs on 200 samples, and 300 test samples.

    Every setting, measure and null of it still runs, in seconds. Raises UsageError for a recipe without a `capacity`
    section.
    """
    if recipe.capacity is None:
        raise UsageError("recipe", "no `capacity` section", "one", "add widths to climb.")
    ladder = recipe.capacity
    fewer: dict[str, Any] = {name: _least(getattr(ladder, name), most) for name, most in MOST.items()}
    fewer |= {
        "widths": ladder.widths[:WIDTHS],
        "seeds": ladder.seeds[:SEEDS],
        "learning_rates": ladder.learning_rates[:1],
        "settings": {name: _short(setting) for name, setting in ladder.settings.items()},
    }
    train = recipe.train and recipe.train.model_copy(update={"epochs": _least(recipe.train.epochs, EPOCHS)})
    return recipe.model_copy(update={"capacity": ladder.model_copy(update=fewer), "train": train})


def _short(setting: SettingSection) -> SettingSection:
    train = {key: min(int(value), EPOCHS) if key == "epochs" else value for key, value in setting.train.items()}
    samples = setting.train_samples and min(setting.train_samples, TRAINING)
    return setting.model_copy(update={"train": train, "train_samples": samples})


def _least(value: int | None, most: int) -> int:
    return most if value is None else min(value, most)
