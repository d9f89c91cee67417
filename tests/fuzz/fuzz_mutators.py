"""Mutate files: bytes of any kind, and the structure of JSON, TOML, XML, tables, Parquet, TIFF, tar, zip and others.

Every function takes a `random.Random` and the bytes of a valid file, and returns the bytes of a damaged one. Equal
states of the generator and equal bytes give equal results.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes], bytes]

# Texts that JSON, TOML and tables take as values; each once made some reader of ours or of others fail.
NUMBERS = (
    "0", "-1", "-0.0", "1e999", "-1e999", "1e308", "1e-320", "2147483648", "4294967296", "1099511627776", "-2147483649",
    "9223372036854775807", "9223372036854775808", "18446744073709551616", "1" + "0" * 40, "0.1", "255", "65536",
)  # fmt: skip
STRINGS = (
    "", " ", "\0", "../../x", "/etc/passwd", "a" * 5000, "é\u202e", "\ud800", "1e999", "nan", "null", "0000-00-00",
    "2019-13-45", "2019-04-01T00:00:00+99:99", "EPSG:0", "EPSG:99999999", "%s%n", "http://127.0.0.1:1/x", "x\ny", "<b>",
)  # fmt: skip
INTEGERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF)
DEPTH = 100_000


# --- bytes ---------------------------------------------------------------------------------


def flip(rng: Random, content: bytes, *, among: int | None = None) -> bytes:
    """Replace 1 to 8 single bits or bytes, of the first `among` bytes if given."""
    out = bytearray(content)
    for _ in range(rng.randint(1, 8) if out else 0):
        at = rng.randrange(min(len(out), among or len(out)))
        out[at] = out[at] ^ 1 << rng.randrange(8) if rng.random() < 0.5 else rng.randrange(256)
    return bytes(out)


def set_integer(rng: Random, content: bytes, *, among: int | None = None) -> bytes:
    """Overwrite 2, 4 or 8 bytes by a boundary value, as in a length field."""
    size = rng.choice((2, 4, 4, 8))
    if len(content) < size:
        return content
    at = rng.randrange(min(len(content), among or len(content)) - size + 1) if (among or size) >= size else 0
    value = rng.choice(INTEGERS) & ((1 << 8 * size) - 1)
    return content[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + content[at + size :]


def truncate(rng: Random, content: bytes) -> bytes:
    """Cut the end off."""
    return content[: rng.randrange(len(content) + 1)]


def splice(rng: Random, content: bytes) -> bytes:
    """Remove, repeat or insert a run of bytes."""
    first = rng.randrange(len(content) + 1)
    last = min(len(content), first + rng.choice((1, 4, 16, 64, 512)))
    run = rng.choice((b"", content[first:last] * 2, rng.randbytes(last - first + 1), b"\0" * 64, b"\xff" * 8))
    return content[:first] + run + content[last:]


def damage(rng: Random, content: bytes) -> bytes:
    """Apply one of the mutations of bytes."""
    return rng.choice((flip, set_integer, truncate, splice))(rng, content)


def header(among: int) -> Mutator:
    """Return a mutator that mostly leaves everything behind the first `among` bytes alone."""

    def mutate(rng: Random, content: bytes) -> bytes:
        for _ in range(rng.randint(1, 3)):
            how = rng.randrange(10)
            if how < 5:
                content = flip(rng, content, among=among)
            elif how < 8:
                content = set_integer(rng, content, among=among)
            else:
                content = damage(rng, content)
        return content

    return mutate


# --- texts ---------------------------------------------------------------------------------


def encode_wrongly(rng: Random, content: bytes) -> bytes:
    """Put bytes into a text that are not UTF-8, or write it in another encoding."""
    text = content.decode("utf-8", "replace")
    how = rng.randrange(4)
    if how == 0:
        at = rng.randrange(len(content) + 1)
        return content[:at] + rng.choice((b"\xe9", b"\xff\xfe", b"\xc3", b"\0")) + content[at:]
    if how == 1:
        return text.encode("utf-16")
    return b"\xef\xbb\xbf" + content if how == 2 else text.replace("a", "ä").encode("latin-1", "replace")


_DEEP, _TWIN, _RAW = "@deep@", "@twin@", "@raw@"


def mutate_json(rng: Random, content: bytes) -> bytes:
    """Change 1 to 3 values, keys or members of a JSON document; one in eight mutations is of bytes."""
    if rng.random() < 0.12:
        return encode_wrongly(rng, content) if rng.random() < 0.3 else damage(rng, content)
    document: Any = [json.loads(content)]
    for _ in range(rng.randint(1, 3)):
        _change(rng, document)
    indent = 1 if b"\n " in content else None
    text = json.dumps(document[0], indent=indent, ensure_ascii=rng.random() < 0.5)
    text = re.sub(rf'"{_RAW}([^"]*)"', r"\1", text).replace(_TWIN, "")
    kind = rng.choice(("[]", '{"a":}'))
    opening = "[" if kind == "[]" else '{"a":'
    text = text.replace(f'"{_DEEP}"', opening * DEPTH + "0" + kind[-1] * DEPTH)
    return text.encode("utf-8", "surrogatepass")


def _change(rng: Random, document: Any) -> None:
    """Change one place of a document of dicts and lists, chosen by a random walk downwards."""
    holder: Any = document
    key: Any = 0
    while isinstance(holder[key], (dict, list)) and holder[key] and (holder is document or rng.random() < 0.8):
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    how = rng.randrange(12)
    if how < 7 or holder is document:
        holder[key] = _value(rng, holder[key])
    elif how == 7:
        del holder[key]
    elif how == 8 and isinstance(holder, dict):
        holder[rng.choice(STRINGS[:8])] = holder.pop(key)
    elif how == 9 and isinstance(holder, dict):
        holder[f"{_TWIN}{key}"] = _value(rng, holder[key])
    elif isinstance(holder, list):
        holder[key : key + 1] = [holder[key]] * rng.choice((2, 3, 100))
    else:
        other = rng.choice(list(holder))
        holder[key], holder[other] = holder[other], holder[key]


def _value(rng: Random, value: Any) -> Any:
    """Return a value in place of another: often of its own type, else of any."""
    if isinstance(value, str) and rng.random() < 0.4:
        return value.replace(value[:2], rng.choice(STRINGS)) if value else "x"
    if isinstance(value, (int, float)) and rng.random() < 0.6:
        return f"{_RAW}{rng.choice(NUMBERS)}"
    if isinstance(value, list) and rng.random() < 0.4:
        return [f"{_RAW}{rng.choice(NUMBERS)}" for _ in range(rng.choice((0, 1, 2, 4, 6, len(value))))]
    raw = rng.choice((*NUMBERS, "NaN", "Infinity", "-Infinity", "null", "true", "false", "[]", "{}", "[null]"))
    return rng.choice((f"{_RAW}{raw}", f"{_RAW}null", rng.choice(STRINGS), [value], {"a": value}, [[]], _DEEP))


def mutate_toml(rng: Random, content: bytes) -> bytes:
    """Change, remove, repeat or swap 1 to 3 lines of a TOML document."""
    if rng.random() < 0.12:
        return encode_wrongly(rng, content) if rng.random() < 0.3 else damage(rng, content)
    lines = content.decode().split("\n")
    values = (
        *NUMBERS, "nan", "inf", "-inf", "true", '""', '"x"', '"../x"', "[]", "{}", "[[1]]", "1979-05-27", "[1, 'a']",
    )  # fmt: skip
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        how = rng.randrange(10)
        key, equals, old = lines[at].partition("=")
        if equals and how < 7:
            deep = "[" * DEPTH + "]" * DEPTH
            numbers = [rng.choice(NUMBERS) if rng.random() < 0.5 else old for _ in range(1)]
            lines[at] = f"{key}= {deep if rng.random() < 0.02 else rng.choice((*values, *numbers))}"
        elif equals and how == 7:
            lines[at] = f"{key.strip()}_x = {old}"
        elif how == 8:
            del lines[at]
            lines = lines or [""]
        else:
            lines.insert(rng.randrange(len(lines)), lines[at])
    return "\n".join(lines).encode()


def mutate_xml(rng: Random, content: bytes) -> bytes:
    """Change attributes, text and elements of an XML document by 1 to 3 substitutions."""
    if rng.random() < 0.12:
        return encode_wrongly(rng, content) if rng.random() < 0.3 else damage(rng, content)
    text = content.decode()
    for _ in range(rng.randint(1, 3)):
        how = rng.randrange(12)
        if how < 6:
            matches = list(re.finditer(r'="([^"]*)"|>([^<>\s][^<>]*)<', text))
            value = rng.choice((*NUMBERS, *STRINGS, "nan", "inf")).replace("\0", "&#1;").replace("\ud800", "&#55296;")
            value = value.replace("<", "&lt;")
        else:
            matches = list(re.finditer(r"<\w[^>]*/>" if how < 9 else r' \w+="[^"]*"', text))
            value = ""
        if not matches:
            continue
        match = rng.choice(matches)
        group = next((number for number in (1, 2) if match.re.groups and match[number] is not None), 0)
        first, last = match.span(group)
        if how in (7, 8):
            value = text[first:last] * rng.choice((2, 2, 500))
        if how == 8 and rng.random() < 0.1:
            value = "<a>" * DEPTH + "</a>" * DEPTH
        if how == 11 and rng.random() < 0.3:
            first, last, value = 0, 0, '<!DOCTYPE a [<!ENTITY b "cc">]>'
        text = text[:first] + value + text[last:]
    return text.encode("utf-8", "replace")


def mutate_table(delimiter: str) -> Mutator:
    """Return a mutator for a text table: cells, columns, rows, quotes and encodings."""

    def mutate(rng: Random, content: bytes) -> bytes:
        if rng.random() < 0.2:
            return encode_wrongly(rng, content) if rng.random() < 0.5 else damage(rng, content)
        lines = [line.split(delimiter) for line in content.decode().split("\n")]
        for _ in range(rng.randint(1, 3)):
            # The heads seldom: without them nothing else is read.
            row = rng.randrange(len(lines)) if rng.random() < 0.2 else min(1, len(lines) - 1) or 0
            row = row if rng.random() < 0.5 else rng.randrange(len(lines))
            cells = lines[row]
            at = rng.randrange(len(cells)) if cells else 0
            how = rng.randrange(10)
            if how < 6 and cells:
                cells[at] = rng.choice((*NUMBERS, *STRINGS, '"', "nan", "#ffffff", "²", "x" * 200_000))
            elif how == 6 and cells:
                del cells[at]
            elif how == 7:
                cells.insert(at, cells[at] if cells else "")
            elif how == 8:
                lines.insert(row, list(cells))
            elif len(lines) > 1:
                del lines[row]
        return "\n".join(delimiter.join(cells) for cells in lines).encode("utf-8", "surrogatepass")

    return mutate


# --- containers ----------------------------------------------------------------------------


def mutate_parquet(rng: Random, content: bytes) -> bytes:
    """Change columns of a Parquet table: their values, types, names and order; one in five mutations is of bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if rng.random() < 0.2:
        return damage(rng, content)
    table = pq.read_table(io.BytesIO(content))
    for _ in range(rng.randint(1, 2)):
        if not table.num_columns:
            break
        at = rng.randrange(table.num_columns)
        name, values = table.column_names[at], table.column(at).to_pylist()
        how = rng.randrange(10)
        if how == 0:
            table = table.remove_column(at)
        elif how == 1:
            table = table.append_column(name, table.column(at))
        elif how == 2:
            table = table.rename_columns([f"{n}_x" if n == name else n for n in table.column_names])
        elif how == 3:
            table = rng.choice((table.slice(0, 0), pa.concat_tables([table, table]), table.slice(0, 1)))
        elif how == 4:
            values = rng.choice(([str(v) for v in values], [[str(v)] for v in values], [None] * len(values)))
            table = table.set_column(at, name, pa.array(values))
        elif how == 5:
            table = table.set_column(at, name, pa.array([rng.choice((1.5, float("nan"), -1e300)) for _ in values]))
        else:
            if not values:
                continue
            row = rng.randrange(len(values))
            cell: Any = None
            old = values[row]
            if isinstance(old, int) and rng.random() < 0.8:
                cell = rng.choice((-1, 0, 2**31 - 1, 2**40, -(2**40)))
            elif isinstance(old, float):
                cell = rng.choice((float("nan"), float("inf"), -1e300, 0.0))
            elif isinstance(old, str) and rng.random() < 0.8:
                cell = rng.choice(STRINGS).encode("utf-8", "replace").decode()
            elif isinstance(old, list):
                cell = rng.choice(([], [-1], [2**31 - 1] * 3, [None], old * 2))
            values[row : row + 1] = [cell]
            try:
                column = pa.array(values, table.column(at).type)
            except (pa.ArrowException, OverflowError):
                column = pa.array([str(v) for v in values])
            table = table.set_column(at, name, column)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def mutate_gzip(inner: Mutator) -> Mutator:
    """Return a mutator of what a gzip file holds, and seldom of its own bytes."""

    def mutate(rng: Random, content: bytes) -> bytes:
        if rng.random() < 0.15:
            return damage(rng, content)
        return gzip.compress(inner(rng, gzip.decompress(content)), 1, mtime=0)

    return mutate


def mutate_tar(rng: Random, content: bytes) -> bytes:
    """Change header fields of the members of a tar, most with a right checksum, repeat and reorder members."""
    blocks = bytearray(content)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        starts = [info.offset for info in archive]
    for _ in range(rng.randint(1, 3)):
        # Seldom the first: it decides whether the file is taken for a tar.
        at = rng.choice(starts[1:] or starts) if rng.random() < 0.8 else starts[0]
        how = rng.randrange(10)
        if how < 6:
            field, size = rng.choice(((0, 100), (100, 8), (124, 12), (124, 12), (136, 12), (156, 1), (157, 100)))
            texts = (b"../x", b"/x", b"", b"a" * 100, b"777777777777", b"-1", b"\x80" + b"\xff" * 11, b"\xff" * 12)
            value = rng.choice(texts)[:size] if size > 1 else rng.choice((b"1", b"2", b"5", b"L", b"x", b"S", b"g"))
            blocks[at + field : at + field + size] = value.ljust(size, b"\0")
            if rng.random() < 0.9:
                blocks[at + 148 : at + 156] = b" " * 8
                blocks[at + 148 : at + 156] = b"%06o\0 " % sum(blocks[at : at + 512])
        elif how == 6:
            blocks[at:at] = blocks[at : at + 1024]
        elif how == 7:
            blocks = blocks[: rng.randrange(at, len(blocks))]
            break
        else:
            blocks = bytearray(flip(rng, bytes(blocks)))
    return bytes(blocks)


def mutate_zip(rng: Random, content: bytes) -> bytes:
    """Rewrite a zip with other names, sizes or contents, or change bytes of its directory."""
    how = rng.randrange(10)
    if how < 2:
        return damage(rng, content)
    if how < 6:
        at = content.rfind(b"PK\5\6")
        start = struct.unpack_from("<I", content, at + 16)[0]
        # The entries, not the end record that finds them.
        mutated = rng.choice((flip, set_integer))(rng, content[start:at])
        return content[:start] + mutated + content[at:]
    sink = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(sink, "w") as new:
        warnings.simplefilter("ignore")  # a name that is there twice
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names:
            data = old.read(name)
            if name == chosen:
                name = rng.choice((name, "../x", "/x", "a\\b", names[0], name.upper(), "é.tif", name + "/"))
                data = rng.choice((data, data[: len(data) // 2], b"", b"\0" * (1 << 26), damage(rng, data)))
            info = zipfile.ZipInfo(name)
            new.writestr(info, data, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_STORED)))
    return sink.getvalue()


def mutate_tiff(rng: Random, content: bytes) -> bytes:
    """Change entries of the first directory of a classic TIFF, or bytes anywhere."""
    if rng.random() < 0.15 or content[:4] not in (b"II*\0", b"MM\0*"):
        return damage(rng, content)
    order = "<" if content[:2] == b"II" else ">"
    out = bytearray(content)
    start = struct.unpack_from(f"{order}I", content, 4)[0]
    count = struct.unpack_from(f"{order}H", content, start)[0]
    for _ in range(rng.randint(1, 2)):
        entry = start + 2 + 12 * rng.randrange(count)
        kind, number, value = struct.unpack_from(f"{order}HII", out, entry + 2)
        how = rng.randrange(8)
        big = rng.choice((0, 1, 2, 3, 7, 255, 4096, 65535, 65536, 2**20, 2**31 - 1, 2**31, 2**32 - 1, len(content)))
        if how < 4 and number == 1 and kind == 3:
            struct.pack_into(f"{order}H", out, entry + 8, big & 0xFFFF)
        elif how < 4:
            # Of an array, a value in it rather than the place where it is.
            inside = (
                number * {2: 1, 3: 2, 4: 4, 12: 8}.get(kind, 1) > 4 and value + 8 <= len(out) and rng.random() < 0.8
            )
            struct.pack_into(f"{order}I", out, value if inside else entry + 8, big)
        elif how == 4:
            struct.pack_into(f"{order}I", out, entry + 4, big)
        elif how == 5:
            struct.pack_into(f"{order}H", out, entry + 2, rng.choice((1, 2, 3, 4, 5, 11, 12, 13, 16, 99)))
        elif how == 6:
            struct.pack_into(f"{order}H", out, entry, rng.choice((254, 256, 258, 259, 262, 277, 317, 320, 322, 34735)))
        else:
            out = bytearray(flip(rng, bytes(out)))
    return bytes(out)


def mutate_safetensors(rng: Random, content: bytes) -> bytes:
    """Change the JSON header of a safetensors file, its length, or any bytes."""
    if rng.random() < 0.2:
        return damage(rng, content)
    size = struct.unpack_from("<Q", content)[0]
    head = mutate_json(rng, content[8 : 8 + size])
    length = rng.choice((2**63, 2**40, 0, len(head) - 1)) if rng.random() < 0.05 else len(head)
    return struct.pack("<Q", length) + head + content[8 + size :]


def mutate_pbf(rng: Random, content: bytes) -> bytes:
    """Change the unpacked data of a block of an OSM PBF file and pack it again, or change bytes anywhere."""
    if rng.random() < 0.15:
        return damage(rng, content)
    blocks, at = [], 0
    while at < len(content):
        size = struct.unpack_from(">I", content, at)[0]
        head = content[at + 4 : at + 4 + size]
        fields = dict(_fields(head))
        body = content[at + 4 + size : at + 4 + size + int(fields[3])]
        blob = dict(_fields(body))
        blocks.append((fields[1], blob[1] if 1 in blob else zlib.decompress(blob[3])))
        at += 4 + size + int(fields[3])
    # Seldom the header block: without it nothing is read.
    chosen = rng.randrange(len(blocks)) if rng.random() < 0.15 else len(blocks) - 1
    kind, data = blocks[chosen]
    for _ in range(rng.randint(1, 3)):
        data = rng.choice((flip, flip, splice, set_integer))(rng, data)
    blocks[chosen] = (kind, data)
    if rng.random() < 0.1:
        blocks.append(rng.choice(blocks))
    out = b""
    for kind, data in blocks:
        raw = rng.choice((0, 2**31 - 1, len(data) + 1)) if rng.random() < 0.03 else len(data)
        body = b"\x10" + _varint(raw) + b"\x1a" + _sized(zlib.compress(data, 1))
        head = b"\x0a" + _sized(kind) + b"\x18" + _varint(len(body))
        out += struct.pack(">I", len(head)) + head + body
    return out


def _fields(message: bytes) -> list[tuple[int, Any]]:
    """Return the fields (number, value) of a protobuf message of integers and bytes."""
    found: list[tuple[int, Any]] = []
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        value, at = _read_varint(message, at)
        if tag & 7 == 2:
            found.append((tag >> 3, message[at : at + value]))
            at += value
        else:
            found.append((tag >> 3, value))
    return found


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _sized(content: bytes) -> bytes:
    return _varint(len(content)) + content


def mutate_sums(rng: Random, content: bytes) -> bytes:
    """Change lines of a SHA256SUMS file."""
    lines = content.split(b"\n")
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(lines))
        names = (b"../x", b"/x", b"", b"a" * 300, b"\0", b"\xff")
        choices = (b"", lines[at][:66] + rng.choice(names), lines[at] * 2, lines[at] + b"\r", damage(rng, lines[at]))
        lines[at] = rng.choice(choices)
        if rng.random() < 0.2:
            lines.insert(at, lines[at])
    return b"\n".join(lines)
