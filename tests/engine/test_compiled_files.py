"""Compiled code that numba keeps on disk is that of all files it was made of."""

import hashlib
import re
from pathlib import Path

import vrga

ENGINE = Path(vrga.__file__).parent / "engine"
OTHERS = ("lanes.py", "page_sums.py")


def test_the_file_that_numba_looks_at_changes_with_those_compiled_into_it():
    whole = b"".join((ENGINE / name).read_bytes() for name in OTHERS)
    (kept,) = re.findall(r'^COMPILED_OF = "(.*)"$', (ENGINE / "page_rows.py").read_text(), re.M)
    assert kept == hashlib.sha256(whole).hexdigest()[:16], "put the new one into page_rows.py"
