"""The cpio writer: reproducible, read back by an independent reader, and by busybox where there is one."""

from __future__ import annotations

import shutil
import stat
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from islet_cli.errors import InputError
from islet_cli.realm_image import cpio, elf, lock
from islet_cli.realm_image.debfile import members

names = st.text("abcdefgh-_.é", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
entries = st.one_of(
    st.binary(max_size=50).map(cpio.file),
    st.binary(max_size=50).map(lambda data: cpio.file(data, executable=True)),
    st.just(cpio.directory()),
    names.map(cpio.link),
    st.tuples(st.integers(0, 300), st.integers(0, 300)).map(lambda pair: cpio.character_device(*pair)),
)


def tree_of(items: list[tuple[str, cpio.Entry]]) -> cpio.Tree:
    tree = cpio.Tree()
    for path, entry in items:
        try:
            tree.add(path, entry)
        except InputError:
            pass  # below a file, or another kind at the same path
    return tree


def read(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int], int]]:
    """A slow and obvious reader of the format."""
    out = {}
    inodes = []
    at = 0
    while True:
        assert at % 4 == 0 and data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        inode, mode, uid, gid, _links, mtime, size, _major, _minor, device_major, device_minor, name_size, check = (
            fields
        )
        assert (uid, gid, check) == (0, 0, 0)
        name = data[at + 110 : at + 110 + name_size]
        assert name[-1:] == b"\0"
        start = at + (110 + name_size + 3) // 4 * 4
        at = start + (size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert at == len(data)
            assert inodes == list(range(1, len(inodes) + 1))
            return out
        inodes.append(inode)
        out[name[:-1].decode()] = (mode, data[start : start + size], (device_major, device_minor), mtime)


@given(st.lists(st.tuples(paths, entries), max_size=12), st.randoms(), st.integers(0, 2**32 - 1))
def test_what_is_written_reads_back_whatever_the_order(items, random, mtime):
    tree = tree_of(items)
    data = cpio.archive(tree, mtime=mtime)
    found = read(data)
    assert found == {path: (entry.mode, entry.data, entry.device, mtime) for path, entry in tree.items()}
    assert list(found) == sorted(found)
    for path in found:
        parent = path.rpartition("/")[0]
        assert not parent or stat.S_ISDIR(found[parent][0])
    shuffled = list(tree.items())
    random.shuffle(shuffled)
    again = cpio.Tree()
    for path, entry in shuffled:
        again.add(path, entry)
    assert cpio.archive(again, mtime=mtime) == data


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(paths, entries), max_size=8))
def test_busybox_lists_the_same(items):
    tree = tree_of([item for item in items if not stat.S_ISCHR(item[1].mode)])
    done = subprocess.run(["busybox", "cpio", "-t"], input=cpio.archive(tree, mtime=0), capture_output=True, check=True)
    assert done.stdout.decode().split("\n")[:-1] == [path for path, _entry in tree.items()]


@pytest.mark.parametrize("mtime", [-1, 2**32])
def test_a_time_that_does_not_fit_is_refused(mtime):
    with pytest.raises(InputError):
        cpio.archive(cpio.Tree(), mtime=mtime)


@given(st.binary(max_size=400), st.booleans())
def test_parsers_of_files_refuse_garbage_with_an_error_of_their_own(data, with_magic):
    for magic, parse in (
        (b"\x7fELF\x02\x01", lambda content: elf.facts(content, what="x")),
        (b"\x7fELF\x02\x01", lambda content: elf.module_info(content, what="x")),
        (b"\x7fELF\x02\x01", lambda content: elf.trimmed(content, what="x")),
        (b"!<arch>\n", lambda content: list(members(content, what="x"))),
        (b"schema = 1\n", lambda content: lock.parse(content, what="x")),
    ):
        try:
            parse(magic + data if with_magic else data)
        except InputError:
            pass
