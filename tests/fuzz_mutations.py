"""Ways to spoil a valid file, each aware of how the file is built; a mutation is a function of bytes and a seed."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

MOST_BYTES = 1 << 20
LENGTHS = (
    0,
    1,
    2,
    3,
    7,
    8,
    0x7F,
    0xFF,
    0x100,
    0x1000,
    0x7FFF,
    0xFFFE,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0xFFFFFFFE,
    0xFFFFFFFF,
)
NUMBERS = (
    b"", b"0", b"-1", b"1e999", b"-1e308", b"1e308", b"1e9", b"1e-308", b"nan", b"inf", b"0.0000001", b"1_0", b"\0\0",
    b"1\\2\\3\\4\\5\\6\\7", b"1e200\\1e200\\1e200", b"0\\0\\0\\0\\0\\0", b"\\\\\\", b"+-5", b"\xb2",
    b"99999999999999", b"9" * 5000, b"Secret^Name",
)  # fmt: skip
_TAILS = ("", ".1", ".2", ".1.99", ".5", *(f".4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 100, 201)))
SYNTAXES = (*(f"1.2.840.10008.1.2{tail}".encode() for tail in _TAILS), b"1.2.3", b"", b"Secret^Name")
VRS = (b"SQ", b"UN", b"OB", b"OW", b"LO", b"US", b"SS", b"DS", b"IS", b"UI", b"FD", b"UT", b"PN", b"\0\0", b"zz")
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_ITEM, _ITEM_END, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"

Mutation = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Element:
    """Where one element of an explicit little endian stream lies."""

    start: int
    length_at: int
    length_size: int
    value: int
    stop: int


def elements_of(data: bytes) -> list[Element]:
    """Elements as far as the stream makes sense; into sequences and fragments, and past what has no length."""
    found = []
    pos = 132
    while pos + 8 <= len(data) and len(found) < 2000:
        if data[pos : pos + 2] == b"\xfe\xff":
            length = struct.unpack_from("<I", data, pos + 4)[0]
            # Items of sequences are entered, fragments (which hold no elements) are stepped over.
            inside = length == 0xFFFFFFFF or data[pos + 8 : pos + 10] in (
                b"\x08\x00",
                b"\x18\x00",
                b"\x20\x00",
                b"\x28\x00",
            )
            stop = pos + 8 if inside else min(pos + 8 + length, len(data))
            found.append(Element(pos, pos + 4, 4, pos + 8, stop))
        else:
            vr = data[pos + 4 : pos + 6]
            wide = vr in _LONG
            at = pos + (8 if wide else 6)
            if at + 4 > len(data):
                break
            length = struct.unpack_from("<I" if wide else "<H", data, at)[0]
            value = at + (4 if wide else 2)
            stop = value if vr == b"SQ" or length == 0xFFFFFFFF else min(value + length, len(data))
            found.append(Element(pos, at, 4 if wide else 2, value, stop))
        pos = max(stop, pos + 8)
    return found


def _pick(data: bytes, random: Random) -> Element:
    found = elements_of(data)
    return random.choice(found) if found else Element(0, 4, 4, 8, len(data))


def _put(data: bytes, at: int, new: bytes, old: int | None = None) -> bytes:
    return data[:at] + new + data[at + (len(new) if old is None else old) :]


# Any bytes ------------------------------------------------------------------------------------------------------------


def flip(data: bytes, random: Random) -> bytes:
    """Flip some bits."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        if out:
            out[random.randrange(len(out))] ^= 1 << random.randrange(8)
    return bytes(out)


def number(data: bytes, random: Random) -> bytes:
    """Overwrite two, four or eight bytes with a number that often is an edge."""
    at = random.randrange(max(1, len(data)))
    value, size = random.choice((*LENGTHS, random.getrandbits(32))), random.choice("HIIQ")
    packed = struct.pack(random.choice("<>") + size, value & (0xFFFF if size == "H" else 0xFFFFFFFF))
    return _put(data, at, packed)


def cut(data: bytes, random: Random) -> bytes:
    """Break off."""
    return data[: random.randrange(len(data) + 1)]


def double(data: bytes, random: Random) -> bytes:
    """Repeat a part."""
    start = random.randrange(len(data) + 1)
    stop = min(len(data), start + random.choice((1, 4, 16, 200, 4000)))
    return data[:stop] + data[start:stop] * random.choice((1, 1, 2, 50)) + data[stop:]


def drop(data: bytes, random: Random) -> bytes:
    """Leave a part out."""
    start = random.randrange(len(data) + 1)
    return data[:start] + data[start + random.choice((1, 2, 4, 16, 200)) :]


def zeros(data: bytes, random: Random) -> bytes:
    """Overwrite a part with zeros or ones."""
    start = random.randrange(len(data) + 1)
    return _put(data, start, bytes((random.choice((0, 255)),)) * random.choice((2, 8, 64, 500)))


# DICOM ----------------------------------------------------------------------------------------------------------------


def lie_about_length(data: bytes, random: Random) -> bytes:
    """Another length of an element, item or fragment."""
    element = _pick(data, random)
    value = random.choice((*LENGTHS, element.stop - element.value + random.choice((-2, -1, 1, 2, 100))))
    form, most = ("<I", 0xFFFFFFFF) if element.length_size == 4 else ("<H", 0xFFFF)
    return _put(data, element.length_at, struct.pack(form, value & most))


def change_vr(data: bytes, random: Random) -> bytes:
    """Another VR."""
    return _put(data, _pick(data, random).start + 4, random.choice(VRS))


def remove_element(data: bytes, random: Random) -> bytes:
    """A missing tag."""
    element = _pick(data, random)
    return data[: element.start] + data[element.stop :]


def repeat_element(data: bytes, random: Random) -> bytes:
    """A tag that is there twice or many times, here or elsewhere."""
    one, other = _pick(data, random), _pick(data, random)
    copy = data[one.start : one.stop][:4096] * random.choice((1, 1, 2, 100))
    return data[: other.start] + copy + data[other.start :]


def rename_element(data: bytes, random: Random) -> bytes:
    """The value of one tag under another."""
    one, other = _pick(data, random), _pick(data, random)
    return _put(data, one.start, data[other.start : other.start + 4])


def change_value(data: bytes, random: Random) -> bytes:
    """Another value, with a length that fits."""
    element = _pick(data, random)
    value = random.choice(NUMBERS)
    if random.random() < 0.3:
        value = struct.pack("<H", random.choice(LENGTHS) & 0xFFFF)
    value += b" " * (len(value) % 2)
    form = "<I" if element.length_size == 4 else "<H"
    return data[: element.length_at] + struct.pack(form, len(value)) + value + data[element.stop :]


def change_syntax(data: bytes, random: Random) -> bytes:
    """Another transfer syntax than the one the pixels are in."""
    return with_syntax(data, random.choice(SYNTAXES))


def with_syntax(data: bytes, uid: bytes) -> bytes:
    """Another Transfer Syntax UID (0002,0010); the group length stays as it was."""
    at = data.find(b"\x02\x00\x10\x00UI")
    if at < 0:
        return data
    uid += b"\0" * (len(uid) % 2)
    old = struct.unpack_from("<H", data, at + 6)[0]
    return data[: at + 6] + struct.pack("<H", len(uid)) + uid + data[at + 8 + old :]


def nest(data: bytes, random: Random) -> bytes:
    """Sequences in sequences, with and without ends."""
    depth = random.choice((1, 5, 31, 33, 200, 10_000))
    tag = random.choice((b"\x08\x00\x40\x11", b"\x00\x52\x30\x92", b"\x09\x00\x10\x10"))
    vr = random.choice((b"SQ\0\0", b"UN\0\0"))
    opening = (tag + vr + b"\xff" * 4 + _ITEM + b"\xff" * 4) * depth
    closing = (_ITEM_END + bytes(4) + _END + bytes(4)) * random.choice((0, depth))
    at = _pick(data, random).start
    return data[:at] + opening + closing + data[at:]


def insert_element(data: bytes, random: Random) -> bytes:
    """A private or unknown element that claims any length."""
    vr = random.choice((b"OB\0\0", b"UN\0\0", b"UT\0\0"))
    said, there = random.choice(LENGTHS), random.choice((0, 10, 3000))
    at = _pick(data, random).start
    return data[:at] + b"\x09\x00\x11\x10" + vr + struct.pack("<I", said) + bytes(there) + data[at:]


def spoil_fragments(data: bytes, random: Random) -> bytes:
    """Fragments that lie: more, fewer, empty, joined, with another table."""
    items = [element for element in elements_of(data) if data[element.start : element.start + 4] == _ITEM]
    if not items:
        return data
    item = random.choice(items)
    body = data[item.start : item.stop]
    choice = random.randrange(4)
    if choice == 0:
        new = body + _ITEM + bytes(4)
    elif choice == 1:
        new = b""
    elif choice == 2:
        new = _ITEM + struct.pack("<I", 8) + struct.pack("<II", random.choice(LENGTHS), random.choice(LENGTHS))
    else:
        new = body * random.choice((2, 3, 40))
    return data[: item.start] + new + data[item.stop :]


def spoil_codestream(data: bytes, random: Random) -> bytes:
    """Big endian numbers and markers inside compressed pixels, mostly near their beginning."""
    starts = [at for mark in (b"\xff\xd8", b"\xff\x4f") if (at := data.find(mark)) >= 0]
    start = random.choice(starts) if starts else data.rfind(_ITEM) + 8
    if not 0 <= start < len(data):
        return data
    at = min(len(data) - 1, start + int(random.expovariate(1 / 60)))
    if random.random() < 0.5:
        return _put(
            data, at, struct.pack(">H", random.choice((*LENGTHS, 0xFFC0, 0xFFC1, 0xFFC2, 0xFFDA, 0xFF52)) & 0xFFFF)
        )
    return _put(data, at, bytes((random.choice((0, 1, 2, 16, 17, 32, 127, 128, 255, random.randrange(256))),)))


def spoil_pixels(data: bytes, random: Random) -> bytes:
    """Any mutation inside a compressed image whose length and end marker stay right: what only a codec can notice."""
    items = [element for element in elements_of(data) if data[element.start : element.start + 4] == _ITEM]
    images = [item for item in items if item.stop - item.value > 20 and item.stop > len(data) // 3]
    if not images:
        return data
    image = random.choice(images)
    body = data[image.value : image.stop]
    kept = body.rstrip(b"\0")[-2:] if body.rstrip(b"\0").endswith(b"\xff\xd9") else b""
    body = random.choice((flip, number, zeros, drop, double))(body, random)[:60_000] + kept
    body += b"\0" * (len(body) % 2)
    return data[: image.value - 4] + struct.pack("<I", len(body)) + body + data[image.stop :]


# gzip -----------------------------------------------------------------------------------------------------------------


def unpacked(mutation: Mutation) -> Mutation:
    """Spoil what is inside gzip, so that its checksum is right."""

    def inside(data: bytes, random: Random) -> bytes:
        try:
            raw = gzip.decompress(data)
        except (OSError, EOFError, ValueError, zlib.error):
            return mutation(data, random)
        return gzip.compress(mutation(raw, random)[:MOST_BYTES], 1, mtime=0)

    return inside


def nifti_field(data: bytes, random: Random) -> bytes:
    """Another number in a field of the NIfTI-1 header (nifti1.h)."""
    at, form = random.choice(
        (
            *((40 + 2 * k, "h") for k in range(8)),  # dim
            (70, "h"), (72, "h"),  # datatype, bitpix
            *((76 + 4 * k, "f") for k in range(8)),  # pixdim
            (108, "f"), (112, "f"), (116, "f"), (123, "B"), (252, "h"), (254, "h"),  # offset, scale, units, form codes
            *((256 + 4 * k, "f") for k in range(6)),
            *((280 + 4 * k, "f") for k in range(12)),  # srow
        )
    )  # fmt: skip
    if form == "f":
        value = random.choice((0.0, -1.0, 1e30, -1e38, 1e-38, float("nan"), float("inf"), float("-inf"), 352.5, 1e9))
        return _put(data, at, struct.pack("<f", value))
    if form == "B":
        return _put(data, at, bytes((random.randrange(256),)))
    return _put(
        data, at, struct.pack("<h", random.choice((-32768, -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 32767, 512, 1536, 2304)))
    )


ANY: tuple[Mutation, ...] = (flip, number, cut, double, drop, zeros)
DICOM: tuple[Mutation, ...] = (
    lie_about_length, change_vr, remove_element, repeat_element, rename_element, change_value, change_value,
    change_syntax, nest, insert_element, spoil_fragments, *(spoil_codestream, spoil_pixels) * 4, *ANY,
)  # fmt: skip
NIFTI: tuple[Mutation, ...] = (nifti_field, nifti_field, nifti_field, *ANY)
PACKED_NIFTI: tuple[Mutation, ...] = (*(unpacked(mutation) for mutation in NIFTI), *ANY)


def mutated(data: bytes, mutations: Sequence[Mutation], random: Random) -> bytes:
    """One to three mutations, one after the other."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = random.choice(mutations)(data, random)[:MOST_BYTES]
    return data
