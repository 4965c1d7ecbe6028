"""Personal data masked in running text: e-mail addresses, IP addresses, phone numbers.

Masks are words in brackets, so that a model learns the shape of a text and not the person. IP addresses that
belong to nobody (loopback, net masks) stay; so do version numbers, dates, sums and section numbers.
"""

import ipaddress
import re
from collections import Counter
from dataclasses import dataclass

EMAIL, IP, PHONE = "[email]", "[ip address]", "[phone]"

_EMAIL = re.compile(
    r"(?<![\w.+%-])[^\W_][\w.+%'-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}(?![\w-])"
    r"|(?<![\w.+%-])[\w.+%-]{1,64}@\[?\d{1,3}(?:\.\d{1,3}){3}\]?"
)
_HIDDEN_EMAIL = re.compile(  # name [at] host [dot] org
    r"(?i)(?<![\w.+-])[\w.+-]+ ?[\[({<] ?(?:at|@) ?[\])}>] ?[\w-]+"
    r"(?: ?(?:[\[({<] ?(?:dot|\.) ?[\])}>]|\.) ?[\w-]+)+"
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:])")
_VERSION = re.compile(
    r"(?i)(?:\bversions?|\bv|\bver\.?|\breleases?|\bsections?|\bchapter|\bupdate|\bbuild)[ :=-]*$"
)
_PHONE = re.compile(
    r"(?<![\w+./-])(?:"
    r"\+\d{1,3}(?:[ .\u00a0/-]?\(?\d{1,5}\)?){2,6}"  # +44 20 7946 0123
    r"|00\d{1,3}[ -](?:\(?\d{1,5}\)?[ -]?){2,5}\d{2,5}"  # 0044 20 ...
    r"|(?:1[ .-])?\(\d{3}\) ?\d{3}[ .-]\d{4}"  # (202) 555-0123
    r"|(?:1[ .-])?\d{3}[.-]\d{3}[.-]\d{4}"  # 202-555-0123
    r"|\(0\d{2,5}\) ?\d{2,}(?:[ -]?\d{2,})*"  # (0161) 496 0123
    r")(?![\w]|[.-]\d)"
)
_LABELLED = re.compile(
    r"(?i)((?:tele)?phone|tel|call|fax|mobile)(\.?:? (?:us (?:at|on) |at |no\.? ?)?)(\+?\d[\d ()./-]{5,18}\d)"
)


@dataclass(frozen=True)
class PiiConfig:
    """What is masked."""

    email: bool = True
    ip: bool = True
    phone: bool = True


def mask(text: str, config: PiiConfig) -> tuple[str, Counter[str]]:
    """The text with personal data masked, and how many of each kind were."""
    counts: Counter[str] = Counter()
    if config.email and ("@" in text or "at" in text.lower()):
        text, n = _EMAIL.subn(EMAIL, text)
        text, m = _HIDDEN_EMAIL.subn(EMAIL, text)
        counts["email"] += n + m
    if config.ip:
        text = _IPV4.sub(lambda found: _masked_ip(found, counts), text)
        if "::" in text or text.count(":") > 3:
            text = _IPV6.sub(lambda found: _masked_ip(found, counts), text)
    if config.phone:
        text = _PHONE.sub(lambda found: _masked_phone(found, counts), text)
        text = _LABELLED.sub(lambda found: _labelled(found, counts), text)
    return text, +counts


def _masked_ip(found: re.Match, counts: Counter[str]) -> str:
    try:
        address = ipaddress.ip_address(found[0])
    except ValueError:
        return found[0]
    digits = sum(map(str.isdigit, found[0]))
    if address.is_loopback or address.is_unspecified or found[0].startswith("255.") or digits < 2:
        return found[0]
    if address.version == 4 and _VERSION.search(found.string, max(0, found.start() - 14), found.start()):
        return found[0]
    counts["ip"] += 1
    return IP


def _masked_phone(found: re.Match, counts: Counter[str]) -> str:
    if not 7 <= sum(map(str.isdigit, found[0])) <= 15:
        return found[0]
    counts["phone"] += 1
    return PHONE


def _labelled(found: re.Match, counts: Counter[str]) -> str:
    if not 7 <= sum(map(str.isdigit, found[3])) <= 15:
        return found[0]
    counts["phone"] += 1
    return found[1] + found[2] + PHONE
