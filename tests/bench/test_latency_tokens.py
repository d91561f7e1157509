"""Numbers of tokens on the command line, and the image sizes that have them."""

import pytest

from bench.vit.tokens import image_size, parse_tokens

SQUARES = [64, 100, 144, 196, 256, 324, 400, 484, 576]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("64..576", SQUARES),
        ("60..200", [64, 100, 144, 196]),
        ("98", [98]),
        ("196,64,100", [64, 100, 196]),
        ("98,64..144", [64, 98, 100, 144]),
        ("64..64", [64]),
        ("1..4", [4]),
    ],
)
def test_tokens(text, tokens):
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "--tokens: expected numbers such as 196"),
        ("many", "--tokens: expected numbers such as 196"),
        ("64..", "--tokens: expected numbers such as 196"),
        ("64...576", "--tokens: expected numbers such as 196"),
        ("1.5", "--tokens: expected numbers such as 196"),
        ("64,,100", "--tokens: expected numbers such as 196"),
        ("0", "--tokens: expected numbers from 1 upwards"),
        ("-4", "--tokens: expected numbers from 1 upwards"),
        ("576..64", "ranges with the smaller first"),
        ("65..99", "65..99 contains no square of an even number"),
    ],
)
def test_wrong_tokens(text, words):
    with pytest.raises(ValueError, match=words):
        parse_tokens(text)


@pytest.mark.parametrize(("tokens", "size"), [(49, 224), (196, 224), (197, 384), (576, 384)])
def test_image_size(tokens, size):
    assert image_size(tokens) == size


@pytest.mark.parametrize(("tokens", "words"), [(48, "at least 49 at 224 px"), (577, "at most 576 at 384 px")])
def test_impossible_numbers_of_tokens(tokens, words):
    with pytest.raises(ValueError, match=words):
        image_size(tokens)
