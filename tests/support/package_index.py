"""Small packages and a package index of them, for tests of the set-up."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

# A build backend that lies in the source itself, so that building downloads nothing.
BACKEND = """\
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    wheel_name, info = "{stem}-py3-none-any.whl", "{stem}.dist-info/"
    with zipfile.ZipFile(f"{{folder}}/{{wheel_name}}", "w") as wheel:
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return wheel_name
build_editable = build_wheel
"""
BUILD_SYSTEM = '[build-system]\nrequires = ["never-released"]\nbuild-backend = "backend"\nbackend-path = ["."]\n'


class PackageIndex:
    """A simple index as a folder. Releases are written into it with `wheel` and `source`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def url(self) -> str:
        return self._folder.as_uri()

    def wheel(
        self, name: str, version: str, requires: Iterable[str] = (), scripts: Mapping[str, str] | None = None
    ) -> str:
        """Release a wheel that holds one module; return its entry of a lock file."""
        stem = f"{name.replace('-', '_')}-{version}"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: extra\n"
        metadata += "".join(f"Requires-Dist: {line}\n" for line in requires)
        files = {
            f"{name.replace('-', '_')}.py": f"VERSION = {version!r}\n",
            f"{stem}.dist-info/METADATA": metadata,
            f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            **{f"{stem}.data/scripts/{script}": text for script, text in (scripts or {}).items()},
        }
        record = "".join(f"{path},,\n" for path in [*files, f"{stem}.dist-info/RECORD"])
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for path, text in (files | {f"{stem}.dist-info/RECORD": record}).items():
                member = zipfile.ZipInfo(path)  # of a fixed time: a second release of the same is the same file
                member.external_attr = 0o100755 << 16  # a regular file that may be run
                archive.writestr(member, text)
        return self._release(name, version, f"{stem}-py3-none-any.whl", content.getvalue())

    def source(self, name: str, version: str) -> str:
        """Release a source archive alone; return its entry of a lock file."""
        stem = f"{name.replace('-', '_')}-{version}"
        files = {
            "pyproject.toml": BUILD_SYSTEM,
            "backend.py": BACKEND.format(stem=stem, name=name, version=version),
            "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        }
        content = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=content, mode="wb", mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w") as archive,
        ):
            for path, text in files.items():
                member = tarfile.TarInfo(f"{stem}/{path}")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
        return self._release(name, version, f"{stem}.tar.gz", content.getvalue())

    def withdraw(self, name: str) -> None:
        """Remove every file of the package; its name stays listed."""
        for path in (self._folder / name).iterdir():
            path.unlink()

    def _release(self, name: str, version: str, file: str, content: bytes) -> str:
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
        links = [f'<a href="{quote(path.name)}">{path.name}</a>' for path in folder.iterdir() if path.suffix != ".html"]
        (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>")
        kind = "" if file.endswith(".whl") else ", no wheel"
        return (
            f"{name}=={version} \\\n    --hash=sha256:{sha256(content).hexdigest()}\n    # {len(content)} bytes{kind}\n"
        )
