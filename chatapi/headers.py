"""The headers on every answer that tell a browser what it may do with it.

Nothing is imported here, so that what answers in the application's place can send them too.
"""

from __future__ import annotations

API_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""An answer that is not meant to be a page does nothing at all when it is made one."""

DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self';"
    " connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""What Swagger UI needs: our own files, calls of this API, and the pictures within its stylesheet."""

SECURITY_HEADERS = {
    "Content-Security-Policy": API_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    # It holds for what a page embeds, and not for what it fetches by CORS: origins that are listed are let in by that.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Origin-Agent-Cluster": "?1",
    "Referrer-Policy": "no-referrer",
    # Browsers take no notice of it where the answer came without TLS (RFC 6797, 8.1).
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    "X-Download-Options": "noopen",
    "X-Frame-Options": "DENY",
    "X-Permitted-Cross-Domain-Policies": "none",
    # The filters it is about could themselves be turned against a page.
    "X-XSS-Protection": "0",
}
"""Those that Helmet sets, the policy and the framing more strictly."""
