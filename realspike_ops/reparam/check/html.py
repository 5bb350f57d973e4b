"""Tables as notebooks show them."""

from collections.abc import Iterable, Sequence


def table(
    caption: str, titles: Sequence[str], rows: "Iterable[Sequence[str]]", below: str = ""
) -> str:
    """Return a table whose first column is text and whose others are numbers."""
    from html import escape  # whose names of characters take a while to import

    def row(cells: Sequence[str], tag: str) -> str:
        sides = ("left", *("right",) * (len(cells) - 1))
        return "".join(
            f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>'
            for side, cell in zip(sides, cells, strict=True)
        )

    body = "".join(f"<tr>{row(cells, 'td')}</tr>\n" for cells in rows)
    return (
        f'<table><caption style="text-align:left">{escape(caption)}</caption>\n'
        f"<thead><tr>{row(titles, 'th')}</tr></thead>\n<tbody>{body}</tbody></table>\n"
        + (f"<p>{escape(below)}</p>\n" if below else "")
    )
