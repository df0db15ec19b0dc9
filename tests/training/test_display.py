"""What is shown, in a terminal and elsewhere."""

import io
import re

from rich.console import Console

from rlearly.core.types import Progress
from rlearly.training import display
from rlearly.training.display import Display, duration

LATEST = {"train/episode_return": 12.34, "plasticity/dormant_ratio": 0.25}


def shown(monkeypatch, terminal):
    clock = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=80, soft_wrap=True)
    with Display(1000, console) as shown:
        for step in range(1, 301):
            clock[0] += 0.1
            shown.on_progress(Progress(2 * step, step), step // 2, LATEST)
    return stream.getvalue()


def test_lines_come_soon_then_seldom_and_say_everything(monkeypatch):
    lines = shown(monkeypatch, terminal=False).splitlines()
    assert 3 <= len(lines) <= 6
    assert lines[-1].startswith(
        "346 / 1,000 frames (34.6%) | 20.0 frames/s | 5.00 updates/s | 33 s"
    )
    assert lines[-1].endswith("return 12.3 | dormant 25.0%")


def test_terminal_shows_both_lines_within_80_columns_and_the_last_state(monkeypatch):
    text = shown(monkeypatch, terminal=True)
    assert "600 / 1,000 frames (60.0%)" in text and "return 12.3 | dormant 25.0%" in text


def test_rates_leave_evaluations_out(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    shown = Display(1000, Console(file=io.StringIO(), width=80))
    for seconds, frames, latest in (
        (2, 20, {}),
        (8, 30, {}),
        (500, 30, {"evaluating": "1/1, step 9"}),
        (600, 30, {}),
        (700, 230, {}),
    ):
        clock[0] = seconds
        shown.on_progress(Progress(frames, frames), 0, latest)
    assert "2.0 frames/s" in shown.parts(Progress(230, 230), 0, {})[0]


def test_time_left_is_told_from_steps_with_updates_alone(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    shown = Display(1000, Console(file=io.StringIO(), width=80))
    told = []
    for seconds, frames, updates in ((10, 100, 0), (20, 200, 0), (40, 210, 5), (60, 220, 10)):
        clock[0] = seconds
        shown.on_progress(Progress(frames, frames), updates, {})
        told.append(shown.parts(Progress(frames, frames), updates, {})[0])
    assert not any("left" in part for parts in told[:3] for part in parts)
    assert "10.0 frames/s" in told[1] and told[3][-1] == "26 min left"  # 780 frames at 0.5/s


def test_durations_read_at_a_glance():
    cases = {5: "5 s", 300: "5 min", 7200: "2.0 h", 864000: "10 days"}
    assert {s: duration(s) for s in cases} == cases


def test_message_is_shown_as_it_is_however_long():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=40, soft_wrap=True)
    text = (
        "continue with: python -m rlearly.train 'resume=/tmp/:car: [bold]x[/bold] " + "long " * 20
    )
    Display(1000, console).message(text)
    assert text in re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())
