"""The host's apt sources, read as values and turned into sources of the guests' Debian. Pure: text in, text out.

No mirror is named in this code: whoever installed the host chose one, and its neighbour releases lie beside it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

RELEASE = "bookworm"
"""The guests' Debian (12), whatever the host's."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

_SUITE = re.compile(
    r"(?:bullseye|bookworm|trixie|forky|sid|oldoldstable|oldstable|stable|testing|unstable)"
    r"(?P<pocket>|-updates|-security|/updates)"
)
_KEPT_OPTIONS = re.compile(
    r"Acquire::(?:https?::.*(?:Proxy|CaInfo|CaPath|SslCert|SslKey|Verify|Timeout).*"
    r"|Check-Valid-Until|Check-Date|Max-ValidTime|Retries|ForceIPv[46])"
)


@dataclass(frozen=True)
class Source:
    """One archive and suite, `main` only. `signed_by` and `trusted` as the host has them."""

    uri: str
    suite: str
    signed_by: str = ""
    trusted: bool = False

    def line(self) -> str:
        """As sources.list(5) has it on one line."""
        options = [f"signed-by={self.signed_by}"] if self.signed_by else []
        options += ["trusted=yes"] if self.trusted else []
        return " ".join(["deb", *([f"[{' '.join(options)}]"] if options else []), self.uri, self.suite, "main"])


def read_one_line(text: str) -> list[Source]:
    """sources.list(5), one-line style."""
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[(?P<options>[^]]*)]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<rest>[^#]*)", line)
        if match and "main" in match["rest"].split():
            options = dict(part.split("=", 1) for part in (match["options"] or "").split() if "=" in part)
            found.append(
                Source(
                    match["uri"], match["suite"], _key(options.get("signed-by", "")), options.get("trusted") == "yes"
                )
            )
    return found


def read_deb822(text: str) -> list[Source]:
    """sources.list(5), deb822 style (*.sources)."""
    found = []
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", kept):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in {"no", "false", "0"}:
            continue
        if "deb" in fields.get("types", "").split() and "main" in fields.get("components", "").split():
            key, trusted = _key(fields.get("signed-by", "")), fields.get("trusted", "no").lower() == "yes"
            found += [
                Source(uri, suite, key, trusted)
                for uri in fields.get("uris", "").split()
                for suite in fields.get("suites", "").split()
            ]
    return found


def _key(value: str) -> str:
    """A key ring's path; keys written into the file itself, and fingerprints, are left to apt's own trusted keys."""
    return value if value.startswith("/") and " " not in value else ""


def for_release(sources: Iterable[Source]) -> list[Source]:
    """Those that are Debian's, with the suite replaced by the guests' release; backports and others' archives fall out.
    An empty answer: the host is no Debian."""
    found: list[Source] = []
    for source in sources:
        match = _SUITE.fullmatch(source.suite)
        if match:
            pocket = match["pocket"].replace("/updates", "-security")
            one = Source(source.uri, RELEASE + pocket, source.signed_by, source.trusted)
            if one not in found:
                found.append(one)
    return sorted(found, key=lambda one: one.suite)


def for_guest(sources: Iterable[Source]) -> str:
    """A *.sources file for the guest: without credentials, and without what only the host can reach."""
    stanzas = [
        f"Types: deb\nURIs: {re.sub(r'//[^/@]*@', '//', source.uri)}\nSuites: {source.suite}\nComponents: main\n"
        + (f"Trusted: yes\nSigned-By: {KEYRING}\n" if source.trusted else f"Signed-By: {KEYRING}\n")
        for source in sources
        if source.uri.startswith(("http://", "https://"))
    ]
    return "\n".join(stanzas)


def kept_options(dump: str) -> list[str]:
    """Of `apt-config dump`: how this host reaches archives (proxies, certificates, dates), as mmdebstrap's --aptopt."""
    lines = (line.strip().rstrip(";") for line in dump.splitlines())
    return [line for line in lines if _KEPT_OPTIONS.fullmatch(line.split(" ", 1)[0]) and not line.endswith(' ""')]
