"""Names of the folders of a training or test set."""

# Those under which timm also looks for a split.
_TRAIN, _TEST = ("train", "training"), ("val", "valid", "validation", "eval", "test")


def split_folders(train: bool, name: str | None = None) -> list[str]:
    """Lists the names under which the folder of a split is looked for, in this order.

    Args:
        train: True for the training split, False for the test split.
        name: name to look for first; None for the usual ones only.

    Returns:
        Names, each once.
    """
    first = [] if name is None else [name]
    return list(dict.fromkeys([*first, *(_TRAIN if train else _TEST)]))
