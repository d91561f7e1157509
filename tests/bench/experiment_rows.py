"""Artificial rows of experiments."""

from bench.experiments.page import COLUMNS


def row(setting, seed, **values):
    columns = [column for column, *_ in COLUMNS]
    numbers = {"tokens_per_image": 47, "gmacs": 0.02, **values}
    cells = {column: str(numbers.get(column, 0.5)) for column in columns}
    texts = dict.fromkeys(("machine", "torch", "commit", "test_images", "train_images"), "x")
    return {"setting": setting, "about": "what it is", "seed": str(seed), **texts, **cells}


def rows(**settings):
    """Three seeds of each setting; a value is the same number for each, or a list of three."""
    return {
        name.replace("_", "-"): [
            row(name, seed, **{key: value[seed] if isinstance(value, list) else value for key, value in values.items()})
            for seed in range(3)
        ]
        for name, values in settings.items()
    }
