"""Numbers of tokens on the command line, and the image sizes that have them."""

PATCH, COARSE = 16, 32  # pixels
# Image size in pixels, and the most tokens for which it is used: all fine.
IMAGE_SIZES = {224: 196, 384: 576}


def image_size(tokens: int) -> int:
    """Side in pixels of the images for which MSViT-S makes `tokens` tokens.

    Raises:
        ValueError: more tokens than all fine, or fewer than all coarse.
    """
    for size, most in IMAGE_SIZES.items():
        fewest = (size // COARSE) ** 2
        if tokens <= most:
            if tokens < fewest:
                raise ValueError(f"{tokens} tokens: MSViT-S has at least {fewest} at {size} px, all coarse")
            return size
    raise ValueError(f"{tokens} tokens: MSViT-S has at most {max(IMAGE_SIZES.values())} at {max(IMAGE_SIZES)} px")


def parse_tokens(text: str) -> list[int]:
    """Numbers of tokens: "196", "64,100,196", or "64..576" for the squares of the even numbers in that range.

    The sides are even, because regions of two patches must divide the image.

    Raises:
        ValueError: anything else.
    """
    tokens: set[int] = set()
    for part in text.split(","):
        first, dots, last = part.partition("..")
        try:
            start, end = int(first), int(last) if dots else int(first)
        except ValueError:
            raise ValueError(
                f"--tokens: expected numbers such as 196, 64,100,196 or a range such as 64..576, got {text!r}"
            ) from None
        if start < 1 or end < start:
            raise ValueError(f"--tokens: expected numbers from 1 upwards, ranges with the smaller first, got {text!r}")
        squares = [side**2 for side in range(2, int(end**0.5) + 1, 2) if side**2 >= start]
        if dots and not squares:
            raise ValueError(f"--tokens: {part} contains no square of an even number")
        tokens.update(squares if dots else [start])
    return sorted(tokens)


def reference_tokens(wanted: int) -> int:
    """Tokens of the dense reference for speed-ups with `wanted` tokens: all fine, at MSViT's image size."""
    try:
        return IMAGE_SIZES[image_size(wanted)]
    except ValueError:
        return min(IMAGE_SIZES.values(), key=lambda most: abs(most - wanted))
