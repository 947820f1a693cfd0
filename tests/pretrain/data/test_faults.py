import json

import pytest

from pretrain.data.faults import FaultLog
from pretrain.types import Fault, UserError


def _faults(count, kind="corrupt"):
    return [Fault(kind, f"{kind}{i}.jpg") for i in range(count)]


def test_bound_is_on_the_share_of_the_window():
    log = FaultLog(0.05, window=10_000, min_seen=1_000)
    for _ in range(40):
        log.record(250, _faults(12))  # 12 of 250 is 4.8%
    for _ in range(4):
        log.record(250, _faults(17))  # 5 more than the chunk that leaves: up to 480 + 20 = 500, which is the bound
    with pytest.raises(
        UserError, match=r"501 of the last 10,000 samples could not be used \(5\.01%, allowed are 5\.00%"
    ):
        log.record(250, _faults(13))


def test_exactly_the_bound_is_allowed():
    log = FaultLog(0.5, window=4, min_seen=1)
    log.record(4, _faults(2))
    with pytest.raises(UserError):
        log.record(4, _faults(3))


def test_early_faults_are_held_against_min_seen():
    log = FaultLog(0.05, window=10_000, min_seen=1_000)
    log.record(60, _faults(50))  # 50 is 5% of min_seen
    with pytest.raises(UserError):
        log.record(60, _faults(1))


def test_old_faults_leave_the_window():
    log = FaultLog(0.5, window=10, min_seen=1)
    log.record(10, _faults(5))
    log.record(10, [])
    log.record(10, _faults(5))
    assert log.counts == {"corrupt": 10}
    assert log.attempts == 30


def test_message_is_one_line_with_field_kinds_and_examples():
    log = FaultLog(0.1, window=100, min_seen=10)
    with pytest.raises(UserError) as error:
        log.record(20, [*_faults(5), *_faults(1, "missing")])
    message = str(error.value)
    assert "\n" not in message
    for part in ("data.max_fault_share", "30.00%", "10.00%", "5 corrupt (corrupt0.jpg, ", "1 missing (missing0.jpg)"):
        assert part in message


def test_message_counts_the_window_only():
    log = FaultLog(0.5, window=4, min_seen=1)
    log.record(4, _faults(1, "missing"))
    with pytest.raises(UserError) as error:
        log.record(4, _faults(4))
    assert "missing" not in str(error.value)


def test_faults_of_the_index_have_no_share():
    log = FaultLog(0.0, window=10, min_seen=1)
    log.record(0, [Fault("truncated_tar", "a.tar")])
    log.record(10, [])
    assert log.counts == {"truncated_tar": 1}
    assert log.summary() == "found while indexing: 1 truncated tar (a.tar)"


def test_summary():
    log = FaultLog()
    assert log.summary() == "nothing skipped"
    log.record(12_000, [Fault("missing", "c.jpg"), Fault("corrupt", "a.jpg"), Fault("corrupt", "b.jpg")])
    assert log.summary() == "skipped 3 of 12,000 samples: 2 corrupt (a.jpg, b.jpg), 1 missing (c.jpg)"


def test_summary_shows_three_examples():
    log = FaultLog()
    log.record(1000, _faults(4))
    assert log.summary().endswith("4 corrupt (corrupt0.jpg, corrupt1.jpg, corrupt2.jpg, ...)")


def test_resumed_log_goes_on_where_it_stopped():
    def fed(log, chunks):
        for chunk in chunks:
            log.record(*chunk)
        return log

    before, after = [(5, _faults(1)), (5, _faults(1, "missing"))], [(5, []), (5, _faults(2))]
    whole = fed(FaultLog(0.3, window=12, min_seen=1), before + after)
    state = json.loads(json.dumps(fed(FaultLog(0.3, window=12, min_seen=1), before).state_dict()))
    resumed = FaultLog(0.3, window=12, min_seen=1)
    resumed.load_state_dict(state)
    fed(resumed, after)
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.summary() == whole.summary()
    with pytest.raises(UserError, match="5 of the last 15"):  # 2 of them from before the resume are gone
        resumed.record(5, _faults(3))


def test_index_faults_are_not_counted_twice_by_a_resume():
    log = FaultLog()
    log.record(0, [Fault("truncated_tar", "a.tar")])
    resumed = FaultLog()
    resumed.record(0, [Fault("truncated_tar", "a.tar")])
    resumed.load_state_dict(log.state_dict())
    assert resumed.counts == {"truncated_tar": 1}


@pytest.mark.parametrize("bound", [-0.1, 1.5, float("nan")])
def test_bound_that_is_no_share(bound):
    with pytest.raises(UserError, match="max_fault_share"):
        FaultLog(bound)


def test_negative_attempts():
    with pytest.raises(ValueError, match="attempts=-1"):
        FaultLog().record(-1, [])
