"""Text fit to be shown: no credentials of any URL, wherever they stand in it."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote


def masked(text: str) -> str:
    """`text` without the credentials of any URL in it."""
    text = re.sub(r"(?<=://)\S*@", "***@", text)
    return re.sub(r"(?i)((?:password|passwd|pwd|token|secret)=)[^&\s'\"]+", r"\1***", text)


def secrets_of(uri: str) -> set[str]:
    """The passwords and tokens that go with a tracking `uri`, to be blotted out of any text."""
    # An error may quote a password without the URL around it.
    user = re.search(r"://(\S*)@", uri)
    password = user[1].partition(":")[2] if user else ""
    variables = {os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("PASSWORD", "TOKEN")}
    return {password, unquote(password), *variables} - {""}
