"""Trees as streams: they come out as they went in, and nothing that a sandbox sends leads out of its place."""

from __future__ import annotations

import itertools
import os
import posixpath
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import FileTooLarge
from sandbox.localtree import TreeWriter, encode_local, leads_inside
from sandbox.tree import (
    CHUNK,
    DEPTH_MAX,
    END_OF_TREE,
    ENTRY,
    Entry,
    EntryType,
    FileData,
    FileEnd,
    TreeDecoder,
    TreeEnd,
    encode_data,
    encode_entry,
    encode_file,
)
from sandbox.wire import MAX_FRAME, MODE_KEEP, PATH_LEN_MAX, ProtocolError

names = st.binary(min_size=1, max_size=8).filter(lambda name: b"/" not in name and b"\0" not in name)
paths = st.lists(names.filter(lambda name: name not in (b".", b"..")), min_size=1, max_size=4).map(b"/".join)
modes = st.integers(0, 0o7777)
times = st.integers(0, 2**33)
directories = st.builds(Entry, st.just(EntryType.DIRECTORY), paths, modes, times)
links = st.builds(Entry, st.just(EntryType.LINK), paths, modes, times, st.binary(max_size=50))
files = st.builds(Entry, st.just(EntryType.FILE), paths, modes, times)
members = st.one_of(directories, links, st.tuples(files, st.binary(max_size=3000)))


def stream_of(tree):
    data = b""
    for member in tree:
        entry, content = member if isinstance(member, tuple) else (member, None)
        data += encode_entry(entry)
        if content is not None:
            data += b"".join(encode_data((content,)))
    return data + END_OF_TREE


def decoded(data, cuts=()):
    decoder = TreeDecoder()
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    events = [event for start, end in itertools.pairwise(places) for event in decoder.feed(data[start:end])]
    return decoder, events


@given(st.lists(members, max_size=6), st.lists(st.integers(0, 5000)))
def test_a_tree_comes_out_as_it_went_in_however_it_is_cut(tree, cuts):
    decoder, events = decoded(stream_of(tree), cuts)
    assert decoder.ended
    got: list[Any] = []
    for event in events:
        if isinstance(event, Entry):
            got.append((event, bytearray()) if event.type is EntryType.FILE else event)
        elif isinstance(event, FileData):
            got[-1][1].extend(event.data)
        else:
            assert isinstance(event, FileEnd | TreeEnd)
    assert got == tree


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000)))
def test_any_bytes_are_a_tree_or_a_protocol_error(data, cuts):
    decoder = TreeDecoder()
    try:
        for start, end in itertools.pairwise(sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})):
            for event in decoder.feed(data[start:end]):
                assert not isinstance(event, Entry) or ".." not in os.fsdecode(event.path).split("/")
    except ProtocolError:
        pass
    assert len(decoder._buffer) <= ENTRY.size + PATH_LEN_MAX
    assert len(decoder._target) <= PATH_LEN_MAX


def test_one_file_is_a_tree():
    _, events = decoded(b"".join(encode_file(b"content", 0o600)))
    assert events == [Entry(EntryType.FILE, b"", 0o600), FileData(b"content"), FileEnd(), TreeEnd()]
    _, events = decoded(b"".join(encode_file(b"", None)))
    assert events == [Entry(EntryType.FILE, b"", MODE_KEEP), FileEnd(), TreeEnd()]


@pytest.mark.parametrize(
    "path", [b"..", b"../x", b"a/../b", b"/etc/passwd", b"a//b", b"a/", b".", b"a/./b", b"a\0b"], ids=str
)
def test_a_path_that_no_file_system_has_is_refused(path):
    with pytest.raises(ProtocolError, match="path"):
        decoded(ENTRY.pack(EntryType.DIRECTORY, 0, 0o755, len(path), 0) + path)


def test_a_tree_is_no_deeper_than_its_making_and_removal_can_be(tmp_path):
    """A guest walks no deeper, and Python's ``mkdir`` and ``rmtree`` recurse."""
    deepest = b"/".join([b"d"] * DEPTH_MAX)
    assert write(tmp_path / "out", stream_of([(Entry(EntryType.FILE, deepest, 0o644), b"x")])).files == 1
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(ProtocolError, match="257 parts"):
        decoded(stream_of([Entry(EntryType.DIRECTORY, deepest + b"/d", 0o755)]))


@pytest.mark.parametrize(
    "data",
    [
        ENTRY.pack(ord("X"), 0, 0, 0, 0),
        ENTRY.pack(EntryType.FILE, 1, 0, 0, 0),
        ENTRY.pack(EntryType.FILE, 0, 0, PATH_LEN_MAX + 1, 0),
        ENTRY.pack(EntryType.FILE, 0, 0, 0xFFFFFFFF, 0),
        ENTRY.pack(EntryType.END, 0, 0, 1, 0) + b"x",
        END_OF_TREE + b"x",
        encode_entry(Entry(EntryType.FILE, b"a", 0)) + CHUNK.pack(MAX_FRAME + 1),
        ENTRY.pack(EntryType.LINK, 0, 0, 1, 0) + b"a" + CHUNK.pack(PATH_LEN_MAX + 1),
        ENTRY.pack(EntryType.LINK, 0, 0, 1, 0) + b"a" + CHUNK.pack(PATH_LEN_MAX) + bytes(PATH_LEN_MAX) + CHUNK.pack(1),
        stream_of([Entry(EntryType.DIRECTORY, b"a", 0)])[: -len(END_OF_TREE)]
        + ENTRY.pack(EntryType.DIRECTORY, 0, 0, 0, 0),
        b"".join(encode_file(b"", 0))[: -len(END_OF_TREE)] + encode_entry(Entry(EntryType.DIRECTORY, b"a", 0)),
    ],
    ids=[
        "type",
        "zero",
        "long path",
        "endless path",
        "path of the end",
        "after the end",
        "long chunk",
        "long target",
        "long target in pieces",
        "root comes late",
        "more than one file",
    ],
)
def test_what_breaks_the_layout_is_refused(data):
    with pytest.raises(ProtocolError):
        decoded(data)


def write(root, data, max_entries=1000):
    writer = TreeWriter(root, max_entries=max_entries)
    try:
        writer.take(decoded(data)[1])
        return writer.finish()
    finally:
        writer.close()


def make_tree(root):
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "sub" / "large").write_bytes(bytes(range(256)) * 4000)
    (root / "sub" / os.fsdecode(b"\xff\n name")).write_text("odd")
    (root / "none").write_bytes(b"")
    (root / "tool").write_text("#!/bin/sh\n")
    (root / "tool").chmod(0o755)
    (root / "sub" / "up").symlink_to("../tool")
    (root / "dangling").symlink_to("nowhere")
    os.utime(root / "tool", (1_000_000_000, 1_000_000_000))
    os.mkfifo(root / "fifo")


def test_a_local_tree_goes_out_and_back(tmp_path):
    make_tree(tmp_path / "tree")
    result = write(tmp_path / "back", b"".join(encode_local(tmp_path / "tree")))
    back = tmp_path / "back"
    assert sorted(os.fsencode(path.relative_to(back)) for path in back.rglob("*")) == sorted(
        [b"dangling", b"none", b"sub", b"sub/empty", b"sub/large", b"sub/\xff\n name", b"sub/up", b"tool"]
    )
    assert (back / "sub" / "large").read_bytes() == (tmp_path / "tree" / "sub" / "large").read_bytes()
    assert (back / "tool").stat().st_mode & 0o7777 == 0o755
    assert (back / "tool").stat().st_mtime == 1_000_000_000
    assert (back / "sub" / "up").readlink() == Path("../tool")
    assert (result.files, result.left_out) == (4, ())


def test_one_local_file_goes_out_and_back(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert write(tmp_path / "back", b"".join(encode_local(tmp_path / "link"))).bytes == 7
    assert (tmp_path / "back").read_bytes() == b"content"


def test_what_is_no_file_is_not_uploaded(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    os.link(tmp_path / "fifo", tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        list(encode_local(tmp_path / "none"))
    with pytest.raises(ValueError, match="neither a file nor a directory"):
        list(encode_local(tmp_path / "fifo"))


def test_modes_are_made_harmless(tmp_path):
    tree = [
        Entry(EntryType.DIRECTORY, b"", 0o7777),
        (Entry(EntryType.FILE, b"setuid", 0o6777), b""),
        (Entry(EntryType.FILE, b"unreadable", 0), b""),
        (Entry(EntryType.FILE, b"for others", 0o677), b""),
        Entry(EntryType.DIRECTORY, b"closed", 0),
        (Entry(EntryType.FILE, b"closed/inside", 0o644), b""),
    ]
    write(tmp_path / "out", stream_of(tree))
    found = {path.name: path.stat().st_mode & 0o7777 for path in (tmp_path / "out").rglob("*")}
    assert found == {"setuid": 0o755, "unreadable": 0o600, "for others": 0o644, "closed": 0o700, "inside": 0o644}


@pytest.mark.parametrize("target", [b"/etc/passwd", b"..", b"../x", b"a/../../x", b"a/..", b"", b"x\0y", b"./../x"])
def test_a_link_that_may_lead_out_is_left_out_and_named(tmp_path, target):
    result = write(tmp_path / "out", stream_of([Entry(EntryType.LINK, b"link", 0o777, 0, target)]))
    assert result.left_out == ("link",)
    assert not (tmp_path / "out" / "link").is_symlink()


def test_a_file_is_never_written_through_a_link(tmp_path):
    (tmp_path / "victim").mkdir()
    tree = [
        Entry(EntryType.DIRECTORY, b"", 0o755),
        Entry(EntryType.LINK, b"place", 0o777, 0, b"inside"),
        (Entry(EntryType.FILE, b"place/file", 0o644), b"content"),
        Entry(EntryType.LINK, b"same", 0o777, 0, b"place/file"),
        (Entry(EntryType.FILE, b"same", 0o644), b"other"),
    ]
    result = write(tmp_path / "out", stream_of(tree))
    assert result.left_out == ("place", "same")
    assert (tmp_path / "out" / "place" / "file").read_bytes() == b"content"
    assert (tmp_path / "out" / "same").read_bytes() == b"other"


def test_a_path_through_a_file_is_an_error(tmp_path):
    tree = [(Entry(EntryType.FILE, b"file", 0o644), b""), (Entry(EntryType.FILE, b"file/below", 0o644), b"")]
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "out", stream_of(tree))


def test_a_tree_of_too_many_entries_is_too_large(tmp_path):
    tree = [Entry(EntryType.DIRECTORY, b"%d" % number, 0o755) for number in range(11)]
    assert write(tmp_path / "out", stream_of(tree[:10]), max_entries=10).files == 0
    with pytest.raises(FileTooLarge, match="10 entries"):
        write(tmp_path / "more", stream_of(tree), max_entries=10)


parts = st.sampled_from([b"a", b"b", b"c", b"..", b"."])


@given(
    st.dictionaries(
        st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=3).map(b"/".join),
        st.lists(parts, min_size=1, max_size=5).map(b"/".join),
        max_size=6,
    )
)
def test_no_links_that_are_made_lead_out_together(tmp_path_factory, targets):
    outside = tmp_path_factory.mktemp("links")
    root = outside / "root"
    tree = [Entry(EntryType.DIRECTORY, b"", 0o755)]
    tree += [Entry(EntryType.LINK, path, 0o777, 0, target) for path, target in targets.items()]
    write(root, stream_of(tree))
    real_root = os.path.realpath(root)
    for folder, directories, names in os.walk(root):
        for name in directories + names:
            real = os.path.realpath(f"{folder}/{name}")
            assert posixpath.commonpath([real, real_root]) == real_root


def test_a_link_inside_the_tree_is_one():
    for path, target in ((b"a", b"b"), (b"d/a", b"../b"), (b"d/e/a", b"../../b/c"), (b"a", b"./b"), (b"d/a", b"..")):
        assert leads_inside(Entry(EntryType.LINK, path, 0o777, 0, target)), (path, target)
