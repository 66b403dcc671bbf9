"""Bounded reading of untrusted files: regular files only, limited size, plain finite values, limited rows and columns.

Every reader raises ValueError or OSError with a short reason, to which the caller adds the name of the file.
"""

import csv
import io
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from saebench.text import clean

# Largest sizes in bytes: of a record (typically 0.1 MB), of a task or training file, of a table of texts or units.
RECORD_BYTES = 64 * 2**20
TOML_BYTES = 2**20
TABLE_BYTES = 2**29
# Largest number of cells and bytes of an unpacked table: compressed zeros are small only on disk.
CELLS = 2**27
COLUMNS = 10_000
UNPACKED_BYTES = 2**31
# Largest number of cells of a metric's units: a million latents with a hundred sums each.
UNIT_CELLS = 10**8
# For JSON and TOML: levels, values, characters of a text, and the largest number (its cube is finite).
DEPTH = 32
VALUES = 2_000_000
TEXT = 2**20
LARGEST = 1e100
LARGEST_WHOLE = 2**63 - 1
# tomllib needs memory that grows with the square of a dotted key's parts.
_DOTTED = re.compile(r"""(?:(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){64}""")


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a regular file, or of a link to one, of at most `limit` bytes.

    Raises:
        OSError: missing, unreadable, or a pipe, device or folder.
        ValueError: larger than `limit`, or an impossible file name.
    """
    # Without O_NONBLOCK, opening a pipe blocks until it has a writer.
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError("no regular file")
        data = b"" if about.st_size > limit else file.read(limit + 1)
    if about.st_size > limit or len(data) > limit:
        raise ValueError(f"{max(about.st_size, len(data)):,} bytes, more than the {limit:,} that are read")
    return data


def require_regular(path: Path) -> None:
    """Raise OSError unless a path is a regular file or a link to one."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("no regular file")


def read_json(path: Path, limit: int = RECORD_BYTES) -> Any:
    """Read a JSON file of plain, finite, bounded values.

    Raises:
        OSError: see `read_bytes`.
        ValueError: other content.
    """
    try:
        body = json.loads(read_bytes(path, limit).decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {DEPTH} levels") from error
    require_plain(body)
    return body


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of plain, finite, bounded values.

    Raises:
        OSError: see `read_bytes`.
        ValueError: other content.
    """
    text = read_bytes(path, TOML_BYTES).decode("utf-8")
    if _DOTTED.search(text):
        raise ValueError("a key of more than 64 parts")
    try:
        body = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {DEPTH} levels") from error
    require_plain(body)
    return body


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no finite number")


def require_plain(body: Any) -> None:
    """Raise ValueError unless JSON or TOML values are finite, bounded in depth, count and size, and valid UTF-8."""
    left, todo = VALUES, [(body, 1)]
    while todo:
        value, level = todo.pop()
        left -= 1
        if left < 0:
            raise ValueError(f"more than {VALUES:,} values")
        if isinstance(value, dict | list):
            if level > DEPTH:
                raise ValueError(f"nested deeper than {DEPTH} levels")
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            todo += [(item, level + 1) for item in inner]
        elif isinstance(value, str):
            _require_text(value)
        elif isinstance(value, int):
            if abs(value) > LARGEST_WHOLE:
                raise ValueError("a whole number beyond 2^63")
        elif isinstance(value, float) and not (math.isfinite(value) and abs(value) <= LARGEST):
            raise ValueError(f"the number {value!r}; numbers are finite, and at most {LARGEST:g}")


def _require_text(text: str) -> None:
    if len(text) > TEXT:
        raise ValueError(f"text of {len(text):,} characters; at most {TEXT:,} are read")
    if "\0" in text:
        raise ValueError("text with a NUL character")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("text with half a character (a lone surrogate)")


def read_table(path: Path) -> pd.DataFrame:
    """Read an uncompressed .parquet, .jsonl or .csv file; only an empty cell is missing.

    Raises:
        OSError: see `read_bytes`.
        ValueError: no such table, or too many cells.
    """
    data = read_bytes(path, TABLE_BYTES)
    if path.suffix == ".parquet":
        return parquet_frame(data)
    if path.suffix not in (".csv", ".tsv", ".txt", ".jsonl"):
        raise ValueError(f"'{path.suffix}' is not among the kinds of table that are read: .csv, .jsonl, .parquet")
    data.decode("utf-8")  # pandas guesses another encoding from a byte order mark
    try:
        if path.suffix == ".jsonl":
            return pd.read_json(io.BytesIO(data), lines=True, dtype=False, convert_dates=False)
        columns = _columns(data)
        # "NA" and "None" may be labels.
        frame = pd.read_csv(
            io.BytesIO(data), encoding="utf-8", keep_default_na=False, na_values=[""], nrows=CELLS // columns + 1
        )
    except (RecursionError, MemoryError, OverflowError, csv.Error) as error:
        raise ValueError(f"no table ({type(error).__name__})") from error
    _require_cells(len(frame), columns)
    return frame


def _columns(data: bytes) -> int:
    """Raise ValueError if a .csv file has too many columns or cells, counted from its first row and its lines."""
    first = next(csv.reader(io.StringIO(data[:TEXT].decode("utf-8", errors="ignore"))), [])
    _require_cells(0, len(first))
    return max(1, len(first))


def _require_cells(rows: int, columns: int) -> None:
    if columns > COLUMNS:
        raise ValueError(f"{columns:,} columns; at most {COLUMNS:,} are read")
    if rows * columns > CELLS:
        raise ValueError(f"{rows:,} rows of {columns} columns; at most {CELLS:,} cells are read")


def parquet_frame(data: bytes, cells: int = CELLS) -> pd.DataFrame:
    """The flat columns of a parquet file; its metadata must state a bounded size before a column is read.

    Raises:
        ValueError: no parquet file, nested columns, or too large unpacked.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        rows, columns = file.metadata.num_rows, file.metadata.num_columns
        _require_cells(rows, columns)
        if rows * columns > cells:
            raise ValueError(f"{rows:,} rows of {columns} columns; at most {cells:,} cells are read")
        require_unpacked(file.metadata)
        schema = file.schema_arrow
        if nested := [field.name for field in schema if pa.types.is_nested(field.type)]:
            raise ValueError(f"column {nested[0]!r} holds lists or tables; only flat columns are read")
        texts = [field.name for field in schema if _is_text(field.type)]
        # A dictionary column may repeat one long text a million times: count before expanding it.
        table = pq.ParquetFile(io.BytesIO(data), read_dictionary=texts).read()
        if sum(_text_bytes(table.column(name)) for name in texts) > UNPACKED_BYTES:
            raise ValueError(f"more than {UNPACKED_BYTES:,} bytes of text unpacked")
        frame: pd.DataFrame = table.cast(schema).to_pandas()
    except ValueError:  # raised above, and by most of pyarrow
        raise
    except Exception as error:  # on a damaged file pyarrow's decoders raise many types
        raise ValueError(f"no parquet file ({type(error).__name__}: {error})") from error
    return frame


def require_unpacked(about: pq.FileMetaData) -> None:
    """Raise ValueError where a parquet file's metadata states more bytes, or values in lists, than are read."""
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    values = sum(group.column(i).num_values for group in groups for i in range(group.num_columns))
    if max(8 * values, sum(group.total_byte_size for group in groups)) > UNPACKED_BYTES:
        raise ValueError(f"more than {UNPACKED_BYTES:,} bytes once it is unpacked")


def _is_text(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    )


def _text_bytes(column: pa.ChunkedArray) -> int:
    """The bytes of a text column after its dictionary is expanded."""
    total = 0
    for chunk in column.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            lengths = pc.binary_length(chunk.dictionary).cast(pa.int64())
            total += pc.sum(pc.take(lengths, chunk.indices)).as_py() or 0
        else:
            total += chunk.nbytes
    return total


def require_numbers(frame: pd.DataFrame, columns: Iterable[str | None]) -> None:
    """Raise ValueError unless units have ids and these columns, with finite numbers only.

    The decisions of an area over several classes lie in columns `name_0`, `name_1`, ….
    """
    wanted = sorted({c for c in columns if c is not None})
    for name in ("unit_id", "cluster_id", *wanted):
        if name not in frame and f"{name}_0" not in frame:
            raise ValueError(f"column {clean(name)} is missing")
    classes = [f"{name}_{c}" for name in wanted if name not in frame for c in range(len(frame.columns))]
    for name in [column for column in (*wanted, *classes) if column in frame]:
        if frame[name].dtype.kind not in "biuf" or not (frame[name].abs() <= LARGEST).all():
            raise ValueError(f"column {clean(name)} has values other than finite numbers")
