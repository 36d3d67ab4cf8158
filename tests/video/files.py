"""Helpers that write moving videos, copy them into other containers, and damage them."""

from itertools import pairwise

import av
import numpy as np

from vtm.video.writing import write_video


def packets(path):
    """List the position and size of the packets of a file in bytes, in display order."""
    with av.open(str(path)) as container:
        found = [(packet.pts, packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    return [packet[1:] for packet in sorted(found)]


def spoil(source, path, numbers, make=bytes):
    """Write a copy of a file in which the packets of some frames are overwritten."""
    content = bytearray(source.read_bytes())
    for position, size in (packets(source)[number] for number in numbers):
        content[position : position + size] = make(size)
    path.write_bytes(content)


def flip(path, seed, count=8):
    """Flip random bits of a file, except near its beginning and end."""
    content, generator = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for position in generator.integers(len(content) // 10, len(content) * 9 // 10, count):
        content[position] ^= 1 << int(generator.integers(8))
    path.write_bytes(content)


def remux(source, path, **options):
    """Copy the packets of a file into another container."""
    with av.open(str(source)) as reader, av.open(path, "w", **options) as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)


def retime(source, path, time):
    """Copy the packets of a video; `time` maps the index of a packet and its two time stamps to new ones."""
    with av.open(str(source)) as reader, av.open(str(path), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for index, packet in enumerate(packet for packet in reader.demux(video=0) if packet.size):
            packet.pts, packet.dts = time(index, packet.pts, packet.dts)
            packet.stream = stream
            writer.mux(packet)
    return path


def join(path, *parts):
    """Concatenate the bytes of files."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def pack(source, path):
    """Copy an MPEG-4 video into AVI and store each B-frame in the packet of the P-frame before it, as DivX does."""
    with av.open(str(source)) as reader, av.open(str(path), "w") as writer:
        template = reader.streams.video[0]
        stored = [packet for packet in reader.demux(template) if packet.size]
        stream = writer.add_stream_from_template(template)
        contents = [b"\0\0\1\xb6\x50" if late.pts < early.pts else bytes(late) for early, late in pairwise(stored)]
        contents = [bytes(stored[0]), *contents]
        for index, (early, late) in enumerate(pairwise(stored)):
            contents[index] += bytes(late) if late.pts < early.pts else b""
        stream.codec_context.extradata = template.codec_context.extradata + b"\0\0\1\xb2DivX503b1393p"
        for number, (packet, content) in enumerate(zip(stored, contents, strict=True)):
            packed = av.Packet(content)
            packed.pts = packed.dts = number
            packed.time_base, packed.stream = 1 / template.average_rate, stream
            packed.is_keyframe = packet.is_keyframe
            writer.mux(packed)
    return path


def moving(path, count=60, *, codec, fps=10, **options):
    """Write a video of a moving texture, in which damage is visible."""
    base = np.kron(np.random.default_rng(0).integers(0, 255, (18, 20, 3), np.uint8), np.ones((6, 6, 1), np.uint8))
    pictures = (np.roll(base, (2 * number, 3 * number), (0, 1))[:64, :96].copy() for number in range(count))
    write_video(path, pictures, fps=fps, codec=codec, options=options)
    return path
