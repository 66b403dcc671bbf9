"""The frame of every HTML page that saebench writes: one file that needs no other, in the reader's own colours."""

from html import escape


def html_page(title: str, style: str, body: str) -> str:
    """A whole page.

    Args:
        title: plain text.
        style: a style sheet.
        body: HTML, with whatever came from outside escaped.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
