#!/usr/bin/env python3
"""Reads the vectors beside it, by docs/format/repository-format.md alone. Standard library only; X25519 is left to the age command and zstd to
the zstd command; what cannot be checked without them is said and skipped. Slow, plain, and without any of walrecv's code."""

import hashlib
import hmac
import json
import os
import struct
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SEGMENT_SIZE = 1 << 20
REPOSITORY = bytes.fromhex("7265706f7369746f72792d69642d3136")
SYSTEM = 7123456789012345678
PUBLISHED = b"walrecv repository not encrypted"
KEYS = {  # secret, identity file
    "identity": (b"\x5e" * 32, "identity.txt"),
    "secret": (b"\x5e" * 32, None),
    "other-identity": (b"\x5e" * 32, "other-identity.txt"),
    "other-secret": (b"\x0e" * 32, "identity.txt"),
    "published": (PUBLISHED, None),
}


class Refused(Exception):
    pass


class Skipped(Exception):
    pass


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def hkdf(salt, ikm, info, length):
    prk = hmac.new(salt, ikm, hashlib.sha256).digest()
    out = block = b""
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([len(out) // 32 + 1]), hashlib.sha256).digest()
        out += block
    return out[:length]


def chacha20(key, nonce, counter, length):
    def quarter(s, a, b, c, d):
        for left, right, to, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[left] = s[left] + s[right] & 0xFFFFFFFF
            mixed = s[to] ^ s[left]
            s[to] = (mixed << turn | mixed >> 32 - turn) & 0xFFFFFFFF

    out = b""
    while len(out) < length:
        start = list(struct.unpack("<4I", b"expand 32-byte k") + struct.unpack("<8I", key))
        start += [counter] + list(struct.unpack("<3I", nonce))
        s = start[:]
        for _ in range(10):
            for lane in range(4):
                quarter(s, lane, 4 + lane, 8 + lane, 12 + lane)
            for lane in range(4):
                quarter(s, lane, 4 + (lane + 1) % 4, 8 + (lane + 2) % 4, 12 + (lane + 3) % 4)
        out += struct.pack("<16I", *(x + y & 0xFFFFFFFF for x, y in zip(s, start)))
        counter += 1
    return out[:length]


def poly1305(key, data):
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for at in range(0, len(data), 16):
        total = (total + int.from_bytes(data[at:at + 16] + b"\1", "little")) * r % ((1 << 130) - 5)
    return (total + int.from_bytes(key[16:], "little") & (1 << 128) - 1).to_bytes(16, "little")


def aead_open(key, number, last, ad, stored):
    """The plaintext, or None."""
    nonce = struct.pack(">Q", number) + bytes([0, 0, 0, last])
    text, tag = stored[:-16], stored[-16:]
    pad = lambda part: part + bytes(-len(part) % 16)
    data = pad(ad) + pad(text) + struct.pack("<QQ", len(ad), len(text))
    if poly1305(chacha20(key, nonce, 0, 32), data) != tag:
        return None
    return bytes(a ^ b for a, b in zip(text, chacha20(key, nonce, 1, len(text))))


def lz4_block(data):
    out, at = bytearray(), 0

    def length(start, at):
        if start == 15:
            while True:
                start += data[at]
                at += 1
                if data[at - 1] != 255:
                    break
        return start, at

    while at < len(data):
        token = data[at]
        literals, at = length(token >> 4, at + 1)
        out += data[at:at + literals]
        at += literals
        if at >= len(data):
            break
        back = data[at] | data[at + 1] << 8
        match, at = length(token & 15, at + 2)
        for _ in range(match + 4):
            out.append(out[-back])
    return bytes(out)


def command(arguments, data):
    try:
        run = subprocess.run(arguments, input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise Skipped(f"no {arguments[0]} command")
    return run.stdout if run.returncode == 0 else None


def decompress(code, data, length):
    plain = data if code == 0 else lz4_block(data) if code == 1 else command(["zstd", "-dc"], data)
    if plain is None or len(plain) != length:
        raise Refused("damaged")
    return plain


def need(data, end):
    if len(data) < end:
        raise Refused("truncated")


class Object:
    """Header and keys of an object."""

    def __init__(self, data, expected, with_keys):
        secret, identity = KEYS[with_keys]
        if data[:8] != b"walrecv\0"[:len(data)]:
            raise Refused("not-an-object")
        need(data, 10)
        if data[8:10] != b"\1\0":
            raise Refused("version")
        need(data, 86)
        kind, flags = data[10], data[11]
        system, size, timeline, start = struct.unpack("<QIIQ", data[28:52])
        salt, wrapped = data[52:84], struct.unpack("<H", data[84:86])[0]
        self.salt = salt
        if not 1 <= kind <= 15 or flags > 1 or wrapped > 4010 or size & size - 1 or not 1 << 20 <= size <= 1 << 30:
            raise Refused("damaged")
        header = data[:86 + wrapped]
        self.has_content = kind in (1, 2, 3, 4)
        self.frames_at = 86 + wrapped + (68 if self.has_content else 36)
        need(data, self.frames_at)
        if struct.pack("<I", crc32c(data[:self.frames_at - 4])) != data[self.frames_at - 4:self.frames_at]:
            raise Refused("damaged")
        if (data[12:28], system, size, kind, timeline, start) != (REPOSITORY, SYSTEM, SEGMENT_SIZE) + expected:
            raise Refused("claims")
        if flags != (secret == PUBLISHED):
            raise Refused("key")
        digest = hashlib.sha256(header).digest()
        index = hkdf(salt, secret, b"walrecv object v1 index" + digest, 64)
        if index[32:] != data[len(header):len(header) + 32]:
            raise Refused("key")
        self.index, self.content = index[:32], index[:32]
        if self.has_content:
            if secret == PUBLISHED:
                data_key = PUBLISHED
            elif identity is None:
                raise Refused("key")
            else:
                data_key = command(["age", "-d", "-i", os.path.join(HERE, identity)], header[86:])
            if data_key is None or len(data_key) != 32:
                raise Refused("key")
            content = hkdf(salt, data_key + secret, b"walrecv object v1 content" + digest, 64)
            if content[32:] != data[len(header) + 32:len(header) + 64]:
                raise Refused("key")
            self.content = content[:32]


def frame_at(data, at, head, salt=b""):
    """Plain length, compression and stored bytes of a frame whose header has `head` bytes; one of a tail is under a salt."""
    need(data, at + head)
    plain, stored, compression, zero = struct.unpack("<IIB3s", data[at:at + 12])
    fits = stored == plain + 16 if compression == 0 else 16 < stored < plain + 16
    if plain > 1 << 18 or compression > 2 or zero != bytes(3) or not fits or (head == 64 and plain == 0):
        raise Refused("damaged")
    need(data, at + head + stored)
    body = data[at + head:at + head + stored]
    if struct.pack("<I", crc32c(salt + data[at:at + head - 4] + body)) != data[at + head - 4:at + head]:
        raise Refused("damaged")
    return plain, compression, body


def read_object(data, obj):
    at, number, parts = obj.frames_at, 0, []
    while True:
        plain, compression, body = frame_at(data, at, 16)
        ad, at = data[at:at + 12], at + 16 + len(body)
        key, last = (obj.index if number == 0 else obj.content), at == len(data)
        text = aead_open(key, number, last, ad, body)
        if text is None:
            cut = last and aead_open(key, number, False, ad, body) is not None
            raise Refused("truncated" if cut else "damaged")
        parts.append(decompress(compression, text, plain))
        if last:
            break
        number += 1
    first = parts.pop(0) if obj.has_content else b""
    return first, 0, b"".join(parts)


def read_tail(data, obj, piece):
    at, frames = obj.frames_at, []
    while at < len(data):
        try:
            frame = frame_at(data, at, 64, obj.salt)
        except Refused:
            if piece:
                raise
            refuse_later_flush(data, at, len(frames), obj.salt)
            break
        number, flush, offset = struct.unpack("<IIQ", data[at + 12:at + 28])
        expected = (frames[-1][0] + 1, frames[-1][1]) if frames else (number, offset) if piece else (0, 0)
        if (number, offset) != expected:
            raise Refused("damaged")
        plain, compression, body = frame
        text = aead_open(obj.content, number, False, data[at:at + 60], body)
        if text is None:
            raise Refused("damaged")
        frames.append((number, offset + plain, offset, decompress(compression, text, plain)))
        at += 64 + len(body)
    if piece and not frames:
        raise Refused("truncated")
    return b"", frames[0][2] if frames else 0, b"".join(frame[3] for frame in frames)


def refuse_later_flush(data, end, expected, salt):
    for at in range(end, len(data) - 64):
        if struct.unpack("<I", data[at + 16:at + 20])[0] > expected:
            try:
                frame_at(data, at, 64, salt)
            except Refused:
                continue
            raise Refused("damaged")


def read(name, how, with_keys, expected):
    with open(os.path.join(HERE, name + ".bin"), "rb") as file:
        data = file.read()
    if how == "tail" and data.count(0) == len(data):
        return b"", 0, b""
    obj = Object(data, expected, with_keys)
    return read_object(data, obj) if how == "object" else read_tail(data, obj, how == "piece")


def repository_file():
    """The names of the keys that walrecv.json's check value admits."""
    with open(os.path.join(HERE, "walrecv.json"), encoding="ascii") as file:
        about = json.load(file)
    salt, stored = bytes.fromhex(about["id"]), bytes.fromhex(about["secret_check"])
    return {name for name, (secret, _) in KEYS.items() if hkdf(salt, secret, b"walrecv secret check v1", 16) == stored}


def main():
    wrong = checked = skipped = 0
    admitted = repository_file()
    if admitted != {"identity", "secret", "other-identity"}:
        print(f"WRONG walrecv.json: admits {sorted(admitted)}")
        wrong += 1
    with open(os.path.join(HERE, "vectors.txt"), encoding="ascii") as file:
        lines = [line.split() for line in file if line.strip() and not line.startswith("#")]
    for name, how, with_keys, kind, timeline, start, *outcome in lines:
        high, low = (int(half, 16) for half in start.split("/"))
        digest = lambda data: hashlib.sha256(data).hexdigest()
        try:
            first, begin, content = read(name, how, with_keys, (int(kind), int(timeline), high << 32 | low))
            found = ["opens", digest(first), str(begin), digest(content)]
        except Refused as refused:
            found = ["refused", str(refused)]
        except Skipped as reason:
            print(f"SKIPPED {name}: {reason}")
            skipped += 1
            continue
        checked += 1
        if found != outcome:
            print(f"WRONG {name}: expected {outcome}, found {found}")
            wrong += 1
    print(f"{checked} vectors checked, {skipped} skipped, {wrong} wrong")
    return 1 if wrong or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
