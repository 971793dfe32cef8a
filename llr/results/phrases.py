"""Parts of English sentences: plurals and articles."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A number and its noun.

    Example:
        >>> from llr.results.phrases import counted
        >>> counted(1, "sample"), counted(1200, "sample")
        ('1 sample', '1,200 samples')
        >>> counted(3, "branch")
        '3 branches'
    """
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def there_are(count: int, noun: str) -> str:
    """The start of a sentence about a number.

    Example:
        >>> from llr.results.phrases import there_are
        >>> there_are(1, "sample"), there_are(2, "sample")
        ('there is 1 sample', 'there are 2 samples')
    """
    return f"there {'is' if count == 1 else 'are'} {counted(count, noun)}"


def a(noun: str) -> str:
    """A noun with its indefinite article.

    Example:
        >>> from llr.results.phrases import a
        >>> a("tanh network"), a("erf network")
        ('a tanh network', 'an erf network')
    """
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
