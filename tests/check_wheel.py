"""Run as a script with a folder of built distributions: is every module in the wheel?"""

import sys
import zipfile
from pathlib import Path

root = Path(__file__).parents[1]
expected = {p.relative_to(root).as_posix() for p in (root / "rlearly").rglob("*.py")}
for kind in ("*.yaml", "*.j2", "*.css", "*.csv"):
    expected |= {p.relative_to(root).as_posix() for p in (root / "rlearly").rglob(kind)}
expected.add("rlearly/py.typed")
(wheel,) = Path(sys.argv[1]).glob("*.whl")
held = set(zipfile.ZipFile(wheel).namelist())
missing = sorted(expected - held)
stray = sorted(n for n in held if n.split("/")[0] not in {"rlearly"} and ".dist-info/" not in n)
if missing or stray:
    sys.exit(f"{wheel.name} lacks {missing} and holds {stray}")
print(f"{wheel.name} holds all {len(expected)} files of the package")
