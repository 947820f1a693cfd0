"""A study whose trainings and evaluations take a moment."""

import pytest

from benchmarks.studies.rehearsal import NOTES
from benchmarks.study_kills import write_study


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A study's file, and the notes of what was called."""
    notes = tmp_path / "notes.txt"
    notes.touch()
    monkeypatch.setenv(NOTES, str(notes))
    return write_study(tmp_path), notes
