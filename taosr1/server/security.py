"""Who may ask: the API key, the Host header, other origins' pages (CORS), and the headers that protect the page."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass

from taosr1.server.errors import Refused

_LOCAL_HOST = re.compile(r"(localhost\.?|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?")
_KEY = re.compile(r"[!-~]{8,}")
# Of every reply. Nothing but the page's own files runs in the page, and no other page may frame it.
PROTECTION = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


@dataclass(frozen=True)
class Access:
    """key: that clients send as `Authorization: Bearer KEY`, "" for none. cors: the one other origin whose pages may
    ask, "" for none. loopback: whether the server listens on this machine alone."""

    key: str = ""
    cors: str = ""
    loopback: bool = True

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Raises: Refused with 403 where a page of another origin may be asking under a name of its own.

        DNS rebinding: a page at evil.example gives its name the address 127.0.0.1 and then reads our replies. The
        browser still sends Host: evil.example. With a key the page would have to know it, so names are free then.
        """
        host = headers.get("host", "")
        if self.loopback and not self.key and host and not _LOCAL_HOST.fullmatch(host):
            raise Refused(
                403,
                "the Host header names another machine than localhost, which this server is private to: behind a proxy "
                "let it send 'Host: localhost' (nginx: proxy_set_header Host localhost), or start with --api-key",
            )

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Raises: Refused with 401 where a key is needed and another one or none is sent."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Takes the same time whatever is equal in the two, so that a key cannot be found byte by byte.
        same = hmac.compare_digest(given.strip().encode(), self.key.encode())
        if self.key and not (same and scheme.lower() == "bearer"):
            what = "this key is not the server's" if given else "a key is needed"
            raise Refused(401, f"{what}: send the header 'Authorization: Bearer KEY'")

    def cors_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """What lets a page of the allowed origin read a reply; for any other origin nothing."""
        if not self.cors:
            return {}
        if headers.get("origin") != self.cors:
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": self.cors,
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Request-Id",
            "Access-Control-Expose-Headers": "X-Request-Id, Retry-After",
            "Access-Control-Max-Age": "600",
        }


def access_problems(key: str, cors: str) -> list[tuple[bool, str]]:
    """Problems for `taosr1.runtime.cli.check`. The key itself is never shown."""
    return [
        (bool(key) and not _KEY.fullmatch(key),
         "--api-key (or TAOSR1_API_KEY) has to be 8 or more visible ASCII characters, without spaces: "
         "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"),
        (bool(cors) and not _ORIGIN.fullmatch(cors),
         f"--cors is {cors!r}, expected one origin as browsers send it, such as https://shop.example or "
         "http://localhost:3000"),
    ]  # fmt: skip
