"""The dashboard as one page: markup, style and script put together, and the policy that nothing else may run.

No build step, nothing from elsewhere: style and script are known to the browser by their hashes. What the
page shows is `overview`'s.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files


@cache
def page() -> tuple[bytes, bytes]:
    """The page, and its Content-Security-Policy."""
    folder = files("consort.gateway")
    html = folder.joinpath("dashboard.html").read_text(encoding="utf-8")
    hashes = {}
    for name in ("dashboard.css", "dashboard.js"):
        text = folder.joinpath(name).read_text(encoding="utf-8")
        mark = f"/* {name} */"
        assert html.count(mark) == 1, "the markup names where each part stands"
        html = html.replace(mark, text)
        hashes[name] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes['dashboard.css']}'; "
        f"script-src 'sha256-{hashes['dashboard.js']}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.encode(), policy.encode()
