"""What every page of ours is held to."""

from __future__ import annotations

from html.parser import HTMLParser


class Tags(HTMLParser):
    """Every element is closed where it should be, and what it refers to."""

    EMPTY = {"meta", "img", "br", "line", "path", "use", "rect", "circle", "stop"}

    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "xlink:href"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def whole(text: str) -> bool:
    """Every element is closed, no id is there twice, and nothing refers to the network or runs."""
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and len(tags.ids) == len(set(tags.ids))
    assert all(link.startswith(("data:", "#")) for link in tags.links)
    assert "url(http" not in text and "@import" not in text and "<script" not in text
    return True
