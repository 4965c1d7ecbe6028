"""What a site allows: robots.txt by RFC 9309, and the robots directives of single pages.

robots.txt: 2xx counts as written; 4xx means everything is allowed; 5xx and silence mean nothing is, for now.
At most 500 KiB of it are read.
"""

import re
from collections.abc import Iterable

from protego import Protego

MAX_BYTES = 500 << 10
_DIRECTIVES = {"none", "noindex", "nofollow", "index", "follow", "all"}


class Robots:
    """The rules of one host for one agent."""

    def __init__(self, text: str, agent: str) -> None:
        self._rules = Protego.parse(text[:MAX_BYTES])
        self._agent = agent
        self.crawl_delay = float(self._rules.crawl_delay(agent) or 0.0)
        self.sitemaps = list(self._rules.sitemaps)

    def allows(self, url: str) -> bool:
        """Whether the agent may ask for `url`."""
        return self._rules.can_fetch(url, self._agent)


def page_directives(header_values: Iterable[str], meta_values: Iterable[str], agent: str) -> set[str]:
    """{"noindex", "nofollow"} as X-Robots-Tag headers and <meta name=robots> contents say.

    A header may begin with the name of the agent it is meant for ("googlebot: noindex").
    """
    found: set[str] = set()
    for value in header_values:
        name, colon, rest = value.partition(":")
        if colon and name.strip().lower() not in _DIRECTIVES and "," not in name:
            if name.strip().lower() not in (agent.lower(), "*"):
                continue
            value = rest
        found |= _words(value)
    for value in meta_values:
        found |= _words(value)
    if "none" in found:
        found |= {"noindex", "nofollow"}
    return found & {"noindex", "nofollow"}


def _words(value: str) -> set[str]:
    return set(re.split(r"[\s,;]+", value.lower()))
