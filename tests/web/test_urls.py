"""Addresses: one spelling, traps, public and private."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyengine.web import urls


@pytest.mark.parametrize(("link", "expected"), [
    ("HTTP://Example.ORG:80/a/./b/../c", "http://example.org/a/c"),
    ("http://example.org", "http://example.org/"),
    ("/x?b=2&a=1#part", "http://host:8080/x?a=1&b=2"),
    ("y?utm_source=m&q=1&fbclid=z", "http://host:8080/dir/y?q=1"),
    ("?sid=0123456789abcdef", "http://host:8080/dir/page"),
    ("/./a/%7euser", "http://host:8080/a/~user"),
    ("//other.org/z", "http://other.org/z"),
    ("/caf\u00e9", "http://host:8080/caf%C3%A9"),
    ("http://user:secret@example.org/", "http://example.org/"),
    ("http://b\u00fccher.example/", "http://xn--bcher-kva.example/"),
    ("http://[::1]:8000/a", "http://[::1]:8000/a"),
    ("/shop;jsessionid=12345678/cart", "http://host:8080/shop/cart"),
])  # fmt: skip
def test_one_spelling(link, expected):
    assert urls.canonical(link, "http://host:8080/dir/page") == expected


@pytest.mark.parametrize("link", [
    "mailto:a@b.c", "javascript:x()", "ftp://a/b", "file:///etc/passwd", "http://[broken/", "data:,x",
    "http://host:99999/", "http://" + "a" * 3000, "tel:+1",
])  # fmt: skip
def test_no_web_address(link):
    assert urls.canonical(link, "http://host/") is None


@given(st.text(max_size=60), st.sampled_from(["http://host/a/b?c=d", "https://[::1]/", "http://h.example"]))
def test_any_link_is_spelled_stably_or_refused(link, base):
    once = urls.canonical(link, base)
    assert once is None or urls.canonical(once) == once
    if once:
        assert once.startswith(("http://", "https://")) and "#" not in once and once.isascii()
        assert urls.origin(once).count("/") == 2
        urls.trap(once)
        urls.shape(once)


@pytest.mark.parametrize("path", [
    "/a/b/a/b/a/b", "/x/x/x/x", "/" + "/".join(map(str, range(30))),
    "/p?" + "&".join(f"k{i}=1" for i in range(9)),
])  # fmt: skip
def test_traps(path):
    assert urls.trap("http://host" + path)
    assert not urls.trap("http://host/2024/05/a-story-of-a-story.html?page=2")


@pytest.mark.parametrize("address", [
    "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1%eth0",
    "fc00::1", "::ffff:10.0.0.1", "2002:7f00:1::", "224.0.0.1", "100.64.0.1",
])  # fmt: skip
def test_private_addresses(address):
    assert not urls.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address):
    assert urls.is_public(address)
