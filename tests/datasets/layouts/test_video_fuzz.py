"""Lists and csv files of any content are read, or refused in one line (hypothesis)."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.layouts.videos import VIDEO_LAYOUTS, Choice, Name
from datasets.splits import HeldOut

FILES = {"a/x.avi": b"", "b/x.avi": b"", "b/y z.mp4": b"", "b/f.npz": b""}
LISTS: dict[Name, tuple[str, ...]] = {
    "ucf101": ("trainlist01.txt", "testlist01.txt"), "hmdb51": ("a_test_split1.txt", "b_test_split1.txt"),
    "video_csv": ("l.csv",), "frames_npz": ("train.csv", "t/val.csv"), "skeletons_npz": ("p_train.npz",),
}  # fmt: skip
PIECES = st.sampled_from([
    b"a/x.avi", b"x.avi", b"y z.mp4", b"f.npz", b".\\b\\y z.mp4", b" 1", b" 2", b" 0", b"\n", b"\r\n", b"\r", b",", b'"', b"file",
    b"path", b"label", b"labels", b"start", b"end", b"split", b"train", b"valid", b"test", b"0", b"1.5", b"inf", b"-1", b"1e999",
    b";", b"..", b"/", b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\xe9", b"\xed\xb2\x80", b"\xe2\x80\xa8",
    b"file,label\n", b"path,labels,split\n",
])  # fmt: skip
CONTENT = st.lists(st.one_of(PIECES, PIECES, PIECES, st.binary(max_size=4)), max_size=25).map(b"".join)


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(LISTS))
@given(data=st.data())
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_list_is_read_or_refused(layout: Name, data: st.DataObject) -> None:
    files = FILES | {name: data.draw(CONTENT) for name in LISTS[layout]}
    choice = Choice(HeldOut(), 1, data.draw(st.sampled_from(["", "", "split=test", "label", "=,"])))
    source = Archive("here", {name: len(content) for name, content in files.items()}, files.__getitem__)
    try:
        listing = VIDEO_LAYOUTS[layout](source, choice)
    except InputError as error:
        str(error).encode()  # what a terminal takes
    else:
        for number, clip in enumerate(listing.clips):
            assert clip.file in files
            assert clip.split in ("train", "val", "test", "query", "gallery")
            assert clip.actions
            assert 0 <= clip.start < clip.end
            clip.name(number).encode("ascii")
