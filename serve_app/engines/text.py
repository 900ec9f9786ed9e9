"""Text from files that nobody vouches for, made fit for answers and logs."""

_MAX_CHARACTERS = 100


def printable(text: object) -> str:
    """Return `text` with escapes for what is not printable, cut to 100 characters."""
    whole = str(text)
    cut = whole[:_MAX_CHARACTERS]
    escaped = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in cut)
    if len(whole) <= _MAX_CHARACTERS and len(escaped) <= _MAX_CHARACTERS:
        return escaped
    return f"{escaped[: _MAX_CHARACTERS - 3]}..."
