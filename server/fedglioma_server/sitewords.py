"""Words that come from a site, as logs and records take them."""

LONGEST = 300


def site_words(text: str) -> str:
    """Return a text in one line of printable characters: a line break would forge the next line of a log."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split())[:LONGEST]
