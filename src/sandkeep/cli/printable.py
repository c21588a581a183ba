"""What a sandbox or a server says, fit for a terminal."""


def printable(text: str) -> str:
    """Without what a terminal would obey: names and reasons may come from a sandbox."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
