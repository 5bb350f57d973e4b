"""CIFAR batches and archives that were made to do harm: nothing runs, nothing is allocated."""

import functools
import gzip
import io
import os
import pickle
import resource
import struct
import tarfile
import zlib

import numpy as np
import pytest

for package in ("sklearn", "yaml"):
    pytest.importorskip(package)

from realspike.data import DataError, array_pickle, cifar

ARCHIVE = cifar.ARCHIVES["cifar10"]
NAMES = [f"{ARCHIVE.folder}/{name}" for name in ARCHIVE.train + ARCHIVE.test]


def program(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\0\x85" + text(b"b")
EMPTY_ARRAY = EMPTY + b"\x87R"


def dtype(code: bytes = b"u1", state: bytes = b"NNN") -> bytes:
    made = b"cnumpy\ndtype\n" + text(code) + b"K\0K\1\x87R"
    return made + b"(K\3" + text(b"|") + state + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"


def array(shape: bytes, content: bytes, of: bytes | None = None) -> bytes:
    return EMPTY_ARRAY + b"(K\1" + shape + (of or dtype()) + b"\x89" + text(content) + b"tb"


def batch(data: bytes) -> bytes:
    return program(b"}" + text(b"data") + data + b"s")


def test_an_array_by_hand():
    # [2, 3] in rows, written down byte by byte
    read = array_pickle.loads(batch(array(b"K\2K\3\x86", b"\0\1\2\3\4\xff")))
    assert read[b"data"].tolist() == [[0, 1, 2], [3, 4, 255]]
    assert read[b"data"].dtype == np.uint8
    wide = array(b"K\1\x85", b"\1\2", dtype(b"u2").replace(b"U\1|", b"U\1>"))
    assert array_pickle.loads(batch(wide))[b"data"].tolist() == [258]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["u1", ">i2", "<i8", "u4"])
def test_arrays_of_numpy(kind, order):
    values = np.arange(6).reshape(2, 3).astype(kind, order=order)
    for protocol in (2, 3, 4):
        pickled = pickle.dumps({b"data": values, b"n": values[1, 2]}, protocol)
        read = array_pickle.loads(pickled)
        assert read[b"data"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert read[b"data"].dtype == values.dtype
        assert read[b"n"] == 5


def test_python_3_may_have_written_the_largest_file():
    """As pickle's protocol 2, which has bytes as text: pixels from 128 on take two of them."""
    images = np.full((100, 3 * 32 * 32), 255, np.uint8)
    names = [b"%06d.png" % n for n in range(len(images))]
    content = pickle.dumps({b"data": images, b"fine_labels": [99] * 100, b"filenames": names}, 2)
    assert (array_pickle.loads(content)[b"data"] == images).all()
    assert len(content) * 500 <= cifar.LARGEST_FILE  # 50,000 images


BUFFER = text(b"\x41" * 16)
HOSTILE = {
    "ndarray is called": b"cnumpy\nndarray\n" + b"K\1\x85" + text(b"O") + BUFFER + b"\x87R",
    "ndarray is called by _reconstruct's arguments": EMPTY.replace(b"ndarray", b"dtype") + b"\x87R",
    "an array of nothing": EMPTY_ARRAY.replace(b"K\0\x85", b"\x8a\x08" + b"\0" * 7 + b"\x10\x85"),
    "a subclass": EMPTY.replace(b"ndarray", b"matrix") + b"\x87R",
    "objects": array(b"K\2\x85", b"\x41" * 16, dtype(b"O")),
    "objects of eight bytes": array(b"K\2\x85", b"\x41" * 16, dtype(b"O8")),
    "a type that is 300,000 tuples deep": b"cnumpy\ndtype\n)" + b"\x85" * 300_000 + b"\x85R",
    "a type that takes 2**50 steps to show": b"cnumpy\ndtype\n)"
    + b"\x85q\0h\0\x86" * 50
    + b"\x85R",
    "a structure": array(b"K\2\x85", b"\x41" * 16, dtype(b"O,u1")),
    "strings": array(b"K\2\x85", b"\x41" * 16, dtype(b"S8")),
    "void": array(b"K\2\x85", b"\x41" * 16, dtype(b"V8")),
    "a dtype that turns into a structure": array(
        b"K\2\x85", b"AA", dtype(state=b"N" + text(b"f") + b"\x85" + b"}" + text(b"f") + b"Ns")
    ),
    "a dtype with a sub-array": array(b"K\2\x85", b"AA", dtype(state=b"K\2\x85NN")),
    "2**60 elements": array(b"\x8a\x08" + b"\0" * 7 + b"\x10\x85", b"A"),
    "2**62 times 4 elements": array(b"\x8a\x08" + b"\0" * 7 + b"\x40K\4\x86", b""),
    "a negative size": array(number(-1) + b"\x85", b"A"),
    "two negative sizes": array(number(-1) + number(-1) + b"\x86", b"A"),
    "sizes of bool": array(b"\x88\x85", b"A"),
    "fewer bytes than elements": array(b"K\2\x85", b"A"),
    "more bytes than elements": array(b"K\2\x85", b"AAA"),
    "a state twice nested": array(b"K\1\x85", b"A").replace(b"cnumpy\nndarray\n", EMPTY_ARRAY),
    "a state that is an array": EMPTY_ARRAY + EMPTY_ARRAY + b"b",
    "a state of a dictionary": b"}(K\1K\2tb",
    "a state of a number": b"K\1(K\1K\2tb",
    "a number of strange bytes": b"cnumpy.core.multiarray\nscalar\n" + dtype() + BUFFER + b"\x86R",
    "a number of an object": b"cnumpy.core.multiarray\nscalar\n" + dtype(b"O") + BUFFER + b"\x86R",
    "codecs by another name": b"c_codecs\nencode\nX\1\0\0\0A" + text(b"rot13") + b"\x86R",
    "a call of codecs with errors": b"c_codecs\nencode\nX\1\0\0\0A" + text(b"latin1") + b"K\1\x87R",
    "eval": b"cbuiltins\neval\n" + text(b"1") + b"\x85R",
    "a dotted name": b"\x8c\x05numpy\x8c\x10ndarray.__base__\x93",
    "a name of numpy": b"cnumpy\nload\n" + text(b"/etc/passwd") + b"\x85R",
    "a name that is no text": b"K\1K\2\x93",
    "an extension": b"\x82\1",
    "a persistent id": b"P1\n",
    "a persistent id of an object": b"K\1Q",
    "an instance": b"(ios\nsystem\n",
    "an object": b"(cos\nsystem\n" + text(b"true") + b"o",
    "__new__": b"cnumpy\nndarray\nK\1\x85\x85\x81",
    "an object without a memo": b"h\7",
    "no stack": b"\x86",
    "a huge memo": b"r\xff\xff\xff\xff" * 2,
    "a bytearray of 2**62": b"\x96" + b"\0" * 7 + b"\x40",
    "bytes of 2**62": b"\x8e" + b"\0" * 7 + b"\x40",
    "a number of 2**31 bytes": b"\x8b\xff\xff\xff\x7f",
    "a number of 200 bytes": b"\x8a\xc8" + b"\x7f" * 200,
    "5000 digits": b"L" + b"9" * 5000 + b"L\n",
    "float": b"G" + struct.pack(">d", 1.0),
    "a key that takes 2**50 steps to hash": b"}K\1" + b"\x85q\0h\0\x86" * 50 + b"K\1s",
    "a set": b"\x8f",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_but_arrays(what):
    with pytest.raises(ValueError) as raised:
        array_pickle.loads(batch(HOSTILE[what]))
    assert "\n" not in str(raised.value)


def test_a_list_in_a_list_in_a_list():
    for deep in (b"]" * 100_000 + b"a" * 99_999, b"K\1" + b"\x85" * 300_000):
        read = array_pickle.loads(batch(deep))
        with pytest.raises(ValueError, match="no images"):
            cifar._batch(batch(deep), ARCHIVE)
        del read  # which must not run out of stack either


def test_labels_that_are_in_themselves():
    data = array(b"K\1M\0\x0c\x86", b"").replace(b"U\0", b"T\0\x0c\0\0" + b"A" * 3072)
    inside = b"}(" + text(b"data") + data + text(b"labels") + b"]q\1h\1a" + b"u"
    with pytest.raises(ValueError, match="its labels are no integers"):
        cifar._batch(program(inside), ARCHIVE)


def memory_limited(function, megabytes=600):
    """Call in a child process that cannot take more than that beyond what it has."""
    child = os.fork()
    if child == 0:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)
        try:
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_bombs_take_no_memory():
    # One text of a megabyte, encoded a hundred thousand times
    encode = b"c_codecs\nencode\nq\1X" + struct.pack("<I", 2**20) + b"A" * 2**20
    encode += b"q\2" + text(b"latin1") + b"\x86q\3" + b"h\1h\3R" * 100_000
    bombs = {
        "more bytes than the pickle has": encode,
        "more than 1000000 instructions": b"(" + b"}" * 1_000_000 + b"t",
        "no pickle of a dictionary": b"r\xff\xff\xff\xff" * 100,  # the memo's last index
    }

    def load(reason, bomb):
        with pytest.raises(ValueError, match=reason):
            array_pickle.loads(program(b"K\1", bomb))

    for reason, bomb in bombs.items():
        memory_limited(functools.partial(load, reason, bomb))


# Archives


def tar(*members, packed=True, tail=b"\0" * 1024) -> bytes:
    """An archive of (name, content, changes of its header)."""
    out = io.BytesIO()
    for name, content, changes in members:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in changes.items():
            setattr(info, key, value)
        # GNU's numbers may be negative, and longer than eleven digits.
        out.write(info.tobuf(tarfile.GNU_FORMAT))
        out.write(content + b"\0" * (-len(content) % 512))
    return gzip.compress(out.getvalue() + tail, 1) if packed else out.getvalue() + tail


@pytest.fixture
def read(tmp_path):
    def read(content):
        (tmp_path / "a").write_bytes(content)
        return cifar._read_archive(tmp_path / "a", NAMES)

    return read


PLAIN = [(name, bytes([n]) * 700, {}) for n, name in enumerate(NAMES)]


@pytest.mark.parametrize("packed", [True, False])
def test_members_come_in_the_order_of_their_names(read, packed):
    others = [("cifar-10-batches-py", b"", {"type": tarfile.DIRTYPE}), ("readme", b"x", {})]
    content = tar(*others, *PLAIN[::-1], packed=packed)
    assert read(content) == [bytes([n]) * 700 for n in range(6)]


REFUSED = {
    "a link": ([(NAMES[0], b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})], "neither"),
    "a link to itself": ([(NAMES[0], b"", {"type": tarfile.LNKTYPE, "linkname": NAMES[0]})], "nei"),
    "a device": ([(NAMES[0], b"", {"type": tarfile.CHRTYPE, "devmajor": 1})], "neither"),
    "a pipe": ([("pipe", b"", {"type": tarfile.FIFOTYPE})], "neither"),
    "a sparse file": ([(NAMES[0], b"", {"type": tarfile.GNUTYPE_SPARSE})], "neither"),
    "a long name": ([("x", NAMES[0].encode(), {"type": tarfile.GNUTYPE_LONGNAME})], "neither"),
    "a name in a header": ([("x", b"20 path=" + b"a" * 9, {"type": tarfile.XHDTYPE})], "neither"),
    "a size in a header": ([("x", b"9 a=b\n20 size=99999\n", {"type": tarfile.XHDTYPE})], "nei"),
    "a sparse map": ([("x", b"22 GNU.sparse.major=1\n", {"type": tarfile.XHDTYPE})], "neither"),
    "a member twice": ([*PLAIN, PLAIN[2]], "twice"),
    "a member that is missing": (PLAIN[:3] + PLAIN[4:], "has no cifar-10-batches-py/data_batch_4"),
    "a file of 5 GB": ([("x", b"", {"size": 5 * 2**30})], "claims 5368709120 bytes"),
    "a file of 2**70 bytes": (
        [("x", b"", {"size": 2**70})],
        "claims 1180591620717411303424 bytes",
    ),
    "a negative size": ([("x", b"", {"size": -512})], "claims -512"),
    "a header of 1 MB": ([("x", b"1" * 2**20, {"type": tarfile.XHDTYPE})], "claims 1048576"),
    "half a file": ([("x", b"", {"size": 1024 * 2**10})], "ends inside 'x'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_archives_that_are_refused(read, what):
    members, reason = REFUSED[what]
    with pytest.raises(ValueError, match=reason):
        read(tar(*members))


def test_absolute_names_and_those_outside_are_no_members(read, tmp_path):
    outside = [("/" + NAMES[0], b"x", {}), ("../" + NAMES[0], b"x", {}), ("./" + NAMES[1], b"", {})]
    assert read(tar(*outside, *PLAIN)) == read(tar(*PLAIN))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_archives_that_do_not_end(read):
    with pytest.raises(ValueError, match="has no end"):
        read(tar(*PLAIN, tail=b""))
    with pytest.raises(ValueError, match="goes on behind its end"):
        read(tar(*PLAIN, tail=b"\0" * 2**21))
    content = bytearray(tar(*PLAIN))
    content[-5] ^= 1  # of the checksum behind the last block
    with pytest.raises((zlib.error, gzip.BadGzipFile)):
        read(content)


def test_small_files_that_unpack_to_gigabytes(tmp_path):
    megabyte = b"\0" * 2**20
    path = tmp_path / ARCHIVE.file
    with gzip.open(path, "wb", 1) as file:
        for number in range(2):
            file.write(tar((f"x{number}", b"", {"size": 140 * 2**20}), packed=False, tail=b""))
            for _ in range(140):
                file.write(megabyte)
    assert path.stat().st_size < 2**22

    def load():
        with pytest.raises(DataError, match="claims 2936"):
            cifar.load("cifar10", tmp_path)

    memory_limited(load)


def test_batches_that_are_no_plain_files(tmp_path):
    folder = tmp_path / ARCHIVE.folder
    folder.mkdir()
    path = folder / "data_batch_1"

    def refused(*words):
        with pytest.raises(DataError) as raised:
            cifar.load("cifar10", tmp_path)
        assert all(word in str(raised.value) for word in (str(path), *words)), raised.value

    os.mkfifo(path)
    refused("no regular file")
    path.unlink()
    path.symlink_to("/dev/zero")
    refused("no regular file")
    path.unlink()
    path.symlink_to(path)
    refused()
    path.unlink()
    path.mkdir()
    refused("no regular file")
    path.rmdir()
    with open(path, "wb") as file:
        file.truncate(2**40)
    refused("claims 1099511627776 bytes")
