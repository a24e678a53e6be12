"""Which addresses and refs git ever gets to see."""

from __future__ import annotations

import pytest

from ai_task_orchestra.errors import StepInputError
from flows.clients.git_url import check_ref, check_url, is_full_commit, may_be_commit

PROTOCOLS = ("https", "ssh")
ALL = (*PROTOCOLS, "file", "http", "git")


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("https://example.org/a/b.git", "https"),
        ("https://example.org:8443/a", "https"),
        ("ssh://git@example.org:22/a/b.git", "ssh"),
        ("ssh://example.org/~me/b", "ssh"),
        ("git@example.org:a/b.git", "ssh"),
    ],
)
def test_ordinary_addresses_are_taken_as_they_are(url: str, protocol: str) -> None:
    checked = check_url(url, PROTOCOLS)

    assert (checked.url, checked.protocol, checked.local) == (url, protocol, None)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ext::sh -c touch% /tmp/x",
        "ext::sh",
        "fd::17",
        "foo::bar",
        "::x",
        "--upload-pack=touch x",
        "-u./x",
        "ssh://-oProxyCommand=touch/x",
        "ssh://git@-oProxyCommand=x/y",
        "ssh://-l@host/x",
        "git@-host:x",
        "-x@host:y",
        "git@host:-x",
        "host:path",
        "../x",
        "x",
        "~/x",
        "C:\\x",
        "https://",
        "https:///x",
        "https://user:password@example.org/x",
        "https://token@example.org/x",
        "https://@example.org/x",
        "ssh://git:password@example.org/x",
        "https://example.org/x%0ahost=evil",
        "https://example.org/x%0D",
        "https://example.org/x%00",
        "https://example.org/x\n",
        "https://example.org/x y",
        "https://example.org/x\u2028",
        "https://example.org/x#y",
        "https://example.org:port/x",
        "https://[::1/x",
        "https://example.org/" + "x" * 2048,
        "file://host/x",
        "file://x",
        "file:///a/../b",
        "file:///a/%2e%2e/b",
        "/a/../b",
        "git+ssh://host/x",
        "ssh+git://host/x",
    ],
)
def test_an_address_that_git_could_read_otherwise_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(StepInputError, match=r"^repo: ") as caught:
        check_url(url, ALL)

    assert len(url) < 10 or url not in str(caught.value)


@pytest.mark.parametrize("url", ["http://h/x", "git://h/x", "file:///x", "/x", "ftp://h/x"])
def test_a_protocol_must_be_allowed(url: str) -> None:
    with pytest.raises(StepInputError, match="ORCHESTRA_GIT_PROTOCOLS"):
        check_url(url, PROTOCOLS)
    with pytest.raises(StepInputError):
        check_url("git@example.org:x", ("https",))


def test_local_folders_are_reached_as_file_urls_where_file_is_allowed() -> None:
    path = check_url("/srv/a b".replace(" ", "%20"), ALL)
    url = check_url("file:///srv/a%20b", ALL)

    assert (path.url, path.local) == ("file:///srv/a%2520b", "/srv/a%20b")
    assert (url.url, url.local) == ("file:///srv/a%20b", "/srv/a b")


def test_a_scheme_in_capitals_is_the_same_scheme() -> None:
    assert check_url("HTTPS://Example.org/A", PROTOCOLS).url == "https://Example.org/A"


@pytest.mark.parametrize("ref", ["main", "feature/x-1", "v1.0", "a" * 40, "7f3c2a1", "ü", "x@y", "a-"])
def test_names_that_git_allows_are_allowed(ref: str) -> None:
    assert check_ref(ref) == ref


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "--x",
        "-b",
        "a..b",
        "@",
        "@{-1}",
        "a@{1}",
        "HEAD",
        "HEAD:x",
        "HEAD~1",
        "a^",
        "a b",
        "a\n",
        "a\x00",
        "a?",
        "a*",
        "a[b",
        "a\\b",
        "/a",
        "a/",
        "a//b",
        ".a",
        "a/.b",
        "a.lock",
        "a.lock/b",
        "a.",
        "x" * 256,
    ],
)
def test_names_that_git_reads_as_something_else_are_refused(ref: str) -> None:
    with pytest.raises(StepInputError, match=r"^branch: "):
        check_ref(ref)


def test_commit_ids_are_told_from_names() -> None:
    assert may_be_commit("7f3c2a1")
    assert not may_be_commit("7f3c2")
    assert not may_be_commit("main123")
    assert is_full_commit("a" * 40)
    assert is_full_commit("A" * 64)
    assert not is_full_commit("a" * 41)
