"""mmdet is quiet: its logger says nothing below an error, whichever instance is the current one."""

from evals.detection.mmdet_setup import use_mmdet


def test_mmengine_says_nothing_of_weights(monkeypatch):
    use_mmdet()
    from mmengine.logging import MMLogger, print_log

    said = []
    for handler in MMLogger.get_current_instance().handlers:  # one may have kept the stream of an earlier test
        monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    print_log("a weight was initialised", logger="current")
    MMLogger.get_current_instance().warning("a layer was found")
    MMLogger.get_current_instance().error("a failure")
    assert said == ["a failure"]
