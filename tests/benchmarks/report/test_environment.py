import os
import platform
import socket

from benchmarks.report.environment import facts, newest, processor


def test_the_processor_s_name():
    assert (
        processor("processor\t: 0\nmodel name\t: Fast CPU @ 2 GHz\nflags\t: a b\nmodel name\t: other\n")
        == "Fast CPU @ 2 GHz"
    )
    assert processor("Features\t: fp asimd\n") == platform.machine()


def test_the_newest_file_gives_the_day(tmp_path):
    for name, time in (("a", 86_400 * 365), ("b", 86_400 * 366), ("c", 0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time, time))
    assert newest(tmp_path.iterdir()) == "1971-01-02"
    assert newest([]) == "there are none"


def test_no_host_and_no_path_is_told(tmp_path):
    told = "\n".join(facts([tmp_path]).values())
    assert "torch 2" in told
    assert str(tmp_path) not in told
    assert os.getcwd() not in told
    assert len(socket.gethostname()) < 4 or socket.gethostname() not in told
