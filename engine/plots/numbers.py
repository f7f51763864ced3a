"""Numbers as text that stays narrow however large they are."""


def score_in_words(value: float) -> str:
    """A score to two decimals, fewer where it is large: at most six characters up to 100,000.

    Example:
        >>> [score_in_words(value) for value in (0.1234, -12.34, 1234.5)]
        ['0.12', '-12.3', '1234']
    """
    for limit, form in ((9.995, ".2f"), (99.95, ".1f"), (99999.5, ".0f")):
        if abs(value) < limit:
            return format(value, form)
    return f"{value:.0e}"


def norm_in_words(value: float) -> str:
    """A norm to three decimals, fewer where it is large: at most eight characters.

    Example:
        >>> [norm_in_words(value) for value in (0.0421, 33.96, 12345.6, 1.5e9)]
        ['0.042', '33.960', '12345.6', '1.50e+09']
    """
    for limit, form in ((999.9995, ".3f"), (99999.95, ".1f")):
        if abs(value) < limit:
            return format(value, form)
    return f"{value:.2e}"
