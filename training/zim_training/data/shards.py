"""SA1B-Matte shards: tars of pictures, 8-bit PNG mattes as crops, and a byte index.

A sample of a shard is three members, readable by webdataset: ``sa_1.jpg`` (the picture as SA-1B has
it; optional), ``sa_1.mattes`` (all mattes' PNGs, one after another: a tar member each would
cost more than many mattes) and ``sa_1.json``::

    {"width": W, "height": H, "source": "sa_000000.tar", "mattes": [
      {"ann_id": 7, "crop": [x, y, w, h], "offset": 0, "nbytes": 512, "flags": [], "soft": 0.04}]}

Alpha is value / 255, zero outside the crop. Beside ``NAME.tar`` lie ``NAME.index.jsonl`` (for every
sample the byte ranges inside the tar) and, written last, ``NAME.done.json``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.errors import ConfigError, ImageError, OutputError, reason
from zim.images import load_image
from zim.output import atomic_write, encode_alpha

DONE, INDEX = ".done.json", ".index.jsonl"


@dataclass(frozen=True)
class CroppedMatte:
    """A matte as a crop: alpha h x w in [0, 1] at ``x, y`` of the picture, and what is known."""

    ann_id: int
    x: int
    y: int
    alpha: NDArray[Any]
    flags: tuple[str, ...] = ()


class ShardWriter:
    """Writes one shard under a temporary name; ``close`` makes it appear."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` (ends in ``.tar``) for writing.

        Raises:
            OutputError: the folder cannot be written.
        """
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.index: list[dict[str, Any]] = []
        self.mattes = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._raw = self.temporary.open("wb")
            self._tar = tarfile.TarFile(fileobj=self._raw, mode="w", format=tarfile.USTAR_FORMAT)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error

    def add(
        self, stem: str, size: tuple[int, int], source: str, mattes: list[CroppedMatte], jpeg: bytes
    ) -> None:
        """Append a picture and its mattes.

        Raises:
            OutputError: the disk is full or the file cannot be written.
        """
        blob, rows = bytearray(), []
        for matte in mattes:
            data = encode_alpha(matte.alpha)
            height, width = matte.alpha.shape
            rows.append(
                {
                    "ann_id": matte.ann_id,
                    "crop": [matte.x, matte.y, width, height],
                    "offset": len(blob),
                    "nbytes": len(data),
                    "flags": list(matte.flags),
                    "soft": round(float(((matte.alpha > 0.02) & (matte.alpha < 0.98)).mean()), 4),
                }
            )
            blob += data
        meta = {"width": size[1], "height": size[0], "source": source, "mattes": rows}
        entry: dict[str, Any] = {"key": stem, "mattes": len(rows)}
        for suffix, data in (("jpg", jpeg), ("mattes", bytes(blob)), ("json", _json(meta))):
            if data:
                entry[suffix] = [self._member(f"{stem}.{suffix}", data), len(data)]
        self.index.append(entry)
        self.mattes += len(rows)

    def _member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size, info.mtime = len(data), 0  # no clock: a shard is a pure function of its input
        try:
            self._tar.addfile(info, io.BytesIO(data))
        except OSError as error:
            self.abandon()
            raise OutputError(
                f"{self.path} cannot be written: {error.strerror or error}; free space and start "
                "again, finished shards are kept"
            ) from error
        return self._tar.offset - -(-len(data) // 512) * 512

    def close(self, report: dict[str, Any]) -> dict[str, Any]:
        """Finish: tar, index, then the marker with ``report`` and the hashes of both.

        Raises:
            OutputError: the disk is full.
        """
        try:
            self._tar.close()
            self._raw.flush()
            os.fsync(self._raw.fileno())
            self._raw.close()
            hashes = {"sha256": sha256(self.temporary)}
            index = b"".join(_json(e) for e in self.index)
            hashes["index_sha256"] = hashlib.sha256(index).hexdigest()
            atomic_write(self.path.with_suffix(INDEX), index)
            self.temporary.replace(self.path)
        except OSError as error:
            self.abandon()
            if isinstance(error, OutputError):
                raise
            raise OutputError(
                f"{self.path} cannot be written: {error.strerror or error}; free space and start "
                "again, finished shards are kept"
            ) from error
        done = report | {"images": len(self.index), "mattes": self.mattes} | hashes
        atomic_write(self.path.with_suffix(DONE), json.dumps(done, indent=1).encode() + b"\n")
        return done

    def abandon(self) -> None:
        """Remove the temporary file."""
        with contextlib.suppress(OSError):
            self._raw.close()
        self.temporary.unlink(missing_ok=True)


def _json(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Sample:
    """A picture of a shard with its mattes' descriptions, decoded on demand.

    Attributes:
        key: name of the picture.
        meta: the JSON.
        jpeg: bytes of the picture.
        blob: the mattes' PNGs.
        tar: the shard, for messages.
    """

    key: str
    meta: dict[str, Any]
    jpeg: bytes
    blob: bytes
    tar: Path = Path()

    def image(self) -> NDArray[np.uint8]:
        """Decode the picture, H x W x 3 RGB uint8.

        Raises:
            ImageError: it is damaged.
        """
        try:
            return load_image(self.jpeg).rgb
        except ImageError as error:
            raise ImageError(
                f"{self.tar}: picture {self.key} is damaged ({reason(error)}); convert it again"
            ) from error

    def alpha(self, number: int) -> NDArray[np.float32]:
        """Decode a matte at the picture's size, H x W float32 in [0, 1].

        Raises:
            ImageError: the PNG is damaged or lies outside the picture.
        """
        try:
            row = self.meta["mattes"][number]
            data = np.frombuffer(self.blob, np.uint8, row["nbytes"], row["offset"])
            crop = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
            x, y, width, height = row["crop"]
            full = np.zeros((self.meta["height"], self.meta["width"]), np.float32)
            place = full[y : y + height, x : x + width]
            if crop is None or crop.shape != place.shape or crop.dtype != np.uint8:
                raise ValueError(f"matte {row['ann_id']}")
        except (ValueError, LookupError, TypeError, cv2.error) as error:
            raise ImageError(
                f"{self.tar}: {self.key} is damaged ({reason(error)}); convert it again"
            ) from error
        np.multiply(crop, np.float32(1 / 255), out=place)
        return full


def finished(folder: Path) -> list[Path]:
    """List the tars of a folder's finished shards.

    Raises:
        ConfigError: there is none.
    """
    tars = [p.with_name(p.name.removesuffix(DONE) + ".tar") for p in folder.glob(f"*{DONE}")]
    if not tars:
        raise ConfigError(
            f"{folder} holds no finished shard; make some with: "
            "zim-train convert TAR... --output DIR"
        )
    return sorted(tars)


def read_index(tar: Path) -> list[dict[str, Any]]:
    """Read a shard's index: the rows of pictures that are there and have mattes.

    Raises:
        ConfigError: shard or index are missing, or do not fit each other.
    """
    try:
        lines = tar.with_suffix(INDEX).read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        end = tar.stat().st_size
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{tar}: shard or index missing or damaged ({reason(error)}); convert it again"
        ) from error
    for row in rows:
        if row["json"][0] + row["json"][1] > end:
            raise ConfigError(f"{tar} is shorter than its index says; convert it again")
    return [row for row in rows if row["mattes"] and "jpg" in row]


def read_range(tar: Path, row: dict[str, Any]) -> Sample:
    """Read a picture with its mattes, encoded, by its row of the index.

    Raises:
        ConfigError: the shard cannot be read or is damaged there.
    """
    try:
        with tar.open("rb") as file:
            jpeg, blob, text = (_range(file, row[k]) for k in ("jpg", "mattes", "json"))
        return Sample(row["key"], json.loads(text), jpeg, blob, tar)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{tar}: {row.get('key')} is damaged ({reason(error)}); convert it again"
        ) from error


def _range(file: BinaryIO, span: list[int]) -> bytes:
    return os.pread(file.fileno(), span[1], span[0])


class ShardSet:
    """All finished shards of a folder, as one list of pictures read by byte range."""

    def __init__(self, folder: Path) -> None:
        """Read the indices.

        Raises:
            ConfigError: no finished shard, or an index that does not fit its shard.
        """
        self.folder = folder
        self.entries = [(tar, row) for tar in finished(folder) for row in read_index(tar)]
        if not self.entries:
            raise ConfigError(
                f"{folder} holds no picture with mattes; convert tars that have some, with pictures"
            )

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.entries)

    def read(self, number: int) -> Sample:
        """Read a picture with its mattes, encoded."""
        return read_range(*self.entries[number])
