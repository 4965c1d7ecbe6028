"""Stop strings in a text that comes in pieces."""

from collections.abc import Sequence


class StopStrings:
    """Cuts a text that comes in pieces before the first of some strings."""

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held, self.found = stops, "", False
        self.after = ""  # what followed the string in the piece that completed it

    def push(self, text: str) -> str:
        """What can be shown: all that is no beginning of a stop string."""
        if not self._stops:
            return text
        if self.found:
            return ""
        self._held += text
        found = [(i, -len(stop)) for stop in self._stops if (i := self._held.find(stop)) >= 0]
        if found:
            at, length = min(found)
            self.found, self.after = True, self._held[at - length :]
            return self._held[:at]
        keep = max(
            (n for s in self._stops for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0
        )
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        return "" if self.found else self._held
