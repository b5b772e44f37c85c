import json
from pathlib import Path

from hirescli.events import FileWritten, RunStarted, StageStarted, event_dict


def test_events_become_json() -> None:
    event = StageStarted(0, 3, "base", 256, 256, 30)
    assert event_dict(event)["event"] == "stage_started"
    written = event_dict(FileWritten(Path("a.tif"), 10, 0.5))
    assert json.loads(json.dumps(written)) == {
        "event": "file_written",
        "path": "a.tif",
        "bytes": 10,
        "seconds": 0.5,
    }


def test_the_plan_is_left_out() -> None:
    assert event_dict(RunStarted(object())) == {"event": "run_started"}
